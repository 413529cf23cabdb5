"""The folders in which a dataset may be; looking there needs no NumPy."""

import os
from pathlib import Path

from harness.system.files import cache_folder, is_file

NPZ = "imdb.npz"  # of Keras


def missing_in() -> list[Path]:
    """The folders that `open_dataset` would search before a download, if none has the dataset.

    Empty if one of them has it. Nothing is read or downloaded.
    """
    named = named_folder()
    folders = [named] if named else unnamed_folders()
    return [] if any(map(holds_dataset, folders)) else folders


def named_folder() -> Path | None:
    """The folder that HARNESS_DATA names, which is used or refused, never skipped."""
    named = os.environ.get("HARNESS_DATA")
    return Path(named) if named else None


def unnamed_folders() -> list[Path]:
    """The folders searched if none is named, in order: the user's cache, Keras's cache."""
    return [fetched_folder(), keras_folder()]


def keras_folder() -> Path:
    """The folder of Keras's downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "datasets"


def fetched_folder() -> Path:
    """The folder in the user's cache that `harness data fetch` fills."""
    return cache_folder() / "imdb"


def holds_dataset(folder: Path) -> bool:
    """Whether a folder claims to hold a dataset: as flat arrays, or as Keras's file."""
    return is_dataset_folder(folder) or is_file(folder / NPZ)


def is_dataset_folder(folder: Path) -> bool:
    """Whether a folder claims to hold a dataset as flat arrays."""
    return is_file(folder / "dataset.json")
