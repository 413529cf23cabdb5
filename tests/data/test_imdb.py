"""The dataset: as Keras gives it, from wherever it comes, and never by running what it holds."""

import errno
import hashlib
import io
import itertools
import json
import os
import socket
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset import Dataset, content_checksum, make_split
from harness.data.dataset_folder import open_folder, save_folder
from harness.data.locations import NPZ
from harness.data.sources import SAMPLE, fetch, make_dataset, open_dataset, open_sample
from harness.data.vocabulary import encode_split, encode_text, tokenize
from harness.errors import InputError, RunError
from tests.conftest import Harness
from tests.data.packaged_sample import make_sample

WORDS = list(open_sample().vocab)
TRAIN = [[1, 2, 3, 4], [2, 5], [1, 1, 6], [4]]
TEST = [[3, 3], [5, 4, 3, 2, 1], [6]]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    monkeypatch.setenv("HARNESS_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    trust_small_npz(tmp_path / "genuine", monkeypatch)


def trust_small_npz(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file that `write_npz` writes be Keras's own for this test."""
    genuine = hashlib.sha256((write_npz(folder) / NPZ).read_bytes()).hexdigest()
    monkeypatch.setattr("harness.data.sources.NPZ_SHA256", genuine)


def small() -> Dataset:
    return make_dataset(make_split(TRAIN, [1, 1, 0, 0]), make_split(TEST, [1, 0, 0]), WORDS)


def write_npz(folder: Path, **changed: object) -> Path:
    """Keras's file, as Keras ships it: pickled object arrays in an npz."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, object] = {
        "x_train": np.array(TRAIN, dtype=object),
        "y_train": np.array([1, 1, 0, 0]),
        "x_test": np.array(TEST, dtype=object),
        "y_test": np.array([1, 0, 0]),
    }
    arrays |= changed
    np.savez(folder / NPZ, **{k: v for k, v in arrays.items() if v is not None})  # type: ignore[arg-type]
    return folder


def load_data(x: list[list[int]], vocab_size: int) -> list[list[int]]:
    """The encoding of keras.datasets.imdb.load_data, written out as it stands there."""
    return [[1] + [w + 3 if w + 3 < vocab_size else 2 for w in review] for review in x]


def as_lists(dataset: Dataset, vocab_size: int) -> list[list[list[int]]]:
    both = []
    for split in (dataset.train, dataset.test):
        tokens, offsets = encode_split(split, vocab_size)
        pairs = itertools.pairwise(offsets)
        both.append([tokens[a:b].tolist() for a, b in pairs])
    return both


@pytest.mark.parametrize("vocab_size", [6, 8, 100])
def test_order_and_encoding_are_load_datas(tmp_path: Path, vocab_size: int) -> None:
    """Reviews come shuffled and encoded as Keras's load_data gives them."""
    dataset = open_dataset(write_npz(tmp_path / "data"))
    generator = np.random.RandomState(113)
    orders = np.arange(len(TRAIN)), np.arange(len(TEST))
    for order in orders:
        generator.shuffle(order)
    train = [load_data(TRAIN, vocab_size)[i] for i in orders[0]]
    test = [load_data(TEST, vocab_size)[i] for i in orders[1]]
    assert as_lists(dataset, vocab_size) == [train, test]
    assert dataset.train.labels.tolist() == [[1, 1, 0, 0][i] for i in orders[0]]
    assert not dataset.official


def test_after_the_first_conversion_nothing_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second open takes the flat arrays, by memory map, and gives the same."""
    folder = write_npz(tmp_path / "data")
    first = open_dataset(folder)
    monkeypatch.setattr("harness.data.sources.read_npz", None)
    second = open_dataset(folder)
    assert second.checksum == first.checksum
    assert isinstance(second.train.tokens, np.memmap)
    assert as_lists(second, 8) == as_lists(first, 8)
    assert [path.name for path in folder.iterdir()] == [NPZ]


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_another_npz_is_refused_before_anything_is_unpickled(tmp_path: Path) -> None:
    """One line leads to the genuine file and to own texts; nothing in the file is run."""
    mark = tmp_path / "was-run"
    folder = write_npz(tmp_path / "data", x_train=np.array([Hostile(mark)], dtype=object))
    says = r"data/imdb\.npz: is not Keras's .* by harness data fetch, or .* by data\.source$"
    with pytest.raises(InputError, match=says):
        open_dataset(folder)
    assert not mark.exists()
    with np.load(folder / NPZ, allow_pickle=True) as trusting:  # the trap is a real one
        _ = trusting["x_train"]
    assert mark.exists()


def cut(content: bytes) -> bytes:
    return content[:-100]


def break_block(content: bytes) -> bytes:
    """A member that can't be unpacked; the archive's index is whole."""
    return content[:60] + bytes(30) + content[90:]


@pytest.mark.parametrize("damage", [cut, break_block, lambda _: b"", lambda _: b"PK"])
def test_a_damaged_npz_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """And stays as it is."""
    path = write_npz(tmp_path / "data") / NPZ
    with np.load(path, allow_pickle=True) as archive:
        np.savez_compressed(path, **dict(archive))
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="is not Keras's imdb"):
        open_dataset(path.parent)
    assert path.read_bytes() == damaged


def test_the_genuine_arrays_are_read_from_any_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known by the checksum of each array; one that differs is enough to refuse the file."""
    path = write_npz(tmp_path / "data") / NPZ
    with zipfile.ZipFile(path) as archive:
        members = {Path(name).stem: archive.read(name) for name in archive.namelist()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    monkeypatch.setattr("harness.data.sources.SAVED_ANEW", digests)
    checksum = open_dataset(path.parent).checksum
    with np.load(path, allow_pickle=True) as arrays:
        np.savez_compressed(path, **dict(arrays))
    assert open_dataset(path.parent).checksum == checksum == small().checksum
    for name in digests:
        write_npz(path.parent, **{name: np.array([])})
        with pytest.raises(InputError, match="is not Keras's imdb"):
            open_dataset(path.parent)


def test_the_search_goes_from_the_named_to_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--data, HARNESS_DATA, own cache, Keras's cache, sample: in this order."""
    assert open_dataset().is_sample
    with pytest.raises(InputError, match="harness data fetch"):
        open_dataset(full=True)
    keras = write_npz(tmp_path / "keras" / "datasets")
    assert open_dataset().folder == keras
    fetched = fetch(keras).folder
    assert open_dataset().folder == fetched
    named = write_npz(tmp_path / "named")
    monkeypatch.setenv("HARNESS_DATA", str(named))
    assert open_dataset().folder == named
    assert fetch().folder == named
    given = write_npz(tmp_path / "given")
    assert open_dataset(given).folder == given


def test_a_download_that_is_no_http_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a proxy may answer; without a traceback."""
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        origin = f"http://127.0.0.1:{server.getsockname()[1]}/"
        monkeypatch.setattr("harness.data.sources.ORIGIN", origin)

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.sendall(b"junk\r\n" + connection.recv(10_000)[:0])

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RunError, match=r"no download of .*npz \(junk"):
            fetch()
        thread.join()


def test_a_download_of_another_content_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything of it is read."""
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(b"other"))
    monkeypatch.setattr("harness.data.sources.read_npz", lambda _: pytest.fail("was read"))
    with pytest.raises(RunError, match=r"imdb\.npz has another sha256"):
        fetch()


def test_a_named_folder_is_never_passed_over(tmp_path: Path) -> None:
    """A typo in --data is refused, though other data would be at hand."""
    write_npz(tmp_path / "keras" / "datasets")
    with pytest.raises(InputError, match="is no folder"):
        open_dataset(tmp_path / "typo")
    with pytest.raises(InputError, match="holds neither"):
        open_dataset(tmp_path)


def test_a_stored_dataset_is_whole_or_refused(tmp_path: Path) -> None:
    """It opens as what was put in; a second time nothing is written; a cut file is named."""
    folder = tmp_path / "a folder" / "imdb"
    assert save_folder(small(), folder)
    copy = open_folder(folder)
    assert (copy.checksum, list(copy.vocab)) == (small().checksum, WORDS)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not save_folder(small(), folder)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    tokens = folder / "train_tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(RunError, match=r"train_tokens\.npy has"):
        open_folder(folder)
    assert save_folder(small(), folder)  # made again
    content = bytearray(tokens.read_bytes())
    content[-4] ^= 1
    tokens.write_bytes(content)
    assert save_folder(small(), folder)  # the right size is not enough
    assert open_folder(folder).checksum == small().checksum
    assert [path.name for path in folder.parent.iterdir()] == ["imdb"]


def test_a_failed_write_is_no_copy_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other data in the folder stay, and the failure is told."""
    other = make_dataset(small().test, small().train, WORDS)
    save_folder(other, tmp_path / "imdb")

    def full(dataset: Dataset, folder: Path) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("harness.data.dataset_folder.fill_folder", full)
    with pytest.raises(RunError, match="imdb: can't be written: Disk quota exceeded"):
        save_folder(small(), tmp_path / "imdb")
    assert open_folder(tmp_path / "imdb").checksum == other.checksum


def test_verify_sees_a_changed_byte(tmp_path: Path) -> None:
    """A flipped token of the same length is found by the checksum."""
    save_folder(small(), tmp_path / "imdb")
    path = tmp_path / "imdb" / "test_tokens.npy"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="checksum"):
        open_folder(tmp_path / "imdb")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's folder")
def test_a_folder_of_another_user_is_not_written(tmp_path: Path) -> None:
    """On a disk that others share, one that its owner could change later is refused."""
    folder = tmp_path / "imdb"
    save_folder(small(), folder)
    os.chown(folder, 65534, 65534)
    with pytest.raises(InputError, match="belongs to nobody"):
        save_folder(small(), folder)


def test_another_folder_is_never_overwritten(tmp_path: Path) -> None:
    """A folder that holds something else is refused, and stays as it is."""
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        save_folder(small(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    with pytest.raises(RunError, match="/proc/imdb"):
        save_folder(small(), Path("/proc/imdb"))


def test_the_raw_review_folder_gives_the_same_content(tmp_path: Path) -> None:
    """aclImdb/ read by the tokenizer's rule gives what the archive holds, to the token."""
    raw = tmp_path / "aclImdb"
    halves = {"train": (TRAIN[:2], TRAIN[2:]), "test": (TEST[:1], TEST[1:])}
    for name, (positive, negative) in halves.items():
        for kind, reviews in (("pos", positive), ("neg", negative)):
            (raw / name / kind).mkdir(parents=True)
            for i, review in enumerate(reviews):
                text = ", ".join(WORDS[rank - 1].upper() for rank in review) + " <qwertzu />!"
                (raw / name / kind / f"{i}_7.txt").write_text(text)
    assert fetch(raw).checksum == small().checksum
    (raw / "test" / "neg" / "0_7.txt").unlink()
    (raw / "test" / "neg" / "1_7.txt").unlink()
    with pytest.raises(InputError, match=r"holds no test/neg"):
        fetch(raw)


def test_raw_text_is_encoded_as_the_training_data() -> None:
    """The notebook's example comes out shifted by 3, with a start, and unknown words as 2."""
    sample = open_sample()
    ranks = {word: rank for rank, word in enumerate(sample.vocab, 1)}
    assert encode_text("An excellent movie!", ranks, 8000) == [1, 35, 321, 20]
    assert encode_text("An\texcellent qwertzu-movie", ranks, 8000) == [1, 35, 321, 2, 20]
    assert encode_text("An excellent movie!", ranks, 40) == [1, 35, 2, 20]
    assert tokenize("Don't  É (WATCH)\n`this`") == ["don't", "É", "watch", "this"]


def test_the_sample_is_what_its_maker_makes(tmp_path: Path) -> None:
    """5,000 and 2,000 balanced reviews and all words, whose checksum holds; made byte by byte."""
    sample = open_sample()
    assert (len(sample.train), len(sample.test), len(sample.vocab)) == (5000, 2000, 88_584)
    for split in (sample.train, sample.test):
        assert 0.45 < split.labels.mean() < 0.55
    assert content_checksum(sample.train, sample.test, sample.vocab) == sample.checksum
    make_sample(sample, tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == SAMPLE.read_bytes()
    with zipfile.ZipFile(SAMPLE) as archive:
        for name in archive.namelist():
            np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)


@pytest.mark.full
def test_the_sample_names_itself_in_the_records(finished: tuple[Harness, Path]) -> None:
    """In a run's record and in its scores; `tests/cli/test_cli.py` has what the command prints."""
    _, run = finished
    result = json.loads((run / "result.json").read_text())
    assert result["is_sample"]
    assert "SAMPLE" in result["data"]
    assert json.loads((run / "provenance.json").read_text())["dataset"]["is_sample"]


FULL = os.environ.get("HARNESS_DATA_FOR_TESTS")


@pytest.mark.skipif(not FULL, reason="HARNESS_DATA_FOR_TESTS=DIR names no folder of Keras's files")
def test_the_full_data_is_the_official_one() -> None:
    """Keras's own files convert to the published checksums, and the sample is their beginning."""
    assert FULL
    dataset = open_dataset(Path(FULL))
    assert dataset.official
    sample = open_sample()
    np.testing.assert_array_equal(sample.train.tokens, dataset.train.take(5000).tokens)
    np.testing.assert_array_equal(sample.test.tokens, dataset.test.take(2000).tokens)
    assert list(sample.vocab) == list(dataset.vocab)
