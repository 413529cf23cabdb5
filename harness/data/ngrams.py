"""Which n-grams a review holds, and how much each of them speaks for a class.

An n-gram is one to three words that follow each other in a review. The weights are the log-count
ratios of Wang & Manning, "Baselines and Bigrams" (2012).

What a network can read beside the words: how much the n-gram that ends at each word tells.

For each word of a review, one number for each length from one word up: the log-count ratio of the
n-gram that ends there, 0 for an n-gram that is not known. With more than two classes there is a
number for each class, against all others.

The ratios come from the labels of the training reviews. Those of a training review itself come
from the other folds of these, or the network would read its own label; other reviews get those of
all training reviews.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Split

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MAX_WORDS = 3
MIN_REVIEWS = 2
SMOOTHING = 1.0
MAX_BYTES = 2**33  # of a file: a number of 8 bytes for each n-gram and class

Ints = NDArray[np.int64]
# For each length the sorted codes of the known n-grams: of one word its rank; of more the number of
# the n-gram without its last word, times the number of known words, plus the number of that word.
Ngrams = tuple[Ints, ...]

Floats = NDArray[np.float32]

NUM_FOLDS = 5


def binary_ngrams(
    split: Split, known: Ngrams = (), max_words: int = MAX_WORDS
) -> tuple["csr_matrix", Ngrams]:
    """Which n-grams each review holds, 1 where it holds one however often.

    Args:
        known: the n-grams to look for; without them, those that at least two of the reviews hold.
        max_words: the largest length of an n-gram, known ones included.

    Returns:
        `[num_reviews, num_ngrams] float64`, the n-grams of one word first, and the n-grams.
    """
    from scipy.sparse import csr_matrix, hstack

    review_of = np.repeat(np.arange(len(split)), np.diff(split.offsets))
    found: list[Ints] = []
    parts = []
    for numbers, codes in numbered_ngrams(split, known, max_words):
        found.append(codes)
        is_known = numbers >= 0
        indices = (review_of[: len(numbers)][is_known], numbers[is_known])
        part = csr_matrix((np.ones(len(indices[0])), indices), shape=(len(split), len(codes)))
        part.data[:] = 1.0  # equal ones were added up
        parts.append(part)
    return hstack(parts, format="csr"), tuple(found)


def numbered_ngrams(split: Split, known: Ngrams, max_words: int) -> Iterator[tuple[Ints, Ints]]:
    """The n-grams of each length, from one word on.

    Args:
        split: the reviews; a word of a rank below 1 is in no n-gram.
        known: the n-grams to look for; without them, those that at least two of the reviews hold.
        max_words: the largest length of an n-gram, known ones included.

    Yields:
        The number of the n-gram that begins at each position but the last `length - 1`, -1 where
        there is none, and the codes of the n-grams by number.
    """
    review_of = np.repeat(np.arange(len(split)), np.diff(split.offsets))
    numbers = split.tokens[: len(review_of)].astype(np.int64)
    words, num_words = numbers, 0
    for length in range(1, max_words + 1):
        if length > 1:
            start, last = numbers[:-1], words[length - 1 :]
            # No code is shared by two n-grams, nor too large: a rare word ends each n-gram with it.
            is_one = (start >= 0) & (last >= 0)
            is_one &= review_of[: len(last)] == review_of[length - 1 :]
            numbers = np.where(is_one, start * num_words + last, -1)
        owners = review_of[: len(numbers)]
        codes = known[length - 1] if known else _held_by_several(numbers, owners)
        numbers = _number(numbers, codes)
        if length == 1:
            words, num_words = numbers, len(codes)
        yield numbers, codes


def _held_by_several(codes: Ints, owners: Ints) -> Ints:
    """The codes from 0 on that at least two reviews hold, sorted; `owners` must not decrease."""
    order = np.argsort(codes, kind="stable")
    order = order[np.searchsorted(codes[order], 0) :]
    ordered = codes[order]
    edges = np.flatnonzero(np.diff(ordered, prepend=-1, append=-1))  # between unlike codes
    first, last = edges[:-1], edges[1:] - 1
    kept: Ints = ordered[first[owners[order[first]] != owners[order[last]]]]
    return kept


def _number(codes: Ints, known: Ints) -> Ints:
    """The index of each code among the known ones, -1 for others."""
    if not len(known):
        return np.full(len(codes), -1)
    at = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    return np.where(known[at] == codes, at, -1)


def log_count_ratios(features: "csr_matrix", is_class: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much more often each n-gram is in reviews of a class than in others, as a logarithm.

    Counts are smoothed by 1 and divided by their sum, as by Wang & Manning.

    Args:
        features: `[num_reviews, num_ngrams]`, 0 or 1.
        is_class: `[num_reviews]`.

    Returns:
        `[num_ngrams]`.
    """
    inside, outside = (
        SMOOTHING + np.asarray(features[chosen].sum(axis=0)).ravel()
        for chosen in (is_class, ~is_class)
    )
    ratios: NDArray[np.float64] = np.log((inside / inside.sum()) / (outside / outside.sum()))
    return ratios


# Files


def archived(ngrams: Ngrams, **arrays: Any) -> bytes:
    """The content of a file of n-grams and other arrays, for `opened`."""
    file = io.BytesIO()
    codes: dict[str, Any] = {f"ngrams_{i}": each for i, each in enumerate(ngrams)}
    np.savez(file, **arrays, **codes)
    return file.getvalue()


@contextlib.contextmanager
def opened(content: bytes, num_arrays: int) -> Iterator[tuple[Ngrams, Mapping[str, np.ndarray]]]:
    """The n-grams and the arrays that `archived` wrote, to be read inside.

    Args:
        num_arrays: how many there are beside the n-grams.

    Raises:
        ValueError: if it is something else, or anything fails inside.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            num_lengths = len(arrays.files) - num_arrays
            yield tuple(arrays[f"ngrams_{i}"] for i in range(num_lengths)), arrays
    except Exception as error:  # zipfile and NumPy raise many kinds for a broken file
        raise ValueError(f"no archive of n-grams: {error}") from None


# At the words of reviews


@dataclass(frozen=True)
class NgramRatios:
    """The ratios of all training reviews, for reviews that are not among them."""

    ngrams: Ngrams  # by length
    ratios: Floats  # [num_ngrams, num_ratios], those of one word first

    @property
    def num_channels(self) -> int:
        """The numbers for each word."""
        return len(self.ngrams) * int(self.ratios.shape[1])

    def at_words(self, split: Split) -> Floats:
        """The ratios at each word of the reviews, `[num_tokens, num_channels]`."""
        columns = _columns_at_words(split, self.ngrams)
        return _looked_up(self.ratios, columns)

    def to_bytes(self) -> bytes:
        """The content of a file for `from_bytes`."""
        return archived(self.ngrams, ratios=self.ratios)

    @classmethod
    def from_bytes(cls, content: bytes) -> "NgramRatios":
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: if it is something else.
        """
        with opened(content, num_arrays=1) as (ngrams, arrays):
            ratios = arrays["ratios"]
        if len(ratios) != sum(map(len, ngrams)) or ratios.ndim != 2:
            raise ValueError("the n-grams and the ratios differ in number")
        return cls(ngrams, ratios)


def fit_ratios(training: Split, max_words: int, num_classes: int) -> tuple[NgramRatios, Floats]:
    """The ratios for other reviews, and those at each word of the training reviews.

    Args:
        training: the training reviews; a word of a rank below 1 is in no n-gram.
        max_words: the largest length of an n-gram.
        num_classes: with two, there are ratios for label 1 alone.

    Returns:
        The ratios, and `[num_tokens, num_channels]`, cross-fitted in folds.
    """
    features, ngrams = binary_ngrams(training, max_words=max_words)
    labels = range(1, 2) if num_classes == 2 else range(num_classes)
    known = np.ones(features.shape[1], np.bool_)
    ratios = NgramRatios(ngrams, _ratios(features, training.labels, labels, known=known))
    columns = _columns_at_words(training, ngrams)
    # By turns: the reviews may be sorted by class.
    fold_of = np.arange(len(training)) % NUM_FOLDS
    fold_at = np.repeat(fold_of, np.diff(training.offsets))
    at_words = np.zeros((len(columns[0]), ratios.num_channels), np.float32)
    for fold in range(NUM_FOLDS):
        is_other = fold_of != fold
        others = features[is_other]
        # An n-gram that enough of the others hold has no part that too few of them hold, so these
        # are the n-grams that the others alone would give.
        known = np.asarray(others.sum(axis=0)).ravel() >= MIN_REVIEWS
        of_others = _ratios(others, training.labels[is_other], labels, known=known)
        is_here = fold_at == fold
        at_words[is_here] = _looked_up(of_others, [column[is_here] for column in columns])
    return ratios, at_words


def _ratios(
    features: "csr_matrix", labels: NDArray[np.int32], of: range, *, known: NDArray[np.bool_]
) -> Floats:
    """`[num_ngrams, num_ratios]`: one class against the rest, 0 for n-grams that are not known."""
    ratios = np.zeros((features.shape[1], len(of)), np.float32)
    kept = features[:, known]
    for channel, label in enumerate(of):
        ratios[known, channel] = log_count_ratios(kept, labels == label)
    return ratios


def _columns_at_words(split: Split, ngrams: Ngrams) -> list[Ints]:
    """For each length the column of the n-gram that ends at each word, -1 without one."""
    columns, before = [], 0
    for length, (numbers, codes) in enumerate(numbered_ngrams(split, ngrams, len(ngrams)), 1):
        column = np.full(split.offsets[-1], -1)
        column[length - 1 :] = np.where(numbers >= 0, before + numbers, -1)
        columns.append(column)
        before += len(codes)
    return columns


def _looked_up(ratios: Floats, columns: list[Ints]) -> Floats:
    """`[num_words, num_channels]`: the ratios of these columns of n-grams, lengths side by side."""
    with_none = np.concatenate([ratios, np.zeros((1, ratios.shape[1]), np.float32)])  # at -1
    return np.concatenate([with_none[column] for column in columns], axis=1)
