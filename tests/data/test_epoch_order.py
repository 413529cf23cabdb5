"""The order of an epoch: a function of seed, epoch and lengths, with or without `data.bucket`."""

from collections.abc import Callable

import numpy as np
import pytest

from harness.data import input_pipeline
from harness.data.input_pipeline import (
    BatchShape,
    epoch_by_length,
    epoch_permutation,
    num_steps,
    padded_lengths,
    permutations_ahead,
)

PLAIN = BatchShape(4, 200)


def lengths_of(num_reviews: int) -> np.ndarray:
    """Lengths from 1 to 1,000 words, most of them short."""
    return np.random.default_rng(1).geometric(1 / 240, num_reviews).clip(1, 1000)


def test_memory_limits_the_epochs_of_one_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset always contains at least one epoch."""
    assert len(permutations_ahead(1, range(3, 10), lengths_of(11), shape=PLAIN)) == 7
    monkeypatch.setattr(input_pipeline, "MAX_PERMUTED", 25)
    assert len(permutations_ahead(1, range(3, 10), lengths_of(11), shape=PLAIN)) == 2
    assert len(permutations_ahead(1, range(3, 10), lengths_of(26), shape=PLAIN)) == 1
    assert len(permutations_ahead(1, range(3, 3), lengths_of(11), shape=PLAIN)) == 1


def by_length(seed: int, epoch: int, num_reviews: int) -> np.ndarray:
    return epoch_by_length(seed, epoch, lengths_of(num_reviews), batch_size=7)


@pytest.mark.parametrize("order_of", [epoch_permutation, by_length])
@pytest.mark.parametrize("num_reviews", [5, 7, 1000])
def test_an_epoch_has_every_review_once(
    order_of: Callable[[int, int, int], np.ndarray], num_reviews: int
) -> None:
    """The order differs between seeds and between epochs."""
    orders = [order_of(*which, num_reviews) for which in ((1, 0), (1, 1), (2, 0))]
    assert num_reviews < 10 or len({order.tobytes() for order in orders}) == 3
    for order in orders:
        assert sorted(order.tolist()) == list(range(num_reviews))


def test_an_order_is_the_same_with_another_numpy() -> None:
    """Another version of NumPy must not change the order of a resumed run."""
    lengths = np.array([3, 9, 1, 5, 5, 2, 7, 4])
    assert epoch_permutation(1, 0, 8).tolist() == [0, 5, 4, 1, 2, 6, 3, 7]
    assert epoch_by_length(1, 0, lengths, batch_size=2).tolist() == [4, 3, 6, 1, 0, 7, 2, 5]


def test_a_smaller_last_batch_is_a_step() -> None:
    """The number of steps is rounded up."""
    assert [num_steps(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]


def test_by_length_batches_hold_similar_lengths_in_random_order() -> None:
    """A pool of reviews is sorted by length and cut into batches, which are then shuffled."""
    lengths = lengths_of(400)
    batches = lengths[epoch_by_length(3, 1, lengths, batch_size=8)].reshape(-1, 8)  # one pool
    by_length = batches[np.argsort(batches[:, 0], kind="stable")]
    np.testing.assert_array_equal(by_length.ravel(), np.sort(lengths))
    assert (np.diff(batches[:, 0]) < 0).sum() > 10


@pytest.mark.parametrize("bucket", [False, True])
def test_an_order_does_not_depend_on_where_the_run_was_resumed(bucket: bool) -> None:
    """A dataset of several epochs has the order of each epoch."""
    lengths = lengths_of(30)
    together = permutations_ahead(7, range(2, 5), lengths, shape=BatchShape(4, 200, bucket))
    for epoch, order in zip((2, 3, 4), together, strict=True):
        alone = epoch_permutation(7, epoch, 30)
        if bucket:
            alone = epoch_by_length(7, epoch, lengths, batch_size=4)
        np.testing.assert_array_equal(order, alone)


@pytest.mark.parametrize("maxlen", [1, 8, 9, 200, 5000])
def test_the_lengths_of_batches_are_few(maxlen: int) -> None:
    """The greatest length is `maxlen`; each length exceeds the previous one by at most a fifth."""
    lengths = padded_lengths(maxlen)
    assert lengths[-1] == maxlen
    assert (np.diff(lengths) > 0).all()
    assert (lengths[1:] <= 1.19 * lengths[:-1] + 1).all()
    assert len(lengths) <= 40
    assert lengths[0] >= min(8, maxlen)
