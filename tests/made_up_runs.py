"""Writes folders of finished runs, as training leaves them, without training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.dataset import OFFICIAL, Dataset
from harness.tracking.run_dir import stamped
from harness.training.metrics import test_scores as scores_of

RECURRENT = {"rnn": 2080, "lstm": 8320, "gru": 6240, "bilstm": 16640, "stacked_lstm": 16640}


def write_run(folder: Path, toml: str = "", **changed: Any) -> None:
    """Write a finished run: `toml` is its job, and `changed` replaces items of its result."""
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(toml)
    result = {
        "job": "lstm",
        "architecture": "lstm",
        "data": "IMDB",
        "dataset_checksum": OFFICIAL,
        "classes": ["negative", "positive"],
        "limit": 0,
        "seed": 1,
        "accuracy": 0.87,
        "recurrent_parameters": 8320,
        "training_s": 10.0,
    }
    (folder / "result.json").write_text(json.dumps(result | changed))


def write_scored_run(
    folder: Path, dataset: Dataset, right: Sequence[bool], *, toml: str = "", **changed: Any
) -> None:
    """Write a finished run with predictions, curves and a record.

    Args:
        folder: the new folder of the run.
        dataset: a dataset with two classes.
        right: for each test review, whether its prediction is right.
        toml: the run's job; by default a job with few settings.
        changed: items of the run's result.
    """
    architecture = changed.get("architecture", "lstm")
    labels = dataset.test.labels
    sure = np.linspace(0.6, 0.99, len(labels))
    probabilities = np.where(np.asarray(right) == (labels == 1), sure, 1 - sure).astype(np.float32)
    seed = changed.get("seed", 1)
    write_run(
        folder,
        toml
        or f"[model]\narchitecture = '{architecture}'\n[data]\nmaxlen = 3\nvocab_size = 8\n"
        f"[train]\nseed = {seed}\n",
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
    (folder / "provenance.json").write_text(json.dumps(stamped(record)))
