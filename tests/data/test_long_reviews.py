"""Long reviews in another order, a part at a time."""

import tracemalloc
from collections.abc import Callable

import numpy as np

from harness.data.dataset import Split

NUM, LENGTH = 300, 20_000


def peak_bytes(do: Callable[[], object]) -> int:
    """How much memory a function takes."""
    tracemalloc.start()
    do()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_long_reviews_take_little_memory() -> None:
    """The memory of a few million words, however long the reviews; one may be empty."""
    numbers = np.random.default_rng(1).integers(0, 1000, NUM * LENGTH, np.int32)
    lengths = np.full(NUM, LENGTH, np.int32)
    lengths[[3, 4]] = 0, 2 * LENGTH
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    order = np.arange(NUM)[::-1]
    split = Split(numbers, starts, np.zeros(NUM, np.int32))
    assert peak_bytes(lambda: split.arranged(order)) < 4 * len(numbers) + 50_000_000
    expected = np.concatenate(np.split(numbers, starts[1:-1])[::-1])
    np.testing.assert_array_equal(split.arranged(order).tokens, expected)
    assert len(split.take(0).arranged(order[:0]).tokens) == 0
