"""Finished runs that were never trained, for tests that read no model."""

import json
from pathlib import Path

import numpy as np

from harness.data.dataset import Dataset, vocab_to_bytes
from harness.job.job_file import load_job
from harness.tracking.run_dir import stamped
from tests.conftest import JOBS
from tests.made_up_runs import write_scored_run


def noisy(labels: np.ndarray, seed: int, *, noise: float = 1.0) -> np.ndarray:
    """Return probabilities of label 1 that depend on the labels, `[num_reviews] float32`."""
    generator = np.random.default_rng(seed)
    logits = np.where(labels == 1, 1.0, -1.0) + noise * generator.normal(size=len(labels))
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def write_finished(
    folder: Path, dataset: Dataset, seed: int, *settings: str, noise: float = 1.0
) -> Path:
    """Write a run of the LSTM with test and validation predictions; return its folder."""
    job = load_job(JOBS / "lstm.toml", ["data.vocab_size=8", "data.maxlen=3", *settings], seed)
    train, cut = dataset.used(0, job.data.validation_split)
    labels = dataset.test.labels
    write_scored_run(
        folder,
        dataset,
        (noisy(labels, 10 * seed, noise=noise) > 0.5) == labels,
        toml=job.to_toml(),
        job=job.name,
        seed=seed,
        classes=[*dataset.classes],
        num_training=cut,
        validation_is_given=bool(dataset.num_validation and job.data.validation_split),
        parameters=100,
        training_s=1.5,
    )
    if job.data.validation_split:
        labels = train.labels[cut:]
        validation = noisy(labels, 10 * seed + 1, noise=noise)
        np.savez(folder / "validation_predictions.npz", probabilities=validation, labels=labels)
    (folder / "model.keras").write_bytes(f"model {seed} of {folder}".encode())
    (folder / "vocabulary.txt").write_bytes(vocab_to_bytes(dataset.vocab))
    record = {"dataset": {"checksum": dataset.checksum, "folder": str(dataset.folder)}}
    (folder / "provenance.json").write_text(json.dumps(stamped(record)))
    return folder
