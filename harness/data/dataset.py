"""Reviews as flat arrays with the words that they hold, and the folder that keeps them."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.locations import is_dataset_folder
from harness.errors import InputError, RunError
from harness.files.atomic_file import atomic_directory
from harness.files.paths import cache_folder

FORMAT = 1
SPLITS = ("train", "test")
ARRAYS = {"tokens": np.int32, "offsets": np.int64, "labels": np.int32}
ARRANGED_AT_ONCE = 10_000  # reviews

CLASSES = ("negative", "positive")  # what the labels 0 and 1 mean in IMDB


@dataclass(frozen=True)
class Split:
    """Reviews in the order that `load_data` gives, raw: review i is `tokens[offsets[i]:…]`."""

    tokens: np.ndarray  # [num_tokens] int32, ranks of words from 1
    offsets: np.ndarray  # [num_reviews + 1] int64
    labels: np.ndarray  # [num_reviews] int32, 0 or 1

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, limit: int) -> "Split":
        """The first `limit` reviews, or all where there are fewer."""
        limit = min(limit, len(self))
        offsets = self.offsets[: limit + 1]
        return Split(self.tokens[: offsets[-1]], offsets, self.labels[:limit])

    def arranged(self, order: np.ndarray) -> "Split":
        """The reviews in another order, `[num_reviews]`, copied."""
        lengths = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.empty(offsets[-1], np.int32)
        # In parts: the places of all tokens at once would take four times their own memory.
        for first in range(0, len(order), ARRANGED_AT_ONCE):
            part = slice(first, first + ARRANGED_AT_ONCE)
            start, end = offsets[first], offsets[min(part.stop, len(order))]
            # Each token's place: its review's old start, plus its place in the review.
            places = np.repeat(self.offsets[:-1][order[part]] - offsets[:-1][part], lengths[part])
            tokens[start:end] = self.tokens[places + np.arange(start, end)]
        return Split(tokens, offsets, self.labels[order])


@dataclass(frozen=True)
class Dataset:
    """Both splits, the words that the ranks stand for, and the classes that the labels do."""

    train: Split
    test: Split
    vocab: Sequence[str]  # the word of rank i + 1 is `vocab[i]`
    checksum: str  # sha256 of the content
    official: bool  # the content is that of Keras's imdb.npz
    is_sample: bool = False
    folder: Path | None = None  # where it was found; of own texts, their file or folder
    note: str = ""  # why it is this one; of own texts, how they were split
    classes: tuple[str, str] = CLASSES  # of the labels 0 and 1
    is_own: bool = False  # the user's own texts, see `harness.data.text_dataset`

    @property
    def title(self) -> str:
        """How a line or a table names the data."""
        if self.is_sample:
            return "SAMPLE of IMDB, not the full data"
        if self.is_own and self.folder:
            return f"{self.folder.name} ({len(self.train):,} + {len(self.test):,} reviews)"
        return "IMDB" if self.official else "other data than the official IMDB"

    @property
    def introduction(self) -> str:
        """What is said of the data before all else; empty where the title says it all."""
        if self.is_own:
            return (
                f"texts {self.folder}: {len(self.train):,} training and {len(self.test):,} test "
                f"reviews, {self.note}; label 0 is {self.classes[0]}, 1 is {self.classes[1]}"
            )
        if self.note:
            return f"using the packaged SAMPLE of 5,000 + 2,000 reviews: {self.note}"
        return ""

    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {"train": self.train, "test": self.test}


def make_split(reviews: Sequence[Any] | np.ndarray, labels: Sequence[int] | np.ndarray) -> Split:
    """Reviews as lists of word ranks to flat arrays.

    Raises:
        ValueError: for lengths that differ, a label beside 0 and 1, or a rank below 1.
    """
    if len(reviews) != len(labels):
        raise ValueError(f"{len(reviews)} reviews, but {len(labels)} labels")
    lengths = [len(review) for review in reviews]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.fromiter(chain.from_iterable(reviews), np.int32, int(offsets[-1]))
    marks = np.asarray(labels)
    if not np.isin(marks, (0, 1)).all():
        raise ValueError("a label is neither 0 nor 1")
    if len(tokens) == 0 or tokens.min() < 1:
        raise ValueError("a word's rank is below 1, or there is no word at all")
    return Split(tokens, offsets, marks.astype(np.int32))


def checksum_of(dataset: Dataset) -> str:
    """The checksum that a dataset's content has, which should be the one of its record."""
    return content_checksum(dataset.train, dataset.test, dataset.vocab)


def content_checksum(train: Split, test: Split, vocab: Sequence[str]) -> str:
    """The sha256 of a dataset's reviews, labels and words, whatever they are kept in."""
    digest = hashlib.sha256()
    for split in (train, test):
        for name, dtype in ARRAYS.items():
            array = np.ascontiguousarray(getattr(split, name), np.dtype(dtype).newbyteorder("<"))
            digest.update(array.data)
    digest.update("\n".join(vocab).encode())
    return digest.hexdigest()


# The folder that holds a dataset as flat arrays


def save_folder(dataset: Dataset, folder: Path) -> bool:
    """Keep a dataset as flat arrays in a folder, which is complete or absent.

    Returns:
        Whether it was written; a good copy of the same content is left as it is.

    Raises:
        InputError: if the folder holds something else.
        RunError: if the disk refuses or has not the room.
    """
    there = folder.exists()
    if there:
        if folder.stat().st_uid != os.getuid():
            # Its owner could change it after it was checked: nodes' disks are shared.
            raise InputError(f"{folder}: belongs to another user; give a folder of your own")
        if is_dataset_folder(folder):
            try:
                known = open_folder(folder)
                # By every byte: a node's disk may have flipped one since.
                if known.checksum == dataset.checksum == checksum_of(known):
                    return False
            except RunError:
                pass  # broken: made anew
        elif not folder.is_dir() or any(folder.iterdir()):
            raise InputError(f"{folder}: holds something else; give a new or an empty folder")
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        needed = (
            sum(
                s.tokens.nbytes + s.offsets.nbytes + s.labels.nbytes
                for s in dataset.splits().values()
            )
            + 2_000_000
        )
        free = shutil.disk_usage(folder.parent).free
        if free < needed:
            raise RunError(f"{folder}: needs {needed:,} bytes, the disk has {free:,} free")
        with atomic_directory(folder) as temporary:
            _fill_folder(dataset, temporary)
            if there:
                shutil.rmtree(folder)
    except OSError as error:
        # Renaming fails if another process was faster; then its copy stays.
        if is_dataset_folder(folder):
            return False
        raise RunError(f"{folder}: can't be written: {error.strerror or error}") from None
    return True


def _fill_folder(dataset: Dataset, folder: Path) -> None:
    for name, split in dataset.splits().items():
        for array, dtype in ARRAYS.items():
            np.save(folder / f"{name}_{array}.npy", getattr(split, array).astype(dtype))
    (folder / "words.txt").write_bytes(vocab_to_bytes(dataset.vocab))
    record = {
        "format": FORMAT,
        "checksum": dataset.checksum,
        "official": dataset.official,
        "is_sample": dataset.is_sample,
        "note": dataset.note if dataset.is_own else "",  # else it is of this one search for data
        "classes": dataset.classes,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / "dataset.json").write_text(json.dumps(record, indent=2) + "\n")


def vocab_to_bytes(vocab: Sequence[str]) -> bytes:
    """A file of words, UTF-8, a line a word, the commonest first."""
    return "".join(f"{word}\n" for word in vocab).encode()


def vocab_from_bytes(content: bytes) -> list[str]:
    """The words of such a file. `str.splitlines` would break inside of one: rank 5135 is \\x85."""
    return content.decode().split("\n")[:-1]


def open_folder(folder: Path) -> Dataset:
    """Open a dataset kept as flat arrays: milliseconds, since nothing is read before it is used.

    Raises:
        RunError: if a file is missing, cut or of another kind.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
        for name, size in record["bytes"].items():
            found = (folder / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} bytes, should have {size}")
        train, test = (
            Split(*(np.load(folder / f"{name}_{array}.npy", mmap_mode="r") for array in ARRAYS))
            for name in SPLITS
        )
        vocab = vocab_from_bytes((folder / "words.txt").read_bytes())
        negative, positive = record.get("classes", CLASSES)  # an earlier version has none
        return Dataset(
            train,
            test,
            vocab,
            checksum=record["checksum"],
            official=record["official"],
            is_sample=record["is_sample"],
            folder=folder,
            note=record.get("note", ""),
            classes=(negative, positive),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"dataset {folder}: is broken ({error}); remove it and run harness data fetch"
        ) from None


def cached_dataset(name: str, make: Callable[[], Dataset]) -> Dataset:
    """A dataset from its folder in the user's cache, made and put there where it is not, or broken.

    A cache that can't be written costs each start what this one took.

    Raises:
        InputError, RunError: as `make` does.
    """
    kept = cache_folder() / name
    if is_dataset_folder(kept):
        with contextlib.suppress(RunError):
            return open_folder(kept)
    dataset = make()
    try:
        save_folder(dataset, kept)
    except (RunError, InputError):
        return dataset
    return open_folder(kept)


def validation_cut(num_reviews: int, share: float) -> int:
    """How many of the training reviews train; the others, the last `share` of them, validate.

    Keras's `validation_split` takes the same reviews.
    """
    cut = int(num_reviews * (1 - share))
    # At least one of each: a share of a handful of reviews may round to none.
    return min(max(cut, 1), num_reviews - 1) if share > 0 else cut
