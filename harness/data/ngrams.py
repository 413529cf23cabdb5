"""The n-grams of reviews, and their log-count ratios.

An n-gram is a sequence of one to three words in a review. The log-count ratios are from Wang &
Manning, "Baselines and Bigrams" (2012).

With each word, a network may read the ratios of the n-grams that end at this word: the word alone,
the last two words, and the last three words. An n-gram is known if at least two training reviews
contain it. The ratio of an unknown n-gram is 0. For more than two classes, an n-gram has a ratio
for each class, which compares this class with all other classes together.

The ratios are computed from the labels of the training reviews. The training reviews are divided
into five folds; the ratios for a training review are computed from the four other folds, because
ratios from the review's own fold would reveal its label.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import Split
from harness.data.vocabulary import UNRANKED

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

MAX_WORDS = 3
MIN_REVIEWS = 2
SMOOTHING = 1.0
MAX_BYTES = 2**33  # the largest size of a file with n-grams
CODES = "ngrams_"  # in a file, the names of the arrays of codes begin with this prefix

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
# The known n-grams as codes: one sorted array for each length. The number of an n-gram is the index
# of its code in the array. The code of a single word is its rank. The code of a longer n-gram is
# number(n-gram without its last word) * num_known_words + number(last word).
Ngrams = tuple[Ints, ...]

NUM_FOLDS = 5


def binary_ngrams(
    split: Split, known: Ngrams = (), max_words: int = MAX_WORDS
) -> tuple["csr_matrix", Ngrams]:
    """Return a matrix of the n-grams that each review contains, and the n-grams themselves.

    Args:
        known: the n-grams to look for; by default all n-grams that occur in at least two reviews.
        max_words: the largest number of words in an n-gram.

    Returns:
        A tuple of the matrix, `[num_reviews, num_ngrams] float64`, and the n-grams, one for each
        column. An entry of the matrix is 1 if the review contains the n-gram, else 0. The columns
        of single words are first.
    """
    from scipy.sparse import csr_matrix, hstack

    review_of = np.repeat(np.arange(len(split)), np.diff(split.offsets))
    all_codes: list[Ints] = []
    parts = []
    for numbers, codes in numbered_ngrams(split, known, max_words):
        all_codes.append(codes)
        is_known = numbers >= 0
        indices = (review_of[: len(numbers)][is_known], numbers[is_known])
        part = csr_matrix((np.ones(len(indices[0])), indices), shape=(len(split), len(codes)))
        part.data[:] = 1.0  # csr_matrix adds up the ones of a repeated n-gram
        parts.append(part)
    return hstack(parts, format="csr"), tuple(all_codes)


def numbered_ngrams(split: Split, known: Ngrams, max_words: int) -> Iterator[tuple[Ints, Ints]]:
    """Number the n-grams of the reviews: first the single words, then the pairs, and so on.

    Args:
        split: the reviews, as ranks of words; a word with a negative rank (such as an unknown word)
            or with the rank UNRANKED is not part of any n-gram.
        known, max_words: as for `binary_ngrams`.

    Yields:
        Two arrays for each length of n-grams. The first array, `[num_tokens - length + 1]`,
        contains the number of the n-gram that begins at each position, or -1 for an unknown n-gram.
        The second array contains the codes (see `Ngrams`) of the n-grams of this length, in the
        order of their numbers.
    """
    review_of = np.repeat(np.arange(len(split)), np.diff(split.offsets))
    numbers = split.tokens[: len(review_of)].astype(np.int64)
    numbers[numbers == UNRANKED] = -1  # a word that only validation or test reviews contain
    words, num_words = numbers, 0
    for length in range(1, max_words + 1):
        if length > 1:
            start, last = numbers[:-1], words[length - 1 :]
            # Codes fit in 64 bits, because n-grams consist of known words only.
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
    """Return the codes that occur in at least two reviews, ascending.

    Args:
        codes: the code of the n-gram at each position, or -1 where there is no n-gram.
        owners: for each code, the index of its review; the indices are in ascending order.
    """
    order = np.argsort(codes, kind="stable")
    order = order[np.searchsorted(codes[order], 0) :]
    ordered = codes[order]
    # The positions at which a new code begins in the sorted array, and the end of the array.
    edges = np.flatnonzero(np.diff(ordered, prepend=-1, append=-1))
    first, last = edges[:-1], edges[1:] - 1
    kept: Ints = ordered[first[owners[order[first]] != owners[order[last]]]]
    return kept


def _number(codes: Ints, known: Ints) -> Ints:
    """Return the index of each code in the sorted array `known`, or -1 for an unknown code."""
    if not len(known):
        return np.full(len(codes), -1)
    at = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    return np.where(known[at] == codes, at, -1)


def log_count_ratios(features: "csr_matrix", is_class: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the log-count ratio of each n-gram for one class, with 1 added to every count.

    Args:
        features: 1 if a review contains an n-gram, else 0, `[num_reviews, num_ngrams]`.
        is_class: whether a review belongs to the class, `[num_reviews]`.

    Returns:
        The ratios, `[num_ngrams]`.
    """
    inside, outside = (
        SMOOTHING + np.asarray(features[chosen].sum(axis=0)).ravel()
        for chosen in (is_class, ~is_class)
    )
    ratios: NDArray[np.float64] = np.log((inside / inside.sum()) / (outside / outside.sum()))
    return ratios


# Files


def to_archive(ngrams: Ngrams, **arrays: Any) -> bytes:
    """Return n-grams and other arrays as the content of a file, which `from_archive` reads."""
    file = io.BytesIO()
    codes: dict[str, Any] = {f"{CODES}{i}": each for i, each in enumerate(ngrams)}
    np.savez(file, **arrays, **codes)
    return file.getvalue()


def from_archive(content: bytes, *names: str) -> tuple[Any, ...]:
    """Return a tuple from the content of a file: the n-grams, then an array for each of `names`.

    Raises:
        ValueError: if `content` is not an archive of n-grams with an array for each of `names`.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            num_lengths = sum(name.startswith(CODES) for name in file)
            ngrams = tuple(file[f"{CODES}{i}"] for i in range(num_lengths))
            return ngrams, *(file[name] for name in names)
    except Exception as error:  # zipfile and NumPy raise many kinds of errors for a broken file
        raise ValueError(f"not an archive of n-grams: {error}") from None


# The ratios at each word


@dataclass(frozen=True)
class NgramRatios:
    """The ratios of n-grams, computed from all training reviews, for use with other reviews."""

    ngrams: Ngrams
    ratios: Floats  # [num_ngrams, num_ratios], single words first

    @property
    def num_channels(self) -> int:
        """The number of log-count ratios that a network reads for each word."""
        return len(self.ngrams) * int(self.ratios.shape[1])

    def at_words(self, split: Split) -> Floats:
        """Return the ratios for each word of the reviews, `[num_tokens, num_channels]`."""
        columns = _columns_at_words(split, self.ngrams)
        return _looked_up(self.ratios, columns)

    def to_bytes(self) -> bytes:
        """Return the n-grams and ratios as the content of a file, which `from_bytes` reads."""
        return to_archive(self.ngrams, ratios=self.ratios)

    @classmethod
    def from_bytes(cls, content: bytes) -> "NgramRatios":
        """Read the content that `to_bytes` returned.

        Raises:
            ValueError: if the content is not an archive of n-grams and ratios.
        """
        return cls(*from_archive(content, "ratios"))


def fit_ratios(training: Split, max_words: int, num_classes: int) -> tuple[NgramRatios, Floats]:
    """Compute the ratios from training reviews.

    Args:
        training: the training reviews, as ranks of words; a word with a negative rank (such as an
            unknown word) is not part of any n-gram.
        max_words: the largest number of words in an n-gram.
        num_classes: the number of classes; for two classes, only label 1 has ratios.

    Returns:
        Two results. The first result contains the ratios from all training reviews, for use with
        other reviews. The second result contains the ratios for each word of the training reviews
        themselves, `[num_tokens, num_channels]`. The second result's ratios for a word are computed
        without the fold that contains the word's review (cross-fitting).
    """
    features, ngrams = binary_ngrams(training, max_words=max_words)
    labels = range(1, 2) if num_classes == 2 else range(num_classes)
    known = np.ones(features.shape[1], np.bool_)
    ratios = NgramRatios(ngrams, _ratios(features, training.labels, labels, known=known))
    columns = _columns_at_words(training, ngrams)
    # The folds are not contiguous blocks, because the reviews may be sorted by class.
    fold_of = np.arange(len(training)) % NUM_FOLDS
    fold_at = np.repeat(fold_of, np.diff(training.offsets))
    at_words = np.zeros((len(columns[0]), ratios.num_channels), np.float32)
    for fold in range(NUM_FOLDS):
        is_other = fold_of != fold
        others = features[is_other]
        # Use only the n-grams that would be known from the other folds alone. The shorter n-grams
        # in a known n-gram are known too, because they occur in at least as many reviews.
        known = np.asarray(others.sum(axis=0)).ravel() >= MIN_REVIEWS
        of_others = _ratios(others, training.labels[is_other], labels, known=known)
        is_here = fold_at == fold
        at_words[is_here] = _looked_up(of_others, [column[is_here] for column in columns])
    return ratios, at_words


def _ratios(
    features: "csr_matrix", labels: NDArray[np.int32], of: range, *, known: NDArray[np.bool_]
) -> Floats:
    """Return each n-gram's ratio for each label in `of`, as an array `[num_ngrams, num_ratios]`.

    The ratios of unknown n-grams are 0.
    """
    ratios = np.zeros((features.shape[1], len(of)), np.float32)
    kept = features[:, known]
    for channel, label in enumerate(of):
        ratios[known, channel] = log_count_ratios(kept, labels == label)
    return ratios


def _columns_at_words(split: Split, ngrams: Ngrams) -> list[Ints]:
    """For each length of n-grams, return an array with the n-gram that ends at each word.

    An entry of an array is the n-gram's column in the matrix that `binary_ngrams` returns, or -1 if
    the n-gram is unknown.
    """
    columns, before = [], 0
    for length, (numbers, codes) in enumerate(numbered_ngrams(split, ngrams, len(ngrams)), 1):
        column = np.full(split.offsets[-1], -1)
        column[length - 1 :] = np.where(numbers >= 0, before + numbers, -1)
        columns.append(column)
        before += len(codes)
    return columns


def _looked_up(ratios: Floats, columns: list[Ints]) -> Floats:
    """Return the ratios of the n-grams that end at each word, `[num_words, num_channels]`."""
    # The added row contains the ratios of column -1.
    padded = np.concatenate([ratios, np.zeros((1, ratios.shape[1]), np.float32)])
    return np.concatenate([padded[column] for column in columns], axis=1)
