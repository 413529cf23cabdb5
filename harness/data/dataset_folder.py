"""The folder that stores a dataset as flat arrays.

Whoever can write to such a folder could plant other reviews under a genuine record, and a disk may
flip a bit. So all bytes are hashed whenever it is opened: 46 MB of IMDB take 0.03 s.
"""

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.dataset import (
    ARRAYS,
    SPLITS,
    Dataset,
    Split,
    content_checksum,
    vocab_from_bytes,
    vocab_to_bytes,
)
from harness.data.locations import is_dataset_folder
from harness.errors import DiskError, InputError, RunError
from harness.system.files import (
    atomic_directory,
    cache_folder,
    distrust,
    owner_name,
    raise_unless_missing,
    remove_leftovers,
    replaced_directory,
    scratch_directory,
    turn_at,
)
from harness.system.site_settings import not_sourced

FORMAT = 1
RECORD = "dataset.json"
OWNERS = "HARNESS_DATA_OWNERS"
PRIVATE = 0o700  # the mode of a cache: nobody else may read a user's texts


def save_folder(dataset: Dataset, folder: Path) -> bool:
    """Store a dataset as flat arrays in a folder, which is complete or absent.

    Args:
        folder: a new or an empty one, or an earlier copy.

    Returns:
        Whether it was written; a good copy of the same content is left as it is.

    Raises:
        InputError: if the folder holds something else, or is a link or another user's.
        RunError: if the disk refuses or is too full.
    """
    there = os.path.lexists(folder)
    if there:
        # On a shared disk its owner could change it after the check.
        if folder.is_symlink():
            raise InputError(f"{folder}: is a link; remove it, or give a folder of your own")
        if folder.stat().st_uid != os.getuid():
            owner = owner_name(folder.stat().st_uid)
            raise InputError(f"{folder}: belongs to {owner}; give a folder of your own")
        if is_dataset_folder(folder):
            # One that is broken, or that others could write to, is made again.
            known = open_if_whole(folder)
            if known and known.checksum == dataset.checksum:
                return False
        elif not folder.is_dir() or any(folder.iterdir()):
            raise InputError(f"{folder}: holds something else; give a new or an empty folder")
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _new_folder(folder, None, (lambda _: None) if there else None) as temporary:
            fill_folder(dataset, temporary)
    except OSError as error:
        # Renaming fails if another process was faster; then its copy stays.
        if (other := open_if_whole(folder)) and other.checksum == dataset.checksum:
            return False
        raise RunError(f"{folder}: can't be written: {error.strerror or error}") from None
    return True


@contextlib.contextmanager
def _new_folder(
    target: Path, mode: int | None, check: Callable[[Path], None] | None
) -> Iterator[Path]:
    """Like `atomic_directory`, with these modes; until it is complete only this user can look in.

    With a umask of 002, as for users who share a group, `open_folder` would refuse the folder.
    With a check one that is there is replaced, as `replaced_directory` does.
    """
    made = replaced_directory(target, check) if check else atomic_directory(target)
    with made as temporary:
        own = temporary.stat().st_mode
        temporary.chmod(own & 0o7700)  # keeps the group that the folder gives to its files
        yield temporary
        _protect(temporary, own & 0o7755 if mode is None else mode)


def _protect(folder: Path, mode: int) -> None:
    for path in folder.iterdir():
        path.chmod(mode & 0o666)
    folder.chmod(mode)


def fill_folder(dataset: Dataset, folder: Path) -> None:
    """Write a dataset into an empty folder.

    Raises:
        OSError: if the disk refuses.
    """
    for name, split in dataset.splits().items():
        for array, dtype in ARRAYS.items():
            np.save(
                _array_path(folder, name, array), getattr(split, array).astype(dtype, copy=False)
            )
    (folder / "words.txt").write_bytes(vocab_to_bytes(dataset.vocab))
    record = {
        "format": FORMAT,
        "checksum": dataset.checksum,
        "is_sample": dataset.is_sample,
        "note": dataset.note if dataset.is_own else "",  # otherwise it is about this start only
        "classes": dataset.classes,
        "num_validation": dataset.num_validation,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _array_path(folder: Path, split: str, array: str) -> Path:
    return folder / f"{split}_{array}.npy"


def open_folder(folder: Path) -> Dataset:
    """Open a dataset stored as flat arrays, which are mapped; its checksum is computed.

    Raises:
        InputError: if an untrusted user could have changed it.
        DiskError: if the disk fails; the folder may still be good.
        RunError: if a file is missing, truncated, of another format or of another content.
    """
    try:
        check_owners(folder, [folder, *folder.iterdir()])
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
        for name, size in record["bytes"].items():
            found = (folder / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} bytes, should have {size}")
        train, test = (
            Split(*(np.load(_array_path(folder, name, a), mmap_mode="r") for a in ARRAYS))
            for name in SPLITS
        )
        vocab = vocab_from_bytes((folder / "words.txt").read_bytes())
        num_validation = record["num_validation"]
        checksum = content_checksum(train, test, vocab, num_validation=num_validation)
        if checksum != record["checksum"]:
            raise ValueError("its content does not have the checksum of its record")
        return Dataset(
            train,
            test,
            vocab,
            checksum=checksum,
            is_sample=record["is_sample"],
            folder=folder,
            note=record.get("note", ""),
            classes=tuple(record["classes"]),
            num_validation=num_validation,
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError):
            raise_unless_missing(error, folder)
        raise RunError(
            f"dataset {folder}: is broken ({error}); remove it and run harness data fetch"
        ) from None


def check_owners(folder: Path, paths: Iterable[Path]) -> None:
    """Refuse data that somebody could have changed without the trust of user or site.

    Raises:
        InputError: for the first such path.
        OSError: if one is not there.
    """
    owners = os.environ.get(OWNERS, "").replace(",", " ").split()
    for path in paths:
        if reason := distrust(path, owners):
            remedy = (
                f"chmod go-w {shlex.quote(str(path))}"
                if "write" in reason
                else "use data of your own (harness data fetch), or, if they can be trusted, have "
                f"your site name the owner: export {OWNERS}=… in slurm/site.sh"
            )
            if hint := not_sourced([OWNERS]):
                remedy += f" ({hint})"
            raise InputError(f"dataset {folder}: {path.name} {reason}; {remedy}")


def cached_dataset(name: str, fill: Callable[[Path], None]) -> Dataset:
    """A dataset from the user's cache; if it is not there, broken or planted, it is made there.

    One process makes it while others wait. If the cache can't be written, every start makes the
    dataset again, in a temporary folder.

    Args:
        name: of the folder in the cache.
        fill: makes the dataset in an empty folder.

    Raises:
        InputError, RunError: as `fill` does, or if no disk takes it.
    """
    cached = cache_folder() / name
    if (dataset := open_if_whole(cached)) is not None:
        return dataset
    with turn_at(cached) as alone:
        if (dataset := open_if_whole(cached)) is not None:
            return dataset
        try:
            if alone:
                remove_leftovers(cached)
            check = None if cached.is_symlink() else _check_not_whole
            with _new_folder(cached, PRIVATE, check) as temporary:
                fill(temporary)
            return open_folder(cached)
        except OSError as error:
            if (dataset := open_if_whole(cached)) is None:  # else another process was faster
                return _made_elsewhere(fill, error)
            return dataset


def _check_not_whole(folder: Path) -> None:
    """Raise if another process has made the dataset meanwhile, which a run may read by now."""
    if open_if_whole(folder) is not None:
        raise FileExistsError(f"{folder} is there by now")


def open_if_whole(folder: Path) -> Dataset | None:
    """The dataset of a folder; None if it is not there, broken, or others could have changed it.

    Raises:
        DiskError: if the disk fails; the folder may still be good.
    """
    if is_dataset_folder(folder):
        try:
            return open_folder(folder)
        except DiskError:
            raise
        except (RunError, InputError):
            pass
    return None


def _made_elsewhere(fill: Callable[[Path], None], refusal: OSError) -> Dataset:
    """A dataset in a temporary folder, which is removed at once; mapped arrays stay readable."""
    try:
        with scratch_directory() as folder:
            fill(folder)
            _protect(folder, PRIVATE)
            return open_folder(folder)
    except OSError as error:
        raise RunError(
            f"{cache_folder()}: can't be written ({refusal.strerror or refusal}), nor can "
            f"{error.filename or 'TMPDIR'} ({error.strerror or error}); free space there, or set "
            "XDG_CACHE_HOME to a disk with space"
        ) from None
