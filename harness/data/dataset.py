"""A dataset: concatenated reviews and their labels, the vocabulary and the classes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

SPLITS = ("train", "test")
ARRAYS = {"tokens": np.int32, "offsets": np.int64, "labels": np.int32}
# The `content_checksum` of Keras's imdb.npz.
OFFICIAL = "fc1cd78d97848b792cf087d29cb77921ccab469ccf0c778e9ada027fde22f9d3"

CLASSES = ("negative", "positive")  # the classes of IMDB, with the labels 0 and 1
MAX_CLASSES = 1000
SHOWN = 10  # the largest number of classes that a message lists
# If all padded reviews together need at most this many bytes, they are padded in advance.
LARGEST_PADDED = 1_000_000_000


@dataclass(frozen=True)
class Split:
    """The reviews of a split: review i consists of `tokens[offsets[i]:offsets[i + 1]]`.

    The reviews of IMDB are in the order of `keras.datasets.imdb.load_data`.
    """

    tokens: np.ndarray  # [num_tokens] int32, ranks of words; the most frequent word has rank 1
    offsets: np.ndarray  # [num_reviews + 1] int64
    labels: np.ndarray  # [num_reviews] int32; labels start at 0

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, limit: int) -> Self:
        """Return the first `limit` reviews, or all if there are fewer."""
        return self.between(0, min(limit, len(self)))

    def between(self, first: int, end: int) -> Self:
        """Return the reviews from index `first` to index `end - 1`."""
        offsets = self.offsets[first : end + 1]
        return replace(
            self,
            tokens=self.tokens[offsets[0] : offsets[-1]],
            offsets=offsets - offsets[0] if first else offsets,
            labels=self.labels[first:end],
        )

    def arranged(self, order: np.ndarray) -> "Split":
        """Return a copy of the reviews whose indices are in `order`, in this order."""
        pieces = [self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in order]
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[order])]).astype(np.int64)
        return Split(np.concatenate([self.tokens[:0], *pieces]), offsets, self.labels[order])


@dataclass(frozen=True)
class Dataset:
    """The training split, the test split, the word of each rank, and the class of each label.

    If a user's texts have a validation split, its reviews are at the end of `train`.
    """

    train: Split
    test: Split
    vocab: Sequence[str]  # the word of rank i + 1 is `vocab[i]`
    checksum: str  # the result of `content_checksum`
    is_sample: bool = False
    folder: Path | None = None  # the dataset's folder, or `data.source` for a user's texts
    note: str = ""  # the reason why the sample is used, or how a user's texts were split
    classes: tuple[str, ...] = CLASSES  # the names of the labels 0, 1, …
    is_own: bool = False  # whether the reviews are a user's texts, see `own_texts`
    num_validation: int = 0  # the number of validation reviews at the end of `train`

    @property
    def official(self) -> bool:
        """Whether the dataset has the same content as Keras's imdb.npz."""
        return self.checksum == OFFICIAL

    @property
    def title(self) -> str:
        """The name of the dataset in messages and tables."""
        if self.is_sample:
            return "SAMPLE of IMDB, not the full data"
        if self.is_own and self.folder:
            counts = " + ".join(f"{len(part):,}" for part in self.parts().values())
            return f"{self.folder.name} ({counts} reviews)"
        return "IMDB" if self.official else "a dataset other than the official IMDB"

    @property
    def introduction(self) -> str:
        """The line with which a run introduces a user's texts, or explains why it uses the sample.

        The line is empty for IMDB from a folder or a download.
        """
        if self.is_own:
            counts = {name: f"{len(part):,}" for name, part in self.parts().items()}
            validation = f", {counts['validation']} validation" if self.num_validation else ""
            return (
                f"texts {self.folder}: {counts['train']} training{validation} and "
                f"{counts['test']} test reviews, {self.note}; {self._labels}"
            )
        if self.note:
            return (
                f"using the packaged SAMPLE of 5,000 training and 2,000 test reviews: {self.note}"
            )
        return ""

    @property
    def _labels(self) -> str:
        """Text for messages: the number of classes, and the first ten classes with their labels."""
        shown = [f"{label} = {name}" for label, name in enumerate(self.classes[:SHOWN])]
        more = ", …" if self.classes[SHOWN:] else ""
        return f"{len(self.classes)} classes: {', '.join(shown)}{more}"

    @property
    def num_outputs(self) -> int:
        """The number of outputs of a network for this dataset."""
        return num_outputs(self.classes)

    def record(self) -> dict[str, Any]:
        """Return the entries that describe the dataset in the record of a run or sweep."""
        return {
            "checksum": self.checksum,
            "official": self.official,
            "is_sample": self.is_sample,
            "is_own": self.is_own,
            "num_validation": self.num_validation,
            "folder": str(self.folder.absolute()) if self.folder else None,
        }

    def splits(self) -> dict[str, Split]:
        """Return the stored splits, `train` and `test`."""
        return {"train": self.train, "test": self.test}

    def parts(self) -> dict[str, Split]:
        """Return the splits by name: `train`, `validation` if there is one, and `test`."""
        if not self.num_validation:
            return self.splits()
        cut = len(self.train) - self.num_validation
        validation = self.train.between(cut, len(self.train))
        return {"train": self.train.take(cut), "validation": validation, "test": self.test}

    def used(self, limit: int, share: float) -> tuple[Split, int]:
        """Return a job's training and validation reviews, and the number of training reviews.

        In the returned split, the validation reviews follow the training reviews. If the dataset
        has its own validation reviews (`num_validation`), these are used. Otherwise the fraction
        `share` at the end of the training split is used. If `share` is 0, there are no validation
        reviews, and all reviews are for training.

        Args:
            limit: the value of `data.limit`, the number of reviews to use from the start of each
                split; 0 = all.
            share: the value of `data.validation_split`.
        """
        if not self.num_validation:
            train = self.train.take(limit) if limit else self.train
            return train, validation_cut(len(train), share)
        cut, end = len(self.train) - self.num_validation, len(self.train)
        train = self.train
        if limit and limit < max(cut, end - cut):
            first = min(limit, cut)
            order = np.r_[:first, cut : cut + min(limit, end - cut)]
            train, cut = train.arranged(order), first
        return train, cut if share > 0 else len(train)


def make_split(reviews: Sequence[Any] | np.ndarray, labels: Sequence[int] | np.ndarray) -> Split:
    """Return a split of these reviews; each review is a list of word ranks."""
    offsets = np.concatenate([[0], np.cumsum([len(review) for review in reviews], dtype=np.int64)])
    tokens = np.fromiter(chain.from_iterable(reviews), np.int32, int(offsets[-1]))
    return Split(tokens, offsets, np.asarray(labels, np.int32))


def content_checksum(
    train: Split, test: Split, vocab: Sequence[str], *, num_validation: int = 0
) -> str:
    """Return the sha256 of a dataset's reviews, labels and words.

    The checksum does not depend on the format of the files that contain the dataset.

    Args:
        num_validation: the number of validation reviews at the end of `train`.
    """
    digest = hashlib.sha256()
    for split in (train, test):
        for name, dtype in ARRAYS.items():
            array = np.ascontiguousarray(getattr(split, name), np.dtype(dtype).newbyteorder("<"))
            digest.update(array.data)
    # A NUL, which no word contains, separates the words from the number of validation reviews.
    # The number 0 is left out, so that datasets without a validation split keep the checksums of
    # earlier versions, which had no validation splits.
    mark = f"\0{num_validation}" if num_validation else ""
    digest.update(("\n".join(vocab) + mark).encode())
    return digest.hexdigest()


def vocab_to_bytes(vocab: Sequence[str]) -> bytes:
    """Return the content of a vocabulary file: UTF-8, one word per line, most frequent first."""
    return "".join(f"{word}\n" for word in vocab).encode()


def vocab_from_bytes(content: bytes) -> list[str]:
    """Return the words of a vocabulary file, one per line."""
    # `splitlines` would also split at \x85, which is a word of IMDB.
    return content.decode().split("\n")[:-1]


def num_outputs(classes: Sequence[str]) -> int:
    """Return the number of outputs of a network for these classes.

    With two classes, the only output is the probability of label 1. With more than two classes,
    each class has an output.
    """
    return 1 if len(classes) == 2 else len(classes)


def by_class(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Return the probability of each class, `[num_reviews, num_classes]`.

    Args:
        probabilities: the probability of each class, `[num_reviews, num_classes]`; or, for two
            classes, the probability of label 1, `[num_reviews]` or `[num_reviews, 1]`.
    """
    array = np.asarray(probabilities, np.float64)
    if array.ndim == 1:
        array = array[:, None]
    return np.hstack([1 - array, array]) if array.shape[1] == 1 else array


def validation_cut(num_reviews: int, share: float) -> int:
    """Return the number of training reviews, computed as Keras does for `validation_split`.

    Args:
        num_reviews: the number of training and validation reviews together.
        share: the fraction of validation reviews, which are the last reviews.
    """
    cut = int(num_reviews * (1 - share))
    # Keep at least one review for training and one for validation.
    return min(max(cut, 1), num_reviews - 1) if share > 0 else cut
