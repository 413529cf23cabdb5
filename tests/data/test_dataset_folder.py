"""The folder of a dataset when several processes use it at once, or when its disk fails."""

import contextlib
import errno
from pathlib import Path

import pytest

from harness.data.dataset_folder import cached_dataset, fill_folder, open_folder, save_folder
from harness.data.locations import fetched_folder
from harness.data.sources import fetch, make_dataset
from harness.errors import DiskError, RunError
from tests.data.small_imdb import small

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


def test_a_flipped_byte_is_fetched_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has the right size, but the checksum is wrong."""
    folder = fetched_folder()
    monkeypatch.setattr("harness.data.sources._download", small)
    save_folder(small(), folder)
    assert fetch().folder == folder
    tokens = folder / "train_tokens.npy"
    content = bytearray(tokens.read_bytes())
    content[-4] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(RunError, match="checksum"):
        open_folder(folder)
    assert fetch().checksum == small().checksum
    inode = folder.stat().st_ino
    assert fetch().checksum == small().checksum
    assert folder.stat().st_ino == inode
