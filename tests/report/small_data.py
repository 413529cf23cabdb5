"""A small dataset, on which the runs of `tests.made_up_runs` are tested."""

from pathlib import Path

import numpy as np

from harness.data.dataset import Dataset, make_split
from harness.data.dataset_folder import save_folder
from harness.data.sources import make_dataset

# The last word is markup.
WORDS = ("good", "bad", "film", "<script>alert(1)</script>")


def small_data(folder: Path, num: int = 60) -> Dataset:
    """Return short reviews; the first word shows the label, wrongly in every tenth review."""
    generator = np.random.default_rng(1)
    splits = {}
    for name in ("train", "test"):
        labels = [1] * (num // 2) + [0] * (num // 2)
        reviews = []
        for place, label in enumerate(labels):
            told = label if place % 10 else 1 - label
            extra = generator.integers(3, 5, size=4).tolist()
            reviews.append([1 if told else 2, *extra])
        splits[name] = make_split(reviews, labels)
    dataset = make_dataset(splits["train"], splits["test"], WORDS)
    save_folder(dataset, folder)
    return dataset
