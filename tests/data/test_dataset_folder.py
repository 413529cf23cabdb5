"""The folder of a dataset when several processes use it at once, or when its disk fails."""

import contextlib
import errno
import os
from pathlib import Path

import pytest

from harness.data.dataset_folder import cached_dataset, fill_folder, open_folder, save_folder
from harness.data.locations import fetched_folder
from harness.data.sources import fetch, make_dataset
from harness.errors import DiskError, RunError
from tests.data.small_imdb import WORDS, small

OTHER = make_dataset(small().test, small().train, small().vocab)


def fill(folder: Path) -> None:
    fill_folder(small(), folder)


def test_of_two_that_make_one_cache_the_first_stays(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first copy may already be in use. It stays even on a disk without locks."""
    no_locks = contextlib.nullcontext()
    monkeypatch.setattr("harness.data.dataset_folder.turn_at", lambda _: no_locks)
    inodes = []

    def slow_fill(folder: Path) -> None:
        cached_dataset("texts", fill)
        inodes.append((cache / "texts").stat().st_ino)
        fill(folder)

    for _ in range(2):
        cached_dataset("texts", slow_fill)
        assert (cache / "texts").stat().st_ino == inodes[-1]
        (cache / "texts/words.txt").unlink()
    assert len(inodes) == 2
    assert [path.name for path in cache.iterdir() if path.name.endswith(".tmp")] == []


def test_a_copy_with_an_empty_file_is_made_again(cache: Path) -> None:
    """After a power cut a file may be empty."""
    cached_dataset("texts", fill)
    arrays = sorted((cache / "texts").glob("*.npy"))
    for path in arrays:
        path.write_bytes(b"")
        assert cached_dataset("texts", fill).checksum == small().checksum
    assert len(arrays) == 6


def test_copies_of_killed_processes_are_removed_after_a_day(cache: Path) -> None:
    """A copy may be as large as the dataset. A newer one may still be written on another node."""
    for name in (".old.tmp", ".new.tmp", ".other"):
        (cache / name).mkdir(parents=True)
        (cache / name / "tokens.npy").touch()
    for name in (".old.tmp", ".other"):
        os.utime(cache / name, (1, 1))
    cached_dataset("texts", fill)
    assert {".new.tmp", ".other"} == {path.name for path in cache.glob(".*") if path.is_dir()}


def test_a_copy_is_kept_if_its_disk_fails(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs may read the copy, so it is not replaced, and no message says to remove it."""
    cached_dataset("texts", fill)

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("harness.data.dataset_folder.np.load", fails)
        for attempt in (
            lambda: cached_dataset("texts", lambda _: pytest.fail("was made")),
            lambda: save_folder(OTHER, cache / "texts"),
        ):
            with pytest.raises(DiskError, match="texts: can't be read: Stale file handle; try"):
                attempt()
    assert open_folder(cache / "texts").checksum == small().checksum


@pytest.mark.parametrize("end", [b"", b"\x07\x00\x00\x00"])
def test_a_broken_copy_is_fetched_anew(monkeypatch: pytest.MonkeyPatch, end: bytes) -> None:
    """A copy that lacks a word or has another word is refused. A whole copy is not replaced."""
    monkeypatch.setattr("harness.data.sources._download", small)
    folder = fetch().folder
    assert folder == fetched_folder()
    tokens = folder / "train_tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-4] + end)
    with pytest.raises(RunError, match="is broken .*checksum" if end else "is broken"):
        open_folder(folder)
    again = fetch()
    assert (again.checksum, list(again.vocab)) == (small().checksum, WORDS)
    inode = folder.stat().st_ino
    save_folder(small(), folder)
    assert fetch().checksum == small().checksum
    assert folder.stat().st_ino == inode
    assert not list(folder.parent.glob("*.tmp"))
