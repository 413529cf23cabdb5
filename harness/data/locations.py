"""The folders in which IMDB may be. Commands without NumPy import this module."""

import os
from pathlib import Path

from harness.system.files import cache_folder, is_file

NPZ = "imdb.npz"  # of Keras


def missing_in() -> list[Path]:
    """The folders that `open_dataset` searches, or no folders if one of them has a dataset."""
    named = named_folder()
    folders = [named] if named else unnamed_folders()
    return [] if any(map(holds_dataset, folders)) else folders


def named_folder() -> Path | None:
    """The folder in HARNESS_DATA, which is used or refused, never skipped."""
    named = os.environ.get("HARNESS_DATA")
    return Path(named) if named else None


def unnamed_folders() -> list[Path]:
    """The folders to search without a named one, in order: the user's cache, Keras's cache."""
    keras = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    return [fetched_folder(), keras / "datasets"]


def fetched_folder() -> Path:
    """The folder of `harness data fetch`, in the user's cache."""
    return cache_folder() / "imdb"


def holds_dataset(folder: Path) -> bool:
    """Whether a folder has the name of a stored dataset or of Keras's file, by name alone."""
    return is_dataset_folder(folder) or is_file(folder / NPZ)


def is_dataset_folder(folder: Path) -> bool:
    """Whether a folder has a file with the name of a stored dataset's record."""
    return is_file(folder / "dataset.json")
