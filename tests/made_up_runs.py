"""Writes folders of finished runs, as training leaves them, without training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness import PROJECT
from harness.data.dataset import Dataset
from harness.job.job_file import load_job
from harness.tracking.run_dir import stamped
from harness.training.metrics import test_scores as scores_of

RECURRENT = {"rnn": 2080, "lstm": 8320, "gru": 6240, "bilstm": 16640, "stacked_lstm": 16640}
SEEDS, EPOCHS = (1, 2, 3, 4, 5), 8
# `write_jobs` combines each architecture with each of these values.
UNITS, DROPOUTS, RATES = (16, 32, 64, 128), (0.1, 0.2, 0.3, 0.4, 0.5), (0.001, 0.0005)


def write_run(folder: Path, toml: str = "", **changed: Any) -> None:
    """Write a finished run: `toml` is its job, and `changed` replaces items of its result."""
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(toml)
    result = {
        "job": "lstm",
        "architecture": "lstm",
        "data": "IMDB",
        "dataset_checksum": "a",
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
        toml or f"[data]\nmaxlen = 3\nvocab_size = 8\n[train]\nseed = {seed}\n",
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
    _write_lines(folder / "metrics.jsonl", lines)
    record = {"commit": "c" * 40, "python": "3.11.7", "processor": "Xeon <&>", "packages": {}}
    (folder / "provenance.json").write_text(json.dumps(stamped(record)))


def write_jobs(runs: Path, num: int, dataset: Dataset) -> Path:
    """Write `num` scored runs into a folder, and return it: five seeds of each of up to 200 jobs.

    The jobs are those of the five networks with other units, dropout and learning rate. A network
    with more units predicts more reviews correctly. The seeds of a job differ at random.
    """
    generator = np.random.default_rng(1)
    choices = [(n, d, r, a) for n in UNITS for d in DROPOUTS for r in RATES for a in RECURRENT]
    for index, (units, dropout, rate, architecture) in enumerate(choices[: num // len(SEEDS)]):
        settings = (f"model.units={units}", f"model.dropout={dropout}")
        overrides = [*settings, f"train.learning_rate={rate}"]
        share = 0.82 + 0.01 * UNITS.index(units) + 0.02 * generator.random()
        for seed in SEEDS:
            job = load_job(PROJECT / "jobs" / f"{architecture}.toml", overrides, seed)
            right = generator.random(len(dataset.test)) < share + 0.004 * generator.normal()
            folder = runs / architecture / f"run{index:03}-seed{seed}"
            write_scored_run(
                folder,
                dataset,
                right.tolist(),
                toml=job.to_toml(),
                architecture=architecture,
                seed=seed,
                is_sample=dataset.is_sample,
                val_accuracy=share,
                training_s=EPOCHS * (5.0 + units / 10),
                recurrent_parameters=units * (RECURRENT[architecture] // 32),
            )
            _write_progress(folder, share - 0.002 * seed, 5.0 + units / 10)
    return runs


def _write_progress(folder: Path, highest: float, epoch_s: float) -> None:
    """Write curves whose distance from the final accuracy halves with every epoch."""
    metrics = [
        {"epoch": n, "loss": 1.1 - highest + 0.5**n, "val_accuracy": highest - 0.2 * 0.5**n}
        for n in range(1, EPOCHS + 1)
    ]
    timings = [
        {"epoch": n, "epoch_s": epoch_s, "validation_s": epoch_s / 10} for n in range(1, EPOCHS + 1)
    ]
    _write_lines(folder / "metrics.jsonl", metrics)
    _write_lines(folder / "timings.jsonl", timings)


def _write_lines(path: Path, lines: Sequence[dict[str, float]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
