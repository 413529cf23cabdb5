"""Which n-grams a review holds, and how much each of them speaks for a class.

An n-gram is one to three words that follow each other in a review. The weights are the log-count
ratios of Wang & Manning, "Baselines and Bigrams" (2012).
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
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


def binary_ngrams(
    split: Split, known: Ngrams = (), max_words: int = MAX_WORDS
) -> tuple["csr_matrix", Ngrams]:
    """Which n-grams each review holds, 1 where it holds one however often.

    Args:
        known: the n-grams to look for; without them, those that at least two of the reviews hold.
        max_words: the largest length, as that of the known ones.

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
        max_words: the largest length, as that of the known ones.

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
