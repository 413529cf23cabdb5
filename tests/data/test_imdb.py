"""IMDB has Keras's order and encoding from every source, and no file can run code."""

import dataclasses
import hashlib
import http.client
import io
import itertools
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from harness.cli.site import fetch as fetch_command
from harness.data.dataset import Dataset, content_checksum
from harness.data.dataset_folder import save_folder
from harness.data.locations import NPZ, fetched_folder, missing_in
from harness.data.sources import (
    SAMPLE,
    fetch,
    open_data,
    open_dataset,
    open_sample,
    reopen_data,
)
from harness.data.vocabulary import encode_split, encode_text, tokenize
from harness.errors import DiskError, InputError, RunError
from harness.job.job_file import load_job
from harness.system.files import cache_folder
from tests.conftest import JOBS
from tests.data.packaged_sample import make_sample
from tests.data.small_imdb import TEST, TRAIN, WORDS, small, write_npz
from tests.report.small_data import small_data

pytestmark = pytest.mark.usefixtures("genuine")


@pytest.mark.parametrize("vocab_size", [6, 8, 100])
def test_order_and_encoding_equal_load_data(tmp_path: Path, vocab_size: int) -> None:
    """Reviews are shuffled and encoded as by Keras's load_data."""
    dataset = open_dataset(write_npz(tmp_path / "data"))
    generator = np.random.RandomState(113)
    for split, reviews, labels in (
        (dataset.train, TRAIN, [1, 1, 0, 0]),
        (dataset.test, TEST, [1, 0, 0]),
    ):
        order = np.arange(len(reviews))
        generator.shuffle(order)
        tokens, offsets = encode_split(split, vocab_size)
        assert [tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [
            [1] + [word + 3 if word + 3 < vocab_size else 2 for word in reviews[i]] for i in order
        ]
        assert split.labels.tolist() == [labels[i] for i in order]
    assert not dataset.official


def test_without_a_cache_the_file_is_unpacked_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some sites mount home folders read-only on compute nodes."""
    folder = write_npz(tmp_path / "data")
    (tmp_path / "file").touch()
    expected = open_dataset(folder).checksum
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_dataset(folder).checksum == expected


def test_after_the_first_conversion_nothing_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second `open_dataset` memory-maps the stored arrays."""
    folder = write_npz(tmp_path / "data")
    first = open_dataset(folder)
    monkeypatch.setattr("harness.data.sources.read_npz", None)
    second = open_dataset(folder)
    assert second.checksum == first.checksum
    assert isinstance(second.train.tokens, np.memmap)
    assert [path.name for path in folder.iterdir()] == [NPZ]


class Hostile:
    """An object that runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_another_npz_is_refused_before_anything_is_unpickled(tmp_path: Path) -> None:
    """The message names `harness data fetch` and data.source; no code of the file runs."""
    mark = tmp_path / "was-run"
    folder = write_npz(tmp_path / "data", x_train=np.array([Hostile(mark)], dtype=object))
    says = r"data/imdb\.npz: is not Keras's .* run harness data fetch; .* data\.source$"
    with pytest.raises(InputError, match=says):
        open_dataset(folder)
    assert not mark.exists()
    with np.load(folder / NPZ, allow_pickle=True) as trusting:  # unpickling would run the code
        _ = trusting["x_train"]
    assert mark.exists()


def test_the_genuine_arrays_are_read_from_any_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive may have another checksum, but every array must have its genuine checksum.

    Nothing else in the file is unpickled.
    """
    path = write_npz(tmp_path / "data") / NPZ
    with zipfile.ZipFile(path) as archive:
        members = {Path(name).stem: archive.read(name) for name in archive.namelist()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    monkeypatch.setattr("harness.data.sources.SAVED_ANEW", digests)
    checksum = open_dataset(path.parent).checksum
    with np.load(path, allow_pickle=True) as arrays:
        np.savez_compressed(path, **dict(arrays))
    assert open_dataset(path.parent).checksum == checksum == small().checksum
    genuine, mark = path.read_bytes(), tmp_path / "was-run"
    hostile = io.BytesIO()
    np.save(hostile, np.array([Hostile(mark)], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train", hostile.getvalue())
    with_member = path.read_bytes()
    for content in (with_member, pickle.dumps(Hostile(mark)) + genuine):
        path.write_bytes(content)
        assert open_dataset(path.parent).checksum == checksum
        assert not mark.exists()
    path.write_bytes(genuine[:-100])
    with pytest.raises(InputError, match="is not Keras's imdb"):
        open_dataset(path.parent)
    for name in digests:
        write_npz(path.parent, **{name: np.array([])})
        with pytest.raises(InputError, match="is not Keras's imdb"):
            open_dataset(path.parent)


def test_folders_are_searched_in_order(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is --data, HARNESS_DATA, the user's cache, Keras's cache, the sample.

    `missing_in` names the folders that a run would search, if none contains data.
    """
    assert cache_folder() == cache
    assert open_dataset().is_sample
    with pytest.raises(InputError, match="harness data fetch"):
        open_dataset(full=True)
    keras = tmp_path / "keras" / "datasets"
    assert missing_in() == [cache / "imdb", keras]
    write_npz(keras)
    assert (open_dataset().folder, missing_in()) == (keras, [])
    fetched = fetch(keras).folder
    assert open_dataset().folder == fetched
    (keras / NPZ).unlink()
    assert missing_in() == []
    named = tmp_path / "named"
    monkeypatch.setenv("HARNESS_DATA", str(named))
    assert missing_in() == [named]
    write_npz(named)
    assert (open_dataset().folder, missing_in()) == (named, [])
    assert fetch().folder == named
    given = write_npz(tmp_path / "given")
    assert open_dataset(given).folder == given


def test_an_unreadable_folder_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a folder that the user names must be readable. Keras's folder is in the home folder."""
    dataset = small_data(tmp_path / ".keras/datasets")
    closed = tmp_path / ("x" * 300)
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(closed))
    assert missing_in() == []
    assert open_dataset(full=True).checksum == dataset.checksum
    with pytest.raises(InputError, match="x: is no folder that you can read"):
        open_dataset(closed)


@pytest.mark.parametrize("was", ["gone", "emptied", "x" * 300])
def test_a_resumed_run_searches_data_that_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str
) -> None:
    """The resumed run searches the same folders as a new run; other data are refused."""
    before = tmp_path / was
    if was == "emptied":
        before.mkdir()
    dataset = small_data(tmp_path / "moved")
    job, record = load_job(JOBS / "lstm.toml"), {"folder": str(before)}
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "moved"))
    known = record | {"checksum": dataset.checksum}
    assert reopen_data(known, job, None, whose="run r").folder == tmp_path / "moved"
    with pytest.raises(InputError, match="run r: began with other data"):
        reopen_data({**record, "checksum": "other"}, job, None, whose="run r")


def test_a_bad_download_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error states the reason. A file with a wrong checksum is not read."""
    answer = mock.Mock(side_effect=[http.client.BadStatusLine("junk"), io.BytesIO(b"other")])
    monkeypatch.setattr("urllib.request.urlopen", answer)
    monkeypatch.setattr("harness.data.sources.read_npz", lambda *_: pytest.fail("was read"))
    for said in (r"npz failed \(junk.*on a machine with a network", r"npz has an unexpected sha"):
        with pytest.raises(RunError, match=said):
            fetch()


def test_only_one_process_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other processes wait, and open the dataset that the first process stored."""
    downloads = []

    def download() -> Dataset:
        downloads.append(1)
        time.sleep(0.2)
        return small()

    monkeypatch.setattr("harness.data.sources._download", download)
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(fetch).result for _ in range(2)]
        assert [each().checksum for each in found] == [small().checksum] * 2
    assert downloads == [1]


def test_fetch_warns_that_runs_read_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command downloads the data if the named folder has none, and opens them otherwise."""
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("harness.data.sources._download", small)
    fetch_command()
    assert f"{tmp_path}/data: runs read this folder, not {tmp_path}/" in capsys.readouterr().err
    write_npz(tmp_path / "data")
    fetch_command()
    assert capsys.readouterr().err == ""


def test_full_refuses_a_stored_sample(tmp_path: Path) -> None:
    """Without --full, a run trains on the stored sample."""
    sample = dataclasses.replace(small(), is_sample=True)
    save_folder(sample, tmp_path / "sample")
    job = load_job(JOBS / "lstm.toml")
    assert open_data(job, tmp_path / "sample").is_sample
    with pytest.raises(InputError, match=r"^--full: .*sample contains the SAMPLE of IMDB; choose"):
        open_data(job, tmp_path / "sample", full=True)


def test_a_named_folder_is_never_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typo in --data or HARNESS_DATA is refused, even if other folders have the data."""
    write_npz(tmp_path / "keras" / "datasets")
    for folder, said in ((tmp_path / "typo", "is no folder"), (tmp_path, "contains neither imdb")):
        with pytest.raises(InputError, match=f"--data .*: {said}"):
            open_dataset(folder)
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "typo"))
    with pytest.raises(InputError, match="; choose another folder, or unset HARNESS_DATA"):
        open_dataset()
    for name in ("typo", "x" * 300):
        with pytest.raises(InputError, match=r"--from .* choose another folder"):
            fetch(tmp_path / name)


def test_other_files_are_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with other files is refused; `fetch` opens an imdb.npz in the cache."""
    with pytest.raises(InputError, match="contains files, but no dataset; move"):
        save_folder(small(), write_npz(tmp_path / "mine"))
    folder = write_npz(fetched_folder())
    assert fetch().folder == folder
    assert [path.name for path in folder.iterdir()] == [NPZ]
    (folder / NPZ).rename(folder / "mine")
    monkeypatch.setattr("harness.data.sources._download", small)
    with pytest.raises(InputError, match="contains files, but no dataset; move"):
        fetch()
    assert [path.name for path in folder.iterdir()] == ["mine"]
    with pytest.raises(DiskError, match="/proc/imdb: can't be written"):
        save_folder(small(), Path("/proc/imdb"))


def test_the_raw_review_folder_gives_the_same_content(tmp_path: Path) -> None:
    """aclImdb/ gives the same tokens as imdb.npz."""
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
    with pytest.raises(InputError, match=r"contains no test/neg"):
        fetch(raw)


def test_raw_text_is_encoded_as_the_training_data() -> None:
    """Tokens are 1 for the start, the rank plus 3 for a word, and 2 for an unknown word."""
    sample = open_sample()
    ranks = {word: rank for rank, word in enumerate(sample.vocab, 1)}
    assert encode_text("An excellent movie!", ranks, 8000) == [1, 35, 321, 20]
    assert encode_text("An\texcellent qwertzu-movie", ranks, 8000) == [1, 35, 321, 2, 20]
    assert encode_text("An excellent movie!", ranks, 40) == [1, 35, 2, 20]
    assert tokenize("Don't  É (WATCH)\n`this`") == ["don't", "É", "watch", "this"]


def test_the_sample_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample has 5,000 training and 2,000 test reviews; `make_sample` writes the same bytes.

    A changed sample is refused.
    """
    sample = open_sample()
    assert (len(sample.train), len(sample.test), len(sample.vocab)) == (5000, 2000, 88_584)
    for split in (sample.train, sample.test):
        assert 0.45 < split.labels.mean() < 0.55
    assert content_checksum(sample.train, sample.test, sample.vocab) == sample.checksum
    again = tmp_path / "again.npz"
    make_sample(sample, again)
    assert again.read_bytes() == SAMPLE.read_bytes()
    with np.load(again) as archive:
        arrays = dict(archive)
    arrays["test_labels"][0] ^= 1
    np.savez_compressed(again, **arrays)
    monkeypatch.setattr("harness.data.sources.SAMPLE", again)
    with pytest.raises(RunError, match=r"again\.npz: is broken"):
        open_sample()


FULL = os.environ.get("HARNESS_DATA_FOR_TESTS")


@pytest.mark.skipif(not FULL, reason="HARNESS_DATA_FOR_TESTS=DIR names no folder of Keras's files")
def test_the_full_data_is_the_official_one() -> None:
    """Keras's file has the official checksum, and the sample consists of its first reviews."""
    assert FULL
    dataset = open_dataset(Path(FULL))
    assert dataset.official
    sample = open_sample()
    np.testing.assert_array_equal(sample.train.tokens, dataset.train.take(5000).tokens)
    np.testing.assert_array_equal(sample.test.tokens, dataset.test.take(2000).tokens)
    assert list(sample.vocab) == list(dataset.vocab)
