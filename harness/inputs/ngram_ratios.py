"""What a network can read beside the words: how much the n-gram that ends at each word tells.

For each word of a review, one number for each length from one word up: the log-count ratio of the
n-gram that ends there (`harness.inputs.ngrams`), 0 for an n-gram that is not known. With more than
two classes there is a number for each class, against all others.

The ratios come from the labels of the training reviews. Those of a training review itself come
from the other folds of these, or the network would read its own label; other reviews get those of
all training reviews.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Split
from harness.inputs.ngrams import (
    MIN_REVIEWS,
    Ints,
    Ngrams,
    archived,
    binary_ngrams,
    log_count_ratios,
    numbered_ngrams,
    opened,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Floats = NDArray[np.float32]

NUM_FOLDS = 5


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
