"""One run, top to bottom, like the notebook it came from: data, fit, test, record."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.layers import Embedding

from harness.compute.execution_plan import ExecutionPlan
from harness.compute.strategy import describe_devices
from harness.data.dataset import Dataset, Split, validation_cut, vocab_to_bytes
from harness.data.input_pipeline import Reviews
from harness.data.vocabulary import encode_split
from harness.errors import InputError, Interrupted, RunError
from harness.inference.model_file import save_model
from harness.job import Job
from harness.layers import count_parameters
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.rendezvous import WorkerGroup
from harness.system.console import Console
from harness.system.resource_monitor import ResourceMonitor
from harness.system.signals import StopRequest
from harness.tracking.heartbeat import Heartbeat
from harness.tracking.provenance import record_kernels, write_provenance
from harness.tracking.run_dir import RunDirectory, run_identity
from harness.training.metrics import (
    calibration_picture,
    confusion_picture,
    roc_picture,
    test_scores,
)
from harness.training.trainer import Trainer

# What an operation of all workers ends with when one does not take part.
LOST_TO_TENSORFLOW = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)


def train(
    run: RunDirectory,
    job: Job,
    dataset: Dataset,
    strategy: tf.distribute.Strategy,
    *,
    devices_asked: str | None,
    allocation: SlurmEnvironment | None,
    stop: StopRequest,
    console: Console,
    plan: ExecutionPlan,
    monitor: ResourceMonitor,
    worker_group: WorkerGroup | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Begin a run, or go on with it where it was, to its result.

    With peers every one of them calls this at the same time; all but the chief with a run, a
    screen and so on that nobody reads. `callbacks` see the ends of epochs beside the job's own,
    those before a restart too.

    Returns:
        The content of `result.json`.

    Raises:
        Interrupted: a signal came; the run is saved and can go on.
        RunError: the run can't go on, and why.
    """
    training, validation = training_reviews(job, dataset)
    run.take_lease()
    heartbeat = Heartbeat(run, allocation)
    with failures_noted(heartbeat, worker_group):
        heartbeat.beat("starting")
        devices = describe_devices(strategy, worker_group)
        plan = agree(plan, worker_group)
        write_provenance(run, dataset, allocation, devices, devices_asked, asdict(plan))
        run.write_text("job.toml", job.to_toml())  # from here on the run is one that can go on
        vocabulary = vocab_to_bytes(known_words(job, dataset))
        run.write("vocabulary.txt", lambda file: file.write(vocabulary))
        identity = run_identity(job, dataset.checksum)
        trainer = Trainer(
            *(
                run,
                job,
                strategy,
                training,
                identity,
                heartbeat,
                stop,
                console,
                worker_group,
                monitor,
            ),
            callbacks,
            plan=plan,
        )
        train_step, log = trainer.train_step, trainer.log
        with log, trainer.saved_when_interrupted():
            kernels = train_step.kernels(trainer.graph)
            record_kernels(run, kernels)
            if trainer.fresh:
                describe_run(trainer)

            trainer.fit(training, validation)

            scores = score_test(trainer, dataset) if job.data.test else {}
            result = {
                **describe_job(job, run),
                **describe_data(job, dataset, training, validation),
                **trainer.summary(),
                **count_parameters(train_step.export_model),
                **scores,
                "devices": [device["device"] for device in devices],
                "kernels": kernels,
            }
            save_model(run, train_step.export_model)
        heartbeat.beat("finished")
        run.write_json("result.json", result)  # last: it says that all the rest is there
    return result


def agree(plan: ExecutionPlan, worker_group: WorkerGroup | None) -> ExecutionPlan:
    """The chief's plan, for all workers: the others may know of other measurements."""
    if worker_group is None:
        return plan
    content = json.dumps(asdict(plan)).encode() if worker_group.is_chief else b""
    return ExecutionPlan(**json.loads(worker_group.share(content)))


def score_test(trainer: Trainer, dataset: Dataset) -> dict[str, Any]:
    """Score the weights to keep on the test set, and record the predictions: the only time that
    a run reads it."""
    test, train_step = test_reviews(trainer.job, dataset), trainer.train_step
    trainer.heartbeat.beat("testing")
    probabilities = train_step.evaluator.probabilities(test, trainer.stop)
    scores = test_scores(test.labels, probabilities)
    arrays: dict[str, Any] = {"probabilities": probabilities, "labels": test.labels}
    trainer.run.write("predictions.npz", lambda file: np.savez(file, **arrays))
    log_test(trainer, dataset, test.labels, probabilities, scores)
    return {"num_test": len(test.labels), **scores}


def training_reviews(job: Job, dataset: Dataset) -> tuple[Reviews, Reviews]:
    """Training and validation reviews; the last share of the training set validates."""
    if len(dataset.train) < 2 or not len(dataset.test):
        raise InputError(
            f"data {dataset.folder}: {len(dataset.train)} training and {len(dataset.test)} test "
            "reviews, should be at least 2 and 1; give another --data"
        )
    train_set = _encoded(dataset.train, job)
    cut = validation_cut(len(train_set.labels), job.data.validation_split)
    training = train_set.between(0, cut)
    validation = train_set.between(cut, len(train_set.labels))
    return training, validation


def test_reviews(job: Job, dataset: Dataset) -> Reviews:
    """The test set's reviews."""
    return _encoded(dataset.test, job)


def _encoded(split: Split, job: Job) -> Reviews:
    if job.data.limit:
        split = split.take(job.data.limit)
    return Reviews(*encode_split(split, job.data.vocab_size), split.labels)


def known_words(job: Job, dataset: Dataset) -> Sequence[str]:
    """The words that the model knows, the commonest first: those with the indices 4 and up."""
    return dataset.vocab[: job.data.vocab_size - 4]


@contextlib.contextmanager
def failures_noted(heartbeat: Heartbeat, worker_group: WorkerGroup | None = None) -> Iterator[None]:
    """Say in `state.json` how a run ended that did not end well."""
    try:
        with losses_told(worker_group):
            yield
    except Interrupted as reason:
        try:
            heartbeat.interrupted(reason)
        except RunError as refusal:
            _note_failure(heartbeat, refusal)
            raise refusal from None
        raise
    except tf.errors.ResourceExhaustedError:
        error = RunError(
            "the device is out of memory; lower train.batch_size or data.maxlen, or take more "
            "devices"
        )
        _note_failure(heartbeat, error)
        raise error from None
    except Exception as error:
        # Who took the run over cuts its log and clears it up: what fails then fails by that.
        heartbeat.run.check_lease()
        _note_failure(heartbeat, error)
        raise


@contextlib.contextmanager
def losses_told(worker_group: WorkerGroup | None) -> Iterator[None]:
    """Have another worker's end told by its reason, where TensorFlow tells its own trouble."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise
    except tf.errors.OpError as error:
        if worker_group is None:
            raise
        worker_group.explain()
        if isinstance(error, LOST_TO_TENSORFLOW):
            first_line = str(error).splitlines()[0]
            raise Interrupted(f"TensorFlow, which lost another worker: {first_line}") from None
        raise


def _note_failure(heartbeat: Heartbeat, error: Exception) -> None:
    # A full disk or a lost lease takes no note either; the error itself is what counts.
    with contextlib.suppress(RunError):
        heartbeat.beat("failed", error=f"{type(error).__name__}: {error}")


def describe_job(job: Job, run: RunDirectory) -> dict[str, Any]:
    """Which run this is."""
    return {
        "job": job.name,
        "run": run.folder.name,
        "architecture": job.model.architecture,
        "seed": job.train.seed,
    }


def describe_data(
    job: Job, dataset: Dataset, training: Reviews, validation: Reviews
) -> dict[str, Any]:
    """What the scores were measured on."""
    return {
        "data": dataset.title,
        "dataset_checksum": dataset.checksum,
        "is_sample": dataset.is_sample,
        "classes": list(dataset.classes),
        "limit": job.data.limit,
        "num_training": len(training.labels),
        "num_validation": len(validation.labels),
    }


def describe_run(trainer: Trainer) -> None:
    """Write job, model and graph to the TensorBoard log, once a run."""
    job, model = trainer.job, trainer.train_step.export_model
    lines: list[str] = []
    model.summary(line_length=100, print_fn=lines.append)
    trainer.log.text("job", f"```\n{job.to_toml()}```")
    trainer.log.text("model", "```\n" + "\n".join(lines) + "\n```")
    trainer.log.graph(trainer.graph)
    tables = job.model_dump(exclude={"name"})
    flat = {
        f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()
    }
    trainer.log.hyperparameters(flat, f"{job.name}/{trainer.run.folder.name}")


def log_test(
    trainer: Trainer,
    dataset: Dataset,
    labels: np.ndarray,
    probabilities: np.ndarray,
    scores: dict[str, Any],
) -> None:
    """Write the test scores, their pictures and the embedding to the TensorBoard log."""
    log = trainer.log
    log.test(scores)
    picture = confusion_picture(labels, probabilities, dataset.classes)
    log.picture("test/confusion_matrix", picture)
    log.picture("test/calibration", calibration_picture(labels, probabilities))
    if scores["roc_auc"] is not None:
        log.picture("test/roc", roc_picture(labels, probabilities))
    layers = trainer.train_step.export_model.layers
    embeddings = [layer for layer in layers if isinstance(layer, Embedding)]
    if not embeddings:
        return
    matrix = embeddings[0].get_weights()[0]
    words = ["<pad>", "<start>", "<unknown>", "<unused>"]
    words += dataset.vocab[: len(matrix) - len(words)]
    log.embedding(matrix[: len(words)], words)
