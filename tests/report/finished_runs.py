"""Finished runs that were never trained, for tests that read no model."""

import json
from pathlib import Path

import numpy as np

from harness.data.dataset import Dataset, vocab_to_bytes
from harness.job.job_file import load_job
from harness.tracking.run_dir import stamped
from harness.training.metrics import test_scores as scores_of
from tests.conftest import JOBS
from tests.made_up_runs import write_run


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
    test = noisy(dataset.test.labels, 10 * seed, noise=noise)
    write_run(
        folder,
        job.to_toml(),
        job=job.name,
        seed=seed,
        data=dataset.title,
        dataset_checksum=dataset.checksum,
        classes=[*dataset.classes],
        num_training=cut,
        validation_is_given=bool(dataset.num_validation and job.data.validation_split),
        num_test=len(dataset.test),
        parameters=100,
        recurrent_parameters=10,
        training_s=1.5,
        **scores_of(dataset.test.labels, test),
    )
    np.savez(folder / "predictions.npz", probabilities=test, labels=dataset.test.labels)
    if job.data.validation_split:
        labels = train.labels[cut:]
        validation = noisy(labels, 10 * seed + 1, noise=noise)
        np.savez(folder / "validation_predictions.npz", probabilities=validation, labels=labels)
    (folder / "model.keras").write_bytes(f"model {seed} of {folder}".encode())
    (folder / "vocabulary.txt").write_bytes(vocab_to_bytes(dataset.vocab))
    record = {"dataset": {"checksum": dataset.checksum, "folder": str(dataset.folder)}}
    (folder / "provenance.json").write_text(json.dumps(stamped(record)))
    return folder
