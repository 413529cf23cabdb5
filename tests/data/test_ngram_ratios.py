"""The n-gram ratios that a network reads beside the words."""

import numpy as np
import pytest

from harness.data.dataset import Split
from harness.data.ngrams import NUM_FOLDS, NgramRatios, binary_ngrams, fit_ratios, log_count_ratios
from harness.data.vocabulary import UNRANKED


def made_up(num_reviews: int, num_classes: int = 2, seed: int = 1) -> Split:
    """Reviews of 1 to 30 words; the frequent words depend on the class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, num_reviews).astype(np.int32)
    lengths = generator.integers(1, 31, num_reviews)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ranks = generator.integers(-1, 20, offsets[-1]) + 3 * np.repeat(labels, lengths)
    return Split(ranks.astype(np.int32), offsets, labels)


def reviews_at(split: Split, chosen: np.ndarray) -> Split:
    return split.arranged(np.flatnonzero(chosen))


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("max_words", [1, 3])
def test_a_training_review_gets_the_ratios_of_the_other_folds(
    num_classes: int, max_words: int
) -> None:
    """The ratios equal those of a fit without the review's own fold."""
    split = made_up(103, num_classes)
    _, at_words = fit_ratios(split, max_words, num_classes)
    num_channels = max_words * (1 if num_classes == 2 else num_classes)
    assert at_words.shape == (len(split.tokens), num_channels)
    for fold in range(NUM_FOLDS):
        is_here = np.arange(len(split)) % NUM_FOLDS == fold
        of_others, _ = fit_ratios(reviews_at(split, ~is_here), max_words, num_classes)
        expected = of_others.at_words(reviews_at(split, is_here))
        of_words = np.repeat(is_here, np.diff(split.offsets))
        np.testing.assert_array_equal(at_words[of_words], expected)
        assert len(np.unique(expected)) > 10


def test_a_word_has_the_ratios_of_the_ngrams_that_end_there() -> None:
    """The ratio is 0 where no n-gram ends, or if fewer than two reviews contain the n-gram."""
    rows = [[5, 6, 7], [5, 6, 7], [8, 6], [-1, 6, 8], [9]]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    split = Split(np.concatenate(rows).astype(np.int32), offsets, np.array([1, 1, 0, 0, 0]))
    ratios, _ = fit_ratios(split, 3, 2)
    features, ngrams = binary_ngrams(split)
    unknown = np.where(split.tokens < 0, UNRANKED, split.tokens)  # as in a validation split
    same, codes = binary_ngrams(Split(unknown, offsets, split.labels))
    assert (same != features).nnz == 0
    assert [*map(list, codes)] == [*map(list, ngrams)]
    by_hand = log_count_ratios(features, split.labels == 1).astype(np.float32)
    assert [list(codes) for codes in ngrams[:1]] == [[5, 6, 7, 8]]
    assert [len(codes) for codes in ngrams] == [4, 2, 1]  # two bigrams, 5 6 and 6 7; a trigram
    one, two, three = np.split(by_hand, [4, 6])
    expected = np.zeros((12, 3), np.float32)
    expected[:, 0] = [*one[:3], *one[:3], one[3], one[1], 0, one[1], one[3], 0]
    expected[[1, 4], 1], expected[[2, 5], 1] = two[0], two[1]
    expected[[2, 5], 2] = three[0]
    np.testing.assert_array_equal(ratios.at_words(split), expected)


@pytest.mark.parametrize("num_reviews", [1, 6])
def test_reviews_without_common_ngrams_give_zeros(num_reviews: int) -> None:
    """No ratio is infinite, and a file without n-grams can be read."""
    split = Split(
        np.arange(1, num_reviews + 1, dtype=np.int32),
        np.arange(num_reviews + 1),
        np.zeros(num_reviews, np.int32),
    )
    ratios, at_words = fit_ratios(split, 3, 2)
    assert not at_words.any()
    assert not NgramRatios.from_bytes(ratios.to_bytes()).at_words(made_up(5)).any()
