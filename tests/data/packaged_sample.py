"""The code that made the packaged sample."""

from pathlib import Path
from typing import Any

import numpy as np

from harness.data.dataset import Dataset, content_checksum
from harness.data.sources import SAMPLE


def make_sample(
    dataset: Dataset, path: Path = SAMPLE, train: int = 5000, *, test: int = 2000
) -> None:
    """Write a sample that consists of the first reviews of each split and all words."""
    splits = {"train": dataset.train.take(train), "test": dataset.test.take(test)}
    checksum = content_checksum(splits["train"], splits["test"], dataset.vocab)
    arrays: dict[str, Any] = {"checksum": np.frombuffer(bytes.fromhex(checksum), np.uint8)}
    for name, split in splits.items():
        # Tokens compress better if all low bytes come first, then all middle, then all high bytes.
        planes = np.asarray(split.tokens, "<i4").view(np.uint8).reshape(-1, 4).T[:3]
        arrays |= {
            f"{name}_planes": np.ascontiguousarray(planes),
            f"{name}_lengths": np.diff(split.offsets).astype(np.uint16),
            f"{name}_labels": np.asarray(split.labels, np.uint8),
        }
    arrays["words"] = np.frombuffer("\n".join(dataset.vocab).encode(), np.uint8)
    np.savez_compressed(path, **arrays)
