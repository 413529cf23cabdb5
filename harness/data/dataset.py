"""Reviews as flat arrays with their vocabulary."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SPLITS = ("train", "test")
ARRAYS = {"tokens": np.int32, "offsets": np.int64, "labels": np.int32}
WORDS_AT_ONCE = 1_000_000
# The checksum of Keras's imdb.npz, in the order of `keras.datasets.imdb.load_data`.
OFFICIAL = "fc1cd78d97848b792cf087d29cb77921ccab469ccf0c778e9ada027fde22f9d3"

CLASSES = ("negative", "positive")  # what the labels 0 and 1 mean in IMDB
MAX_CLASSES = 1000
SHOWN = 10  # classes in a line


@dataclass(frozen=True)
class Split:
    """Reviews in the order that `load_data` gives, raw: review i is `tokens[offsets[i]:…]`."""

    tokens: np.ndarray  # [num_tokens] int32, ranks of words from 1
    offsets: np.ndarray  # [num_reviews + 1] int64
    labels: np.ndarray  # [num_reviews] int32, from 0 up to the number of classes

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, limit: int) -> "Split":
        """The first `limit` reviews, or all where there are fewer."""
        return self.between(0, min(limit, len(self)))

    def between(self, first: int, end: int) -> "Split":
        """The reviews from `first` up to `end`."""
        offsets = self.offsets[first : end + 1]
        tokens = self.tokens[offsets[0] : offsets[-1]]
        # Only a later start makes a copy of the offsets, which may be mapped.
        return Split(tokens, offsets - offsets[0] if first else offsets, self.labels[first:end])

    def arranged(self, order: np.ndarray) -> "Split":
        """A copy with the reviews in another order, `[num_reviews]`."""
        lengths = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.empty(offsets[-1], np.int32)
        # In parts: the indices of all tokens at once would take four times their memory.
        for part in parts_of(offsets):
            start, end = offsets[part.start], offsets[part.stop]
            # Each token's index: its review's old start plus its offset in the review.
            indices = np.repeat(self.offsets[:-1][order[part]] - offsets[:-1][part], lengths[part])
            tokens[start:end] = self.tokens[indices + np.arange(start, end)]
        return Split(tokens, offsets, self.labels[order])


@dataclass(frozen=True)
class Dataset:
    """Both splits, the words behind the ranks, and the classes behind the labels.

    Own texts may have a validation split. It is the end of `train`, so that a job that trains on
    all reviews reads one split.
    """

    train: Split
    test: Split
    vocab: Sequence[str]  # the word of rank i + 1 is `vocab[i]`
    checksum: str  # sha256 of the content
    is_sample: bool = False
    folder: Path | None = None  # where it was found; for own texts, their file or folder
    note: str = ""  # why the sample is used; for own texts, how they were split
    classes: tuple[str, ...] = CLASSES  # of the labels 0, 1, …
    is_own: bool = False  # the user's own texts, see `harness.data.own_texts`
    num_validation: int = 0  # last reviews of `train`, the validation split of the source

    @property
    def official(self) -> bool:
        """Whether the content equals Keras's imdb.npz."""
        return self.checksum == OFFICIAL

    @property
    def title(self) -> str:
        """The name of the data in lines and tables."""
        if self.is_sample:
            return "SAMPLE of IMDB, not the full data"
        if self.is_own and self.folder:
            counts = " + ".join(f"{len(part):,}" for part in self.parts().values())
            return f"{self.folder.name} ({counts} reviews)"
        return "IMDB" if self.official else "other data than the official IMDB"

    @property
    def introduction(self) -> str:
        """A line about the data for the start of a run; empty for the whole of IMDB."""
        if self.is_own:
            counts = {name: f"{len(part):,}" for name, part in self.parts().items()}
            validation = f", {counts['validation']} validation" if self.num_validation else ""
            return (
                f"texts {self.folder}: {counts['train']} training{validation} and "
                f"{counts['test']} test reviews, {self.note}; {self._labels}"
            )
        if self.note:
            return f"using the packaged SAMPLE of 5,000 + 2,000 reviews: {self.note}"
        return ""

    @property
    def _labels(self) -> str:
        """Which label is which class; of many the first."""
        first, second, *others = self.classes
        if not others:
            return f"label 0 is {first}, 1 is {second}"
        shown = ", ".join(f"{label} {name}" for label, name in enumerate(self.classes[:SHOWN]))
        return f"{len(self.classes)} classes: {shown}{', …' if len(self.classes) > SHOWN else ''}"

    @property
    def num_outputs(self) -> int:
        """Outputs of a network for it."""
        return num_outputs(self.classes)

    def record(self) -> dict[str, Any]:
        """What a run or a search writes down of its data, by which it finds them again."""
        return {
            "checksum": self.checksum,
            "official": self.official,
            "is_sample": self.is_sample,
            "is_own": self.is_own,
            "num_validation": self.num_validation,
            "folder": str(self.folder.absolute()) if self.folder else None,
        }

    def splits(self) -> dict[str, Split]:
        """The splits by name, as they are stored."""
        return {"train": self.train, "test": self.test}

    def parts(self) -> dict[str, Split]:
        """The splits that the source has, by name."""
        if not self.num_validation:
            return self.splits()
        cut = len(self.train) - self.num_validation
        validation = self.train.between(cut, len(self.train))
        return {"train": self.train.take(cut), "validation": validation, "test": self.test}

    def used(self, limit: int, share: float) -> tuple[Split, int]:
        """The part of the training split that is used, and the number of its reviews to train on.

        The other ones, at its end, are for validation: the validation split of the source if it
        has one, otherwise a share. No validation at all is the share 0; then the reviews of a
        validation split are trained on too.

        Args:
            limit: reviews used of each split of the source, from its start; 0 for all.
            share: `data.validation_split`.
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


def parts_of(offsets: np.ndarray) -> Iterator[slice]:
    """Reviews that follow each other and have up to a million words together, or a longer one.

    Args:
        offsets: where each review begins, and the end, `[num_reviews + 1]`.
    """
    first = 0
    while first < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[first] + WORDS_AT_ONCE, side="right")) - 1
        yield slice(first, max(end, first + 1))
        first = max(end, first + 1)


def make_split(reviews: Sequence[Any] | np.ndarray, labels: Sequence[int] | np.ndarray) -> Split:
    """Turn reviews of IMDB, lists of word ranks, into flat arrays."""
    offsets = np.concatenate([[0], np.cumsum([len(review) for review in reviews], dtype=np.int64)])
    tokens = np.fromiter(chain.from_iterable(reviews), np.int32, int(offsets[-1]))
    return Split(tokens, offsets, np.asarray(labels, np.int32))


def content_checksum(
    train: Split, test: Split, vocab: Sequence[str], *, num_validation: int = 0
) -> str:
    """The sha256 of a dataset's reviews, labels and words, independent of how they are stored.

    Args:
        num_validation: last reviews of `train` that are the validation split.
    """
    digest = hashlib.sha256()
    for split in (train, test):
        for name, dtype in ARRAYS.items():
            array = np.ascontiguousarray(getattr(split, name), np.dtype(dtype).newbyteorder("<"))
            digest.update(array.data)
    # No word holds a NUL byte. Without a validation split nothing is added, as for IMDB.
    mark = f"\0{num_validation}" if num_validation else ""
    digest.update(("\n".join(vocab) + mark).encode())
    return digest.hexdigest()


def vocab_to_bytes(vocab: Sequence[str]) -> bytes:
    """A vocabulary file: UTF-8, one word a line, the most frequent first."""
    return "".join(f"{word}\n" for word in vocab).encode()


def vocab_from_bytes(content: bytes) -> list[str]:
    """The words of a vocabulary file; `str.splitlines` would split rank 5135, which is \\x85."""
    return content.decode().split("\n")[:-1]


def num_outputs(classes: Sequence[str]) -> int:
    """Outputs of a network: the probability of label 1 of two classes, of each one of more."""
    return 1 if len(classes) == 2 else len(classes)


def by_class(probabilities: ArrayLike) -> NDArray[np.float64]:
    """The probability of each class, `[num_reviews, num_classes]`.

    Args:
        probabilities: those, or of two classes that of label 1 alone, `[num_reviews]` or
            `[num_reviews, 1]`.
    """
    found = np.asarray(probabilities, np.float64)
    if found.ndim == 1:
        found = found[:, None]
    return np.hstack([1 - found, found]) if found.shape[1] == 1 else found


def validation_cut(num_reviews: int, share: float) -> int:
    """The number of reviews to train on; the rest, the last `share`, are for validation.

    Keras's `validation_split` takes the same reviews.
    """
    cut = int(num_reviews * (1 - share))
    # At least one of each: a share of a few reviews could round to none.
    return min(max(cut, 1), num_reviews - 1) if share > 0 else cut
