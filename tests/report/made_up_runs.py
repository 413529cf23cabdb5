"""Folders of runs as training leaves them, without the training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.dataset import Dataset, make_split
from harness.data.dataset_folder import save_folder
from harness.data.imdb import make_dataset
from harness.training.metrics import test_scores as scores_of

RECURRENT = {"rnn": 2080, "lstm": 8320, "gru": 6240, "bilstm": 16640, "stacked_lstm": 16640}
# The last one stands in reviews and would be markup.
WORDS = ("good", "bad", "film", "<script>alert(1)</script>")


def write_run(folder: Path, toml: str = "", **changed: Any) -> None:
    """A finished run with the least that is to be compared."""
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(toml)
    result = {
        "job": "lstm",
        "architecture": "lstm",
        "data": "IMDB",
        "dataset_checksum": "a",
        "limit": 0,
        "seed": 1,
        "accuracy": 0.87,
        "recurrent_parameters": 8320,
        "training_s": 10.0,
    }
    (folder / "result.json").write_text(json.dumps(result | changed))


def small_data(folder: Path, num: int = 60) -> Dataset:
    """A dataset of short reviews, in which the words tell the label but for every tenth."""
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


def write_scored_run(folder: Path, dataset: Dataset, right: Sequence[bool], **changed: Any) -> None:
    """A run with predictions that are right where it is said, curves and a record."""
    architecture = changed.get("architecture", "lstm")
    labels = dataset.test.labels
    sure = np.linspace(0.6, 0.99, len(labels))
    probabilities = np.where(np.asarray(right) == (labels == 1), sure, 1 - sure).astype(np.float32)
    seed = changed.get("seed", 1)
    write_run(
        folder,
        f"[data]\nmaxlen = 3\nvocab_size = 8\n[train]\nseed = {seed}\n",
        **{
            "job": architecture,
            "data": dataset.title,
            "dataset_checksum": dataset.checksum,
            "num_test": len(labels),
            "parameters": 250_000 + RECURRENT[architecture],
            "recurrent_parameters": RECURRENT[architecture],
            **scores_of(labels, probabilities),
            **changed,
        },
    )
    np.savez(folder / "predictions.npz", probabilities=probabilities, labels=labels)
    lines = [
        {"epoch": epoch, "loss": 0.7 / epoch + seed / 100, "val_accuracy": 0.8 + epoch / 100}
        for epoch in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    record = {"commit": "c" * 40, "python": "3.11.7", "processor": "Xeon <&>", "packages": {}}
    (folder / "provenance.json").write_text(json.dumps(record))
