"""The folder that stores a dataset as NumPy arrays.

Opening a folder computes the checksum again, because a user or a disk error may have changed the
reviews. Computing the checksum of IMDB (46 MB) takes 0.03 s.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
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
from harness.system.console import quoted
from harness.system.files import (
    OTHERS_WRITE,
    atomic_directory,
    cache_folder,
    distrust,
    raise_unless_missing,
    remove_abandoned,
    replaced_directory,
    turn_at,
    write_refusal,
)

FORMAT = 1
RECORD = "dataset.json"
OWNERS = "HARNESS_DATA_OWNERS"
# The permissions of a dataset in the cache, and of a dataset that other users can read. Only
# the owner can write, because `open_folder` refuses a dataset that other users could change. The
# setgid bit gives new files the folder's group.
PRIVATE, READABLE = 0o2700, 0o2755


def save_folder(dataset: Dataset, folder: Path) -> None:
    """Store a dataset in a folder; replace another dataset if the folder contains one.

    The folder appears only after all its files are written.

    Raises:
        InputError: if the folder contains files, but no dataset.
        DiskError: if the folder can't be written.
    """

    def check(earlier: Path) -> None:
        if not is_dataset_folder(earlier) and earlier.exists() and any(earlier.iterdir()):
            raise InputError(f"{folder}: contains files, but no dataset; move the folder away")

    if (known := open_if_whole(folder)) and known.checksum == dataset.checksum:
        return
    try:
        with replaced_directory(folder, check) as temporary:
            fill_folder(dataset, temporary, READABLE)
    except OSError as error:
        raise DiskError(write_refusal(folder, error, "free up space on this disk")) from None


def fill_folder(dataset: Dataset, folder: Path, mode: int = PRIVATE) -> None:
    """Write a dataset into an empty folder, and only then let other users open the folder.

    Args:
        mode: the permissions of the folder and its files, before the umask is applied.

    Raises:
        OSError: if the folder can't be written.
    """
    allowed = folder.stat().st_mode & mode
    folder.chmod(allowed & PRIVATE)
    for name, split in dataset.splits().items():
        for array, dtype in ARRAYS.items():
            content = getattr(split, array).astype(dtype, copy=False)
            np.save(folder / f"{name}_{array}.npy", content)
    (folder / "words.txt").write_bytes(vocab_to_bytes(dataset.vocab))
    record = {
        "format": FORMAT,
        "checksum": dataset.checksum,
        "is_sample": dataset.is_sample,
        # The note of the packaged sample is not stored: the note says why the current command uses
        # the sample, and a later command may have another reason.
        "note": dataset.note if dataset.is_own else "",
        "classes": dataset.classes,
        "num_validation": dataset.num_validation,
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    for path in folder.iterdir():
        path.chmod(path.stat().st_mode & mode)
    folder.chmod(allowed)


def open_folder(folder: Path) -> Dataset:
    """Open a stored dataset with memory-mapped arrays, and verify its checksum.

    Raises:
        InputError: if an untrusted user could have changed the dataset.
        DiskError: if a file exists but can't be read; the dataset may be intact.
        RunError: if a file is missing or broken, or if the folder has the format of another version
            of the harness.
    """
    try:
        check_owners(folder, [folder, *folder.iterdir()])
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
        if record["format"] != FORMAT:
            raise ValueError(
                f"its format is {record['format']}, but this version of the harness reads format "
                f"{FORMAT}"
            )
        train, test = (
            Split(*(np.load(folder / f"{name}_{array}.npy", mmap_mode="r") for array in ARRAYS))
            for name in SPLITS
        )
        vocab = vocab_from_bytes((folder / "words.txt").read_bytes())
        num_validation = record["num_validation"]
        checksum = content_checksum(train, test, vocab, num_validation=num_validation)
        if checksum != record["checksum"]:
            raise ValueError(f"its checksum differs from the checksum in {RECORD}")
        return Dataset(
            train,
            test,
            vocab,
            checksum=checksum,
            is_sample=record["is_sample"],
            folder=folder,
            note=record["note"],
            classes=tuple(record["classes"]),
            num_validation=num_validation,
        )
    except InputError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError):
            raise_unless_missing(error, folder)
        raise RunError(
            f"dataset {folder}: is broken ({error}); remove it and run harness data fetch"
        ) from None


def check_owners(folder: Path, paths: Iterable[Path]) -> None:
    """Check that no untrusted user could have changed the folder or the files of a dataset.

    Raises:
        InputError: if an untrusted user could have changed one of the paths.
        OSError: if a path is missing.
    """
    owners = os.environ.get(OWNERS, "").replace(",", " ").split()
    for path in paths:
        if reason := distrust(path, owners):
            remedy = (
                f"if you trust the owner, write export {OWNERS}=<the owner's name> into "
                "slurm/site.sh and source that file; otherwise unset HARNESS_DATA and run harness "
                "data fetch"
            )
            if reason == OTHERS_WRITE:
                remedy = f"chmod -R go-w {quoted(folder)}"
            raise InputError(f"dataset {folder}: {path.name}: {reason}; {remedy}")


def cached_dataset(name: str, fill: Callable[[Path], None]) -> Dataset:
    """Open a dataset in the user's cache; make it first if it is missing or unusable.

    One process makes the dataset while other processes wait.

    Args:
        name: the name of the dataset's folder in the cache.
        fill: a function that writes the dataset into an empty folder.

    Raises:
        InputError, RunError: if `fill` raises one of these two errors.
        DiskError: if the cache can't be written.
    """
    cached = cache_folder() / name
    if dataset := open_if_whole(cached):
        return dataset
    with turn_at(cached):
        if dataset := open_if_whole(cached):
            return dataset
        shutil.rmtree(cached, ignore_errors=True)  # unusable, see `open_if_whole`
        remove_abandoned(cached.parent)
        try:
            with atomic_directory(cached) as temporary:
                fill(temporary)
        except OSError as error:
            # On a file system without locks, another process may have made the dataset in the
            # meantime. In this case, open that dataset.
            if not open_if_whole(cached):
                remedy = "free up disk space, or set XDG_CACHE_HOME to a folder on another disk"
                raise DiskError(write_refusal(cached, error, remedy)) from None
        return open_folder(cached)


def open_if_whole(folder: Path) -> Dataset | None:
    """Open a stored dataset; return None if the dataset is missing or unusable.

    A dataset is unusable if it is broken, or if an untrusted user could have changed it.

    Raises:
        DiskError: if a file exists but can't be read; the dataset may be intact.
    """
    try:
        return open_folder(folder) if is_dataset_folder(folder) else None
    except DiskError:
        raise
    except (RunError, InputError):
        return None
