"""Long reviews in another order, a part at a time."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from harness.data.dataset import Split
from harness.data.text_dataset import Spooled

NUM, LENGTH = 300, 20_000


def peak_bytes(do: Callable[[], object]) -> int:
    """How much memory a function takes."""
    tracemalloc.start()
    do()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_long_reviews_take_little_memory(tmp_path: Path) -> None:
    """The memory of a few million words, however long the reviews; one may be empty."""
    numbers = np.random.default_rng(1).integers(0, 1000, NUM * LENGTH, np.int32)
    lengths = np.full(NUM, LENGTH, np.int32)
    lengths[[3, 4]] = 0, 2 * LENGTH
    numbers.tofile(tmp_path / "spooled")
    words = Spooled(tmp_path / "spooled", lengths)
    order, ranks = np.arange(NUM)[::-1], np.arange(1000, dtype=np.int32) + 1
    chosen = np.arange(NUM) % 2 == 0
    peak = peak_bytes(lambda: words.write_arranged(tmp_path / "out.npy", order, ranks))
    assert peak < 50_000_000
    assert peak_bytes(lambda: words.counts(chosen, 1000)) < 10_000_000
    reviews = np.split(numbers, words.starts[1:-1])
    expected = np.concatenate(reviews[::-1])
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected + 1)
    kept = np.concatenate(reviews[::2])
    np.testing.assert_array_equal(words.counts(chosen, 1000), np.bincount(kept, minlength=1000))
    split = Split(numbers, words.starts, np.zeros(NUM, np.int32))
    assert peak_bytes(lambda: split.arranged(order)) < 4 * len(numbers) + 50_000_000
    np.testing.assert_array_equal(split.arranged(order).tokens, expected)
    assert len(split.take(0).arranged(order[:0]).tokens) == 0
