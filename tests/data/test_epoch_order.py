"""The order of an epoch: a function of seed, epoch and lengths, with or without `data.bucket`."""

import numpy as np
import pytest

from harness.data import epoch_order
from harness.data.epoch_order import (
    BatchShape,
    epoch_by_length,
    epoch_permutation,
    num_steps,
    padded_lengths,
    permutations_ahead,
    time_steps,
)

PLAIN = BatchShape(4, 200)


def lengths_of(num_reviews: int) -> np.ndarray:
    """Lengths from 1 to 1,000 words, most of them short."""
    return np.random.default_rng(1).geometric(1 / 240, num_reviews).clip(1, 1000)


def test_memory_limits_the_epochs_of_one_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset always contains at least one epoch."""
    assert len(permutations_ahead(1, range(3, 10), lengths_of(11), shape=PLAIN)) == 7
    monkeypatch.setattr(epoch_order, "MAX_PERMUTED", 25)
    assert len(permutations_ahead(1, range(3, 10), lengths_of(11), shape=PLAIN)) == 2
    assert len(permutations_ahead(1, range(3, 10), lengths_of(26), shape=PLAIN)) == 1
    assert len(permutations_ahead(1, range(3, 3), lengths_of(11), shape=PLAIN)) == 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    """Another version of NumPy must not change the order of a resumed run."""
    permutations = [epoch_permutation(seed, epoch, 50) for seed in (1, 2) for epoch in (0, 1)]
    assert len({order.tobytes() for order in permutations}) == 4
    for order in permutations:
        assert sorted(order.tolist()) == list(range(50))
    np.testing.assert_array_equal(permutations[0], epoch_permutation(1, 0, 50))
    assert epoch_permutation(1, 0, 8).tolist() == [0, 5, 4, 1, 2, 6, 3, 7]


def test_a_smaller_last_batch_is_a_step() -> None:
    """The number of steps is rounded up."""
    assert [num_steps(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]


@pytest.mark.parametrize(("num_reviews", "batch_size"), [(1000, 7), (5, 7), (7, 7)])
def test_by_length_an_epoch_has_every_review_once(num_reviews: int, batch_size: int) -> None:
    """The order differs between seeds and between epochs."""
    lengths = lengths_of(num_reviews)
    orders = [
        epoch_by_length(*which, lengths, batch_size=batch_size)
        for which in ((1, 0), (1, 1), (2, 0))
    ]
    if num_reviews == 1000:
        assert len({order.tobytes() for order in orders}) == 3
    for order in orders:
        assert sorted(order.tolist()) == list(range(num_reviews))
    np.testing.assert_array_equal(orders[0], epoch_by_length(1, 0, lengths, batch_size=batch_size))


def test_by_length_the_order_is_the_same_with_another_numpy() -> None:
    """Another version of NumPy must not change the order of a resumed run."""
    lengths = np.array([3, 9, 1, 5, 5, 2, 7, 4])
    assert epoch_by_length(1, 0, lengths, batch_size=2).tolist() == [4, 3, 6, 1, 0, 7, 2, 5]


def test_by_length_batches_hold_similar_lengths_in_random_order() -> None:
    """A pool of reviews is sorted by length and cut into batches, which are then shuffled."""
    lengths = lengths_of(400)
    batches = lengths[epoch_by_length(3, 1, lengths, batch_size=8)].reshape(-1, 8)  # one pool
    by_length = batches[np.argsort(batches[:, 0], kind="stable")]
    np.testing.assert_array_equal(by_length.ravel(), np.sort(lengths))
    assert (np.diff(batches[:, 0]) < 0).sum() > 10


@pytest.mark.parametrize("bucket", [False, True])
def test_several_epochs_of_one_dataset_are_those_of_several_datasets(bucket: bool) -> None:
    """An epoch's order does not depend on where the run was resumed."""
    lengths, shape = lengths_of(30), BatchShape(4, 200, bucket)
    together = permutations_ahead(7, range(2, 5), lengths, shape=shape)
    single = [permutations_ahead(7, range(e, e + 1), lengths, shape=shape)[0] for e in (2, 3, 4)]
    np.testing.assert_array_equal(together, single)


@pytest.mark.parametrize("maxlen", [1, 8, 9, 200, 5000])
def test_the_lengths_of_batches_are_few(maxlen: int) -> None:
    """The greatest length is `maxlen`; each length exceeds the previous one by at most a fifth."""
    lengths = padded_lengths(maxlen)
    assert lengths[-1] == maxlen
    assert (np.diff(lengths) > 0).all()
    assert (lengths[1:] <= 1.19 * lengths[:-1] + 1).all()
    assert len(lengths) <= 40
    assert lengths[0] >= min(8, maxlen)


def test_a_batch_has_room_for_its_longest_review() -> None:
    """The last batch of an epoch has room, too. No batch spans two epochs."""
    lengths = np.array([1, 30, 2, 60, 5])
    orders = np.array([[0, 2, 4, 1, 3], [3, 2, 0, 4, 1]])
    found = time_steps(orders, lengths, BatchShape(2, 60, bucket=True)).tolist()
    assert found == [8, 30, 60, 60, 8, 30]
