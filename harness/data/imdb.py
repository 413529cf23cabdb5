"""IMDB as `keras.datasets.imdb.load_data` returns it: its order and its checksums.

`harness.data.imdb_sources` says where the reviews come from.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from harness.data.dataset import SPLITS, Dataset, Split, checksum_of, content_checksum

# sha256 of tokens and labels as little-endian int32, in the order of Keras's imdb.npz (sorted
# file names, positive reviews first), which identify any copy of the data.
OFFICIAL_TOKENS = {
    "train": "839f238f42e49ed32804afd9148bb93e9a84328e97603b7bcd0a830b148a4281",
    "test": "88455a6ba2a9e95ffeb943b563f338f13951733bc0c8fee0892a4f9f2d72f23c",
}
OFFICIAL_LABELS = dict.fromkeys(
    SPLITS, "3b063f583079366a61c169bb086d088e464210f8b6ac62279241f38b39603fbd"
)


def make_dataset(
    train: Split, test: Split, vocab: Sequence[str], *, folder: Path | None = None
) -> Dataset:
    """A dataset in the order of `load_data`, from splits in the order of the file."""
    official = _are_the_files({"train": train, "test": test})
    train_order, test_order = _load_data_orders(len(train), len(test))
    train, test = train.arranged(train_order), test.arranged(test_order)
    return Dataset(
        train, test, vocab, content_checksum(train, test, vocab), official, folder=folder
    )


def verify(dataset: Dataset) -> list[str]:
    """The problems of a dataset, found from all its bytes; empty if there are none."""
    problems = []
    if checksum_of(dataset) != dataset.checksum:
        problems.append(f"the content does not have the checksum {dataset.checksum} of its record")
    if dataset.official and not is_official(dataset.train, dataset.test):
        problems.append("the reviews are not the official ones")
    return problems


def is_official(train: Split, test: Split) -> bool:
    """Whether splits in the order of `load_data` are those of Keras's file, by all their bytes."""
    orders = _load_data_orders(len(train), len(test))
    for name, split, order in zip(SPLITS, (train, test), orders, strict=True):
        # Labels first: arranging the words would copy them all.
        if _sha256(split.labels[np.argsort(order)]) != OFFICIAL_LABELS[name]:
            return False
    return _are_the_files(in_the_files_order(train, test))


def in_the_files_order(train: Split, test: Split) -> dict[str, Split]:
    """The splits, by name, in the order of Keras's file instead of that of `load_data`."""
    orders = _load_data_orders(len(train), len(test))
    return {
        name: split.arranged(np.argsort(order))
        for name, split, order in zip(SPLITS, (train, test), orders, strict=True)
    }


def _are_the_files(splits: Mapping[str, Split]) -> bool:
    return all(
        _sha256(split.labels) == OFFICIAL_LABELS[name]
        and _sha256(split.tokens) == OFFICIAL_TOKENS[name]
        for name, split in splits.items()
    )


def _load_data_orders(num_train: int, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    # keras.datasets.imdb.load_data: one generator for both, so the test order depends on train.
    generator = np.random.RandomState(113)
    orders = np.arange(num_train), np.arange(num_test)
    for order in orders:
        generator.shuffle(order)
    return orders


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, "<i4").tobytes()).hexdigest()
