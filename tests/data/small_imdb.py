"""An imdb.npz of a few short reviews, and its dataset."""

from pathlib import Path

import numpy as np

from harness.data.dataset import Dataset, make_split
from harness.data.locations import NPZ
from harness.data.sources import make_dataset, open_sample

WORDS = list(open_sample().vocab)
TRAIN = [[1, 2, 3, 4], [2, 5], [1, 1, 6], [4]]
TEST = [[3, 3], [5, 4, 3, 2, 1], [6]]


def small() -> Dataset:
    return make_dataset(make_split(TRAIN, [1, 1, 0, 0]), make_split(TEST, [1, 0, 0]), WORDS)


def write_npz(folder: Path, **changed: object) -> Path:
    """Write an imdb.npz with pickled object arrays, like Keras's."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, object] = {
        "x_train": np.array(TRAIN, dtype=object),
        "y_train": np.array([1, 1, 0, 0]),
        "x_test": np.array(TEST, dtype=object),
        "y_test": np.array([1, 0, 0]),
    }
    np.savez(folder / NPZ, **(arrays | changed))  # type: ignore[arg-type]
    return folder
