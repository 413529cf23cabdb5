"""The words of reviews in a file, too many for memory: counted, and written in another order."""

from pathlib import Path

import numpy as np

from harness.data.dataset import parts_of


class Spooled:
    """Numbers of words, `int32` one after another in a file, in the order of the reviews."""

    def __init__(self, path: Path, lengths: np.ndarray) -> None:
        self.path, self.lengths = path, lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def counts(self, chosen: np.ndarray, num_words: int) -> np.ndarray:
        """How often each word occurs in some reviews, `[num_words] int64`.

        Args:
            chosen: `[num_reviews] bool`.
            num_words: different ones.
        """
        counts = np.zeros(num_words, np.int64)
        with self.path.open("rb") as file:
            for part in parts_of(self.starts):
                lengths = self.lengths[part]
                numbers = np.fromfile(file, np.int32, int(lengths.sum()))
                np.add.at(counts, numbers[np.repeat(chosen[part], lengths)], 1)
        return counts

    def offsets(self, order: np.ndarray) -> np.ndarray:
        """Where each review begins in a file of another order, and the end, `int64`."""
        return np.concatenate([[0], np.cumsum(self.lengths[order], dtype=np.int64)])

    def write_arranged(self, path: Path, order: np.ndarray, ranks: np.ndarray) -> None:
        """Write the reviews of an order as an array of NumPy's, `[num_tokens] int32`.

        Args:
            order: numbers of reviews.
            ranks: the rank of each word's number.
        """
        offsets = self.offsets(order)
        with path.open("wb") as file:
            header = {"descr": "<i4", "fortran_order": False, "shape": (int(offsets[-1]),)}
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts_of(offsets):
                # Mapped anew for each part: pages that were read count as memory while mapped.
                numbers = np.memmap(self.path, np.int32, mode="r")
                lengths, first = self.lengths[order[part]], offsets[part.start]
                # Each word's index: its review's start there plus its offset in the review.
                moved = self.starts[order[part]] - (offsets[part.start : part.stop] - first)
                indices = np.repeat(moved, lengths) + np.arange(lengths.sum())
                ranks[numbers[indices]].astype("<i4").tofile(file)
