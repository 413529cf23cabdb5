"""The folders that may contain IMDB. This module does not import NumPy, so it loads fast."""

import os
from pathlib import Path

from harness.system.files import cache_folder, is_file

NPZ = "imdb.npz"  # the name of Keras's file


def missing_in() -> list[Path]:
    """Return the folders that a run searches for IMDB, or nothing if one of them contains IMDB."""
    named = named_folder()
    folders = [named] if named else unnamed_folders()
    return [] if any(map(holds_dataset, folders)) else folders


def named_folder() -> Path | None:
    """Return the folder that the variable HARNESS_DATA names; None if the variable is unset."""
    named = os.environ.get("HARNESS_DATA")
    return Path(named) if named else None


def unnamed_folders() -> list[Path]:
    """Return the folders to search if HARNESS_DATA is unset: the user's cache, Keras's cache."""
    keras = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    return [fetched_folder(), keras / "datasets"]


def fetched_folder() -> Path:
    """Return the folder in the user's cache where `harness data fetch` stores IMDB."""
    return cache_folder() / "imdb"


def holds_dataset(folder: Path) -> bool:
    """Whether a folder contains `dataset.json` or `imdb.npz`; their content is not checked."""
    return is_dataset_folder(folder) or is_file(folder / NPZ)


def is_dataset_folder(folder: Path) -> bool:
    """Whether a folder contains a `dataset.json`, the record of a stored dataset."""
    return is_file(folder / "dataset.json")
