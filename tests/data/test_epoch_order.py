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
    """Made-up lengths from 1 to 1,000 words, most of them short."""
    return np.random.default_rng(1).geometric(1 / 240, num_reviews).clip(1, 1000)


def test_epochs_are_opened_together_as_far_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At least one, even where none is left."""
    assert len(permutations_ahead(1, range(3, 10), lengths_of(11), shape=PLAIN)) == 7
    monkeypatch.setattr(epoch_order, "MAX_PERMUTED", 25)
    assert len(permutations_ahead(1, range(3, 10), lengths_of(11), shape=PLAIN)) == 2
    assert len(permutations_ahead(1, range(3, 10), lengths_of(26), shape=PLAIN)) == 1
    assert len(permutations_ahead(1, range(3, 3), lengths_of(11), shape=PLAIN)) == 1


def test_order_is_a_function_of_seed_and_epoch() -> None:
    """Each epoch and each seed has an order of its own, and the same one every time."""
    permutations = [epoch_permutation(seed, epoch, 50) for seed in (1, 2) for epoch in (0, 1)]
    assert len({order.tobytes() for order in permutations}) == 4
    for order in permutations:
        assert sorted(order.tolist()) == list(range(50))
    np.testing.assert_array_equal(permutations[0], epoch_permutation(1, 0, 50))
    # Another NumPy must not change the data of a run that goes on.
    assert epoch_permutation(1, 0, 8).tolist() == [0, 5, 4, 1, 2, 6, 3, 7]


def test_steps_are_rounded_up() -> None:
    """A last batch that is not full is a step too."""
    assert [num_steps(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]


@pytest.mark.parametrize(("num_reviews", "batch_size"), [(1000, 7), (1000, 8), (5, 7), (7, 7)])
def test_by_length_every_review_comes_once_an_epoch(num_reviews: int, batch_size: int) -> None:
    """Whatever fills no batch is in the last one; each seed and epoch has its own order."""
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
    """It must not change the data of a run that goes on."""
    lengths = np.array([3, 9, 1, 5, 5, 2, 7, 4])
    assert epoch_by_length(1, 0, lengths, batch_size=2).tolist() == [4, 3, 6, 1, 0, 7, 2, 5]


def test_by_length_batches_hold_like_lengths_and_come_in_any_order() -> None:
    """In a pool each batch begins where another ended, and short ones do not come first."""
    lengths = lengths_of(400)
    batches = lengths[epoch_by_length(3, 1, lengths, batch_size=8)].reshape(-1, 8)  # one pool
    by_length = batches[np.argsort(batches[:, 0], kind="stable")]
    np.testing.assert_array_equal(by_length.ravel(), np.sort(lengths))
    assert (np.diff(batches[:, 0]) < 0).sum() > 10


def test_by_length_epochs_take_far_fewer_time_steps() -> None:
    """At 1,000 words over three times fewer for lengths like those of IMDB."""
    lengths, shape = lengths_of(20_000), BatchShape(64, 1000, bucket=True)
    orders = permutations_ahead(1, range(2), lengths, shape=shape)
    longest = time_steps(orders, lengths, shape)
    assert len(longest) == 2 * num_steps(20_000, 64)
    assert 1000 / longest.mean() > 3
    assert set(longest.tolist()) <= set(padded_lengths(1000).tolist())


@pytest.mark.parametrize("bucket", [False, True])
def test_epochs_that_are_opened_together_are_those_of_each(bucket: bool) -> None:
    """An epoch's order does not depend on where the run was resumed."""
    lengths, shape = lengths_of(30), BatchShape(4, 200, bucket)
    together = permutations_ahead(7, range(2, 5), lengths, shape=shape)
    single = [permutations_ahead(7, range(e, e + 1), lengths, shape=shape)[0] for e in (2, 3, 4)]
    np.testing.assert_array_equal(together, single)


@pytest.mark.parametrize("maxlen", [1, 7, 8, 9, 60, 200, 5000])
def test_the_lengths_of_batches_are_few(maxlen: int) -> None:
    """They end with `maxlen`, and each is at most a fifth longer than the one below."""
    lengths = padded_lengths(maxlen)
    assert lengths[-1] == maxlen
    assert (np.diff(lengths) > 0).all()
    assert (lengths[1:] <= 1.19 * lengths[:-1] + 1).all()
    assert len(lengths) <= 40
    assert lengths[0] >= min(8, maxlen)


def test_a_batch_has_room_for_its_longest_review() -> None:
    """The last batch of each epoch too, which need not be full; no batch spans two epochs."""
    lengths = np.array([1, 30, 2, 60, 5])
    orders = np.array([[0, 2, 4, 1, 3], [3, 2, 0, 4, 1]])
    found = time_steps(orders, lengths, BatchShape(2, 60, bucket=True)).tolist()
    assert found == [8, 30, 60, 60, 8, 30]
