"""The IMDB reviews as flat arrays: what they are, how they are kept, how they are encoded.

Where they come from stands in `harness.imdb_sources`.
"""

import hashlib
import json
import os
import shutil
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import InputError, RunError

FORMAT = 1
SPLITS = ("train", "test")
ARRAYS = {"tokens": np.int32, "offsets": np.int64, "labels": np.int32}

# sha256 of tokens and labels as little-endian int32, in the order of Keras's imdb.npz (sorted
# file names, positive reviews first), by which any copy of the data can be told.
OFFICIAL_TOKENS = {
    "train": "839f238f42e49ed32804afd9148bb93e9a84328e97603b7bcd0a830b148a4281",
    "test": "88455a6ba2a9e95ffeb943b563f338f13951733bc0c8fee0892a4f9f2d72f23c",
}
OFFICIAL_LABELS = "3b063f583079366a61c169bb086d088e464210f8b6ac62279241f38b39603fbd"

START, UNKNOWN, SHIFT = 1, 2, 3  # as keras.datasets.imdb.load_data encodes

# What Keras's text_to_word_sequence takes for a space, and the only letters that it lowers.
_SPACES = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'
_PLAIN = str.maketrans(
    string.ascii_uppercase + _SPACES, string.ascii_lowercase + " " * len(_SPACES)
)


@dataclass(frozen=True)
class Split:
    """Reviews in the order that `load_data` gives, raw: review i is `tokens[offsets[i]:…]`."""

    tokens: np.ndarray  # [num_tokens] int32, ranks of words from 1
    offsets: np.ndarray  # [num_reviews + 1] int64
    labels: np.ndarray  # [num_reviews] int32, 1 for positive

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
        # Each token's place: its review's old start, plus its place in the review.
        places = np.repeat(self.offsets[:-1][order] - offsets[:-1], lengths)
        return Split(self.tokens[places + np.arange(offsets[-1])], offsets, self.labels[order])


@dataclass(frozen=True)
class Dataset:
    """Both splits and the words that the ranks stand for."""

    train: Split
    test: Split
    words: Sequence[str]  # the word of rank i + 1 at i
    checksum: str  # sha256 of the content
    official: bool  # the content is that of Keras's imdb.npz
    is_sample: bool = False
    folder: Path | None = None  # where it was found
    note: str = ""  # why it is this one, where that needs saying

    @property
    def title(self) -> str:
        """How a line or a table names the data."""
        if self.is_sample:
            return "SAMPLE of IMDB, not the full data"
        return "IMDB" if self.official else "other data than the official IMDB"

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


def make_dataset(
    train: Split, test: Split, words: Sequence[str], folder: Path | None = None
) -> Dataset:
    """Splits in the order of the file, arranged and named as `load_data` would have them."""
    official = all(
        _sha256(split.tokens) == OFFICIAL_TOKENS[name] and _sha256(split.labels) == OFFICIAL_LABELS
        for name, split in (("train", train), ("test", test))
    )
    train_order, test_order = _load_data_orders(len(train), len(test))
    train, test = train.arranged(train_order), test.arranged(test_order)
    return Dataset(
        train, test, words, content_checksum(train, test, words), official, folder=folder
    )


def verify(dataset: Dataset) -> list[str]:
    """What is wrong with a dataset, by all its bytes; empty if nothing is."""
    problems = []
    if content_checksum(dataset.train, dataset.test, dataset.words) != dataset.checksum:
        problems.append(f"the content does not have the checksum {dataset.checksum} of its record")
    if dataset.official:
        orders = _load_data_orders(len(dataset.train), len(dataset.test))
        for (name, split), order in zip(dataset.splits().items(), orders, strict=True):
            in_file = split.arranged(np.argsort(order))
            if _sha256(in_file.tokens) != OFFICIAL_TOKENS[name]:
                problems.append(f"the {name} reviews are not the official ones")
            if _sha256(in_file.labels) != OFFICIAL_LABELS:
                problems.append(f"the {name} labels are not the official ones")
    return problems


def _load_data_orders(num_train: int, num_test: int) -> tuple[np.ndarray, np.ndarray]:
    # keras.datasets.imdb.load_data: one generator for both, so that test's order hangs on train.
    generator = np.random.RandomState(113)
    orders = np.arange(num_train), np.arange(num_test)
    for order in orders:
        generator.shuffle(order)
    return orders


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, "<i4").tobytes()).hexdigest()


def content_checksum(train: Split, test: Split, words: Sequence[str]) -> str:
    """The sha256 of a dataset's reviews, labels and words, whatever they are kept in."""
    digest = hashlib.sha256()
    for split in (train, test):
        for name, dtype in ARRAYS.items():
            array = np.ascontiguousarray(getattr(split, name), np.dtype(dtype).newbyteorder("<"))
            digest.update(array.tobytes())
    digest.update("\n".join(words).encode())
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
    if folder.exists():
        if folder.stat().st_uid != os.getuid():
            # Its owner could change it after it was checked: nodes' disks are shared.
            raise InputError(f"{folder}: belongs to another user; give a folder of your own")
        if is_folder(folder):
            try:
                there = open_folder(folder)
                # By every byte: a node's disk may have flipped one since.
                if there.checksum == dataset.checksum and not verify(there):
                    return False
            except RunError:
                pass  # broken: made anew
        elif not folder.is_dir() or any(folder.iterdir()):
            raise InputError(f"{folder}: holds something else; give a new or an empty folder")
    folder = folder.absolute()
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
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
        beside.mkdir()
        _fill_folder(dataset, beside)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if is_folder(folder):  # another process was faster
            return False
        raise RunError(f"{folder}: can't be written: {error.strerror or error}") from None
    return True


def _fill_folder(dataset: Dataset, folder: Path) -> None:
    for name, split in dataset.splits().items():
        for array, dtype in ARRAYS.items():
            np.save(folder / f"{name}_{array}.npy", getattr(split, array).astype(dtype))
    (folder / "words.txt").write_bytes(words_to_bytes(dataset.words))
    record = {
        "format": FORMAT,
        "checksum": dataset.checksum,
        "official": dataset.official,
        "is_sample": dataset.is_sample,
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / "dataset.json").write_text(json.dumps(record, indent=2) + "\n")


def words_to_bytes(words: Sequence[str]) -> bytes:
    """A file of words, UTF-8, a line a word, the commonest first."""
    return "".join(f"{word}\n" for word in words).encode()


def words_from_bytes(content: bytes) -> list[str]:
    """The words of such a file. `str.splitlines` would break inside of one: rank 5135 is \\x85."""
    return content.decode().split("\n")[:-1]


def is_folder(folder: Path) -> bool:
    """Whether a folder claims to hold a dataset as flat arrays."""
    return (folder / "dataset.json").is_file()


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
        words = words_from_bytes((folder / "words.txt").read_bytes())
        return Dataset(
            train,
            test,
            words,
            checksum=record["checksum"],
            official=record["official"],
            is_sample=record["is_sample"],
            folder=folder,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"dataset {folder}: is broken ({error}); remove it and run harness data fetch"
        ) from None


# Encoding


def encode_split(split: Split, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Encode as `load_data(num_words=vocab_size)`: 1, then each rank + 3, or 2 where too rare.

    Returns:
        Tokens `[num_tokens + num_reviews] int32`, offsets `[num_reviews + 1] int64`.
    """
    shifted = np.asarray(split.tokens[: split.offsets[-1]]) + SHIFT
    shifted[shifted >= vocab_size] = UNKNOWN
    tokens = np.insert(shifted, split.offsets[:-1], START)
    return tokens, np.asarray(split.offsets) + np.arange(len(split.offsets))


def tokenize(text: str) -> list[str]:
    """A review's words, as the dataset was made: ASCII letters lowered, punctuation a space."""
    return [word for word in text.translate(_PLAIN).split(" ") if word]


def encode_text(text: str, ranks: Mapping[str, int], vocab_size: int) -> list[int]:
    """Encode raw text as the training data is: `An excellent movie!` gives 1, 35, 321, 20.

    Words that are unknown or too rare give 2, so that their place still counts.
    """
    shifted = (ranks.get(word, vocab_size) + SHIFT for word in tokenize(text))
    return [START, *(token if token < vocab_size else UNKNOWN for token in shifted)]
