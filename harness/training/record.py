"""Writes a run's record, inputs, predictions and result, and parts of its TensorBoard log."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf

from harness.compute.device_check import is_switched_off
from harness.compute.recurrent import count_parameters, kernels_of, why_slow
from harness.compute.strategy import describe_devices, describe_numerics, num_own_gpus
from harness.data.dataset import vocab_to_bytes
from harness.data.input_pipeline import Reviews
from harness.data.ngrams import NgramRatios
from harness.errors import RunError
from harness.job.keys import OBJECTIVES, OF_EACH_EPOCH
from harness.job.own_code import close_folder
from harness.job.search import TrialRow
from harness.system import gpu
from harness.system.files import sha256_of
from harness.tracking import provenance
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import (
    CHECKSUMS,
    PREDICTIONS,
    RATIOS_FILE,
    RECORD,
    RESULT,
    VALIDATION_PREDICTIONS,
    RunDirectory,
    weights_of,
)
from harness.training.context import Compute, RunContext, known_words
from harness.training.metrics import (
    calibration_picture,
    confusion_picture,
    exported_epoch,
    roc_picture,
    test_scores,
)
from harness.training.parent import Parent
from harness.training.trainer import Trainer

# A cautious guess of the memory of CUDA's context and libraries, which TensorFlow does not count.
# The guess is used if the driver does not report the process's memory.
CONTEXT_GB = 1.0


def record_start(
    context: RunContext, compute: Compute, parent: Parent | None, ratios: NgramRatios | None
) -> None:
    """Record the job, data, plan and devices with which this process begins or resumes the run.

    After this function the run can be resumed. The function also writes the files that convert
    texts to the network's inputs for predictions: the vocabulary and, if the network uses n-grams,
    their log-count ratios.
    """
    run, vectors = context.run, context.vectors
    provenance.write_provenance(
        run,
        context.dataset,
        allocation=compute.allocation,
        devices_asked=compute.devices,
        plan=asdict(compute.plan),
        start={
            "devices": describe_devices(compute.strategy, compute.worker_group),
            # Runs on several nodes need HARNESS_TRUSTED_NETWORK (`harness.slurm.environment`).
            **({"trusted_network": True} if compute.worker_group else {}),
            **({"embeddings": vectors.checksum} if vectors else {}),
            **describe_numerics(),
            **({"gpus_checked": not is_switched_off()} if num_own_gpus() else {}),
            **({"parent": parent.record()} if parent else {}),
        },
    )
    close_folder(run.folder, context.job.code)
    run.write("job.toml", context.job.to_toml())
    vocabulary = vocab_to_bytes(known_words(context.job, context.dataset))
    run.write("vocabulary.txt", vocabulary)
    if ratios:
        run.write(RATIOS_FILE, ratios.to_bytes())


def record_kernels(trainer: Trainer) -> dict[str, str]:
    """Record and return which kernel (such as cuDNN's) computes each recurrent layer.

    On a GPU, warn of the layers that cuDNN does not compute, because these layers are slow.
    """
    job, step = trainer.job, trainer.train_step
    kernels = kernels_of(step.model, trainer.graph, trainer.compute.plan.way)
    added = {"kernels": kernels, "in_float32": step.in_float32}
    trainer.run.write_json(RECORD, {**trainer.run.certain_json(RECORD), **added})
    if step.in_float32:
        trainer.console.info(
            f"train.precision = {job.train.precision}: cuDNN's gradients in bfloat16 are wrong, so "
            f"during training these layers use float32: {', '.join(step.in_float32)}"
        )
    if num_own_gpus() and (line := why_slow(kernels)):
        trainer.console.warning(line)
    return kernels


def log_run(trainer: Trainer) -> None:
    """Write job, model and hyperparameters to the TensorBoard log, once per run."""
    job, model, row = trainer.job, trainer.train_step.export_model, trainer.compute.trial
    lines: list[str] = []
    model.summary(line_length=100, print_fn=lines.append)
    trainer.log.text("job", f"```\n{job.to_toml()}```")
    trainer.log.text("model", "```\n" + "\n".join(lines) + "\n```")
    if not row:  # the run is no trial, so its row shows the keys of the job
        trainer.log.graph(trainer.graph)  # trials log no graph, because graphs are large
        settings = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in job.settings().items()
        }
        row = TrialRow(f"{job.name}/{trainer.run.folder.name}", settings, settings)
    trainer.log.hyperparameters(row)


def score_test(trainer: Trainer, test: Reviews) -> dict[str, Any]:
    """Score the exported weights on the test set. Write the predictions, and log the scores."""
    probabilities, scores = _scored(trainer, test, "testing", PREDICTIONS)
    trainer.log.scores("test", scores)
    classes = trainer.context.dataset.classes
    confusion = confusion_picture(test.labels, probabilities, classes)
    trainer.log.picture("test/confusion_matrix", confusion)
    trainer.log.picture("test/calibration", calibration_picture(test.labels, probabilities))
    if scores["roc_auc"] is not None:
        trainer.log.picture("test/roc_curve", roc_picture(test.labels, probabilities))
    return {"num_test": len(test.labels), **scores}


def score_validation(trainer: Trainer, validation: Reviews) -> dict[str, Any]:
    """Write the validation predictions, from which an ensemble chooses its weights.

    A trial writes no predictions, to save time and space. For a trial, the function returns scores:
    all scores of `OBJECTIVES` except those of `OF_EACH_EPOCH`, which the training loop has computed
    already. `val_roc_auc` is None if all reviews are of one class. If the objective of the search
    is in `OF_EACH_EPOCH`, or the run is no trial, the result is empty.
    """
    trial = trainer.compute.trial
    if trial and trial.objective in OF_EACH_EPOCH:
        return {}
    _, scores = _scored(trainer, validation, "validating", "" if trial else VALIDATION_PREDICTIONS)
    others = [name for name in OBJECTIVES if name not in OF_EACH_EPOCH]
    return {name: scores[name.removeprefix("val_")] for name in others} if trial else {}


def _scored(
    trainer: Trainer, reviews: Reviews, phase: str, name: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return probabilities and scores of the reviews.

    Args:
        phase: the phase of the run for its heartbeat, such as `testing`.
        name: the file to which probabilities and labels are written; "" writes no file.
    """
    trainer.heartbeat.beat(phase)
    probabilities = trainer.train_step.evaluator.probabilities(reviews, trainer.stop)
    scores = test_scores(reviews.labels, probabilities)
    if name:
        arrays: dict[str, Any] = {"probabilities": probabilities, "labels": reviews.labels}
        trainer.run.write(name, lambda file: np.savez(file, **arrays))
    return probabilities, scores


def result_of(
    trainer: Trainer,
    validation: Reviews,
    *,
    kernels: Mapping[str, str],
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of `result.json`."""
    job, progress, vectors = trainer.job, trainer.progress, trainer.context.vectors
    exported = exported_epoch(progress.history, job.train)
    strategy = trainer.compute.strategy
    # Others may not read the record, but `compare` must know that a run did not begin untrained.
    origin = weights_of(trainer.run.certain_json(RECORD))
    return {
        "job": job.name,
        "run": trainer.run.folder.name,
        "architecture": job.model.architecture,
        "seed": job.train.seed,
        **describe_data(trainer.context, trainer.training, validation),
        "num_epochs": len(progress.history),
        "kept_epoch": exported["epoch"],
        "val_loss": exported.get("val_loss"),
        "val_accuracy": exported.get("val_accuracy"),
        "training_s": round(progress.training_s, 3),
        "first_step_s": trainer.first_step_s,
        "num_replicas": strategy.num_replicas_in_sync,
        "fit_s": trainer.fit_s,
        **({"embeddings_checksum": vectors.checksum} if vectors else {}),
        **({"weights_of": origin} if origin else {}),
        **count_parameters(trainer.train_step.export_model),
        **scores,
        "devices": [
            each["device"] for each in describe_devices(strategy, trainer.compute.worker_group)
        ],
        "kernels": kernels,
    }


def record_gpu_gb(run: RunDirectory) -> None:
    """Record how many GB of memory this process uses on its fullest GPU, if it uses a GPU.

    TensorFlow frees no GPU memory before the process ends, so a call at the end of a run records
    the run's peak.
    """
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return
    # In a container with its own process ids, NVML does not report this process's memory. Then use
    # the peak that TensorFlow reports.
    gb = max((each.own_gb for each in gpu.memory_of_gpus().values()), default=0.0)
    if not gb:
        read = tf.config.experimental.get_memory_info
        gb = CONTEXT_GB + max(float(read(f"GPU:{i}")["peak"]) for i in range(len(gpus))) / 1e9
    record = run.certain_json(RECORD)
    record["starts"][-1]["gpu_gb"] = round(gb, 3)
    run.write_json(RECORD, record)


def describe_data(context: RunContext, training: Reviews, validation: Reviews) -> dict[str, Any]:
    """Return the part of a run's result that describes the run's data."""
    dataset = context.dataset
    is_given = bool(dataset.num_validation and len(validation.labels))
    return {
        "data": dataset.title,
        "dataset_checksum": dataset.checksum,
        "is_sample": dataset.is_sample,
        "classes": list(dataset.classes),
        "limit": context.job.data.limit,
        "num_training": len(training.labels),
        "num_validation": len(validation.labels),
        "validation_is_given": is_given,
        "validation_split": 0.0 if is_given else context.job.data.validation_split,
    }


def finish(context: RunContext, heartbeat: Heartbeat, result: dict[str, Any]) -> None:
    """Write the result with the checksums of the run's files, and release the lease."""
    run = context.run
    paths = {key: run.path(name) for name, key in CHECKSUMS.items()}
    checksums = {key: sha256_of(path) for key, path in paths.items() if path.is_file()}
    result |= {"identity": context.identity, **checksums}
    val_accuracy, test_accuracy = result.get("val_accuracy"), result.get("accuracy")
    heartbeat.beat("finished", val_accuracy=val_accuracy, test_accuracy=test_accuracy)
    run.write_json(RESULT, result)  # last, because this file marks the run as complete
    with contextlib.suppress(OSError, RunError):  # the run is complete even if this fails
        for path in run.checkpoints()[:-1]:  # `train --from` needs the last checkpoint
            path.unlink(missing_ok=True)
    run.release_lease()
