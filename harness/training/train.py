"""One run, top to bottom, like the notebook it came from: data, fit, test, record."""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf

from harness.compute import memory
from harness.compute.adversarial import build_step
from harness.compute.device_check import first_use_factor, is_switched_off
from harness.compute.device_errors import check_results
from harness.compute.loss import class_weights
from harness.compute.recurrent import count_parameters, kernels_of, why_slow
from harness.compute.strategy import (
    describe_cuda,
    describe_devices,
    describe_numerics,
    num_own_gpus,
    own_devices,
)
from harness.data.dataset import Dataset, Split, vocab_to_bytes
from harness.data.epoch_order import num_steps
from harness.data.input_pipeline import Reviews
from harness.data.ngrams import NgramRatios, fit_ratios
from harness.errors import InputError, Interrupted, RunError
from harness.inference.model_file import save_model
from harness.inference.predict import RATIOS_FILE
from harness.job.keys import OBJECTIVES, OF_EACH_EPOCH, Job
from harness.job.own_code import mode_in
from harness.job.search import TrialRow
from harness.slurm.environment import node_name, resume_command
from harness.system import processes, watchdog
from harness.tracking.provenance import record_gpu_gb, record_kernels, write_provenance
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import (
    CHECKSUMS,
    PREDICTIONS,
    VALIDATION_PREDICTIONS,
    RunDirectory,
    summary_of,
    take_back_cancel,
)
from harness.training.callbacks import own_callbacks
from harness.training.checkpoint import remove_checkpoints
from harness.training.context import Compute, Observers, RunContext, known_words
from harness.training.failures import recorded_failures
from harness.training.metrics import test_scores
from harness.training.parent import Parent, begin_with, nothing_left_if_refused
from harness.training.pictures import calibration_picture, confusion_picture, roc_picture
from harness.training.trainer import Trainer

MAX_RATIOS = 60  # numbers for each word, of 4 bytes: 240 bytes a word


def train(
    context: RunContext,
    compute: Compute,
    observers: Observers,
    *,
    scores_validation: bool = False,
    row: TrialRow | None = None,
    parent: Parent | None = None,
    takes_back_cancel: bool = False,
) -> dict[str, Any]:
    """Begin a run, or resume it where it was, and train it to its result.

    On several nodes every worker calls this at the same time, all but the chief with a folder and
    a console that nobody reads.

    Args:
        scores_validation: also score the exported weights on the validation reviews by what is
            not computed at each epoch.
        row: in TensorBoard's HParams page, of a trial; any other run has its own.
        parent: the run that this one begins with, if it has no checkpoint yet.
        takes_back_cancel: also train a run that was cancelled alone, of several in a job.

    Returns:
        The content of `result.json`.

    Raises:
        Interrupted: a signal came; the run is saved and can be resumed.
        RunError: the run can't go on, and why.
    """
    run, job, dataset = context.run, context.job, context.dataset
    worker_group = compute.worker_group
    training, validation, ratios = training_reviews(job, dataset)
    weights = class_weights(job.train, dataset.classes, training.labels)
    callbacks = own_callbacks(job)
    run.take_lease()
    if takes_back_cancel:  # now that nothing refuses the run
        take_back_cancel(run.folder)
    heartbeat = Heartbeat(run, compute.allocation)
    with (
        nothing_left_if_refused(run, parent),
        recorded_failures(heartbeat, worker_group),
        watchdog.watching(watched(context, compute, heartbeat)),
    ):
        heartbeat.beat("starting")
        devices = describe_devices(compute.strategy, worker_group)
        record_start(context, compute, devices=devices, parent=parent)
        write_inputs(context, ratios)
        train_step = build_step(
            job,
            compute.strategy,
            compute.plan,
            num_outputs=dataset.num_outputs,
            vectors=context.vectors,
            steps_per_epoch=num_steps(len(training.labels), job.train.batch_size),
            class_weights=weights,
        )
        if parent and not (worker_group and not worker_group.is_chief):  # which shares what it has
            observers.console.info(parent.describe())
            for line in begin_with(parent, context, train_step):
                observers.console.warning(line)
        trainer = Trainer(
            context,
            train_step,
            training,
            heartbeat=heartbeat,
            observers=observers,
            callbacks=callbacks,
        )
        for name in trainer.callbacks.forgetful:
            observers.console.warning(
                f"train.callbacks = {name!r}: offers no save_state and load_state, so a resumed "
                "run begins it anew"
            )
        if worker_group:
            processes.kept.append(trainer)
        began = time.perf_counter()
        trainer.prepare(worker_group)
        with trainer.log, trainer.saved_when_interrupted():
            kernels = kernels_of(train_step.model, trainer.graph, compute.plan.way)
            record_kernels(run, kernels, train_step.in_float32)
            if train_step.in_float32:
                observers.console.info(
                    f"train.precision = {job.train.precision}: in training "
                    f"{', '.join(train_step.in_float32)} computes in float32, because cuDNN's "
                    "gradients in bfloat16 are wrong"
                )
            if num_own_gpus():
                line = why_slow(
                    train_step.model, kernels, compute.plan.way, is_own=job.model.is_own
                )
                if line:
                    observers.console.warning(line)
            if trainer.is_new:
                describe_run(trainer, row, draws_graph=not compute.is_trial)

            trainer.fit(validation)
            fit_s = time.perf_counter() - began

            scores = score_test(trainer, dataset, ratios) if job.data.test else {}
            keeps = not compute.is_trial  # a trial takes neither the time nor the file
            if len(validation.labels) and (keeps or scores_validation):
                of_validation = score_validation(trainer, validation, keeps=keeps)
                scores |= of_validation if scores_validation else {}
            if not compute.is_trial and (gb := memory.measure_gpu_gb()) is not None:
                record_gpu_gb(trainer.run, gb)
            result = {
                **describe_job(job, run),
                **describe_data(context, training, validation),
                **describe_training(trainer),
                "fit_s": round(fit_s, 3),  # of this process, with tracing and validation
                **describe_vectors(context),
                **count_parameters(train_step.export_model),
                **scores,
                "devices": [device["device"] for device in devices],
                "kernels": kernels,
            }
            if row and (score := result.get(row.objective)) is not None:
                trainer.log.objective(row.objective, score)
            save_model(run, train_step.export_model, is_own=job.model.is_own)
            check_results()
            result |= {"identity": context.identity, **checksums_of(run)}
        heartbeat.beat("finished", result=summary_of(result))
        run.write_json("result.json", result)  # last: it says that all the rest is there
    with contextlib.suppress(OSError, RunError):  # the run is finished all the same
        remove_checkpoints(run, but_last=True)
    run.release_lease()
    return result


def watched(context: RunContext, compute: Compute, heartbeat: Heartbeat) -> watchdog.Watched:
    """What the watchdog says and does when a run's devices don't answer."""
    folder, group = context.run.folder, compute.worker_group
    where, next_step = f"{own_devices()} of {node_name()}", f"go on by: {resume_command(folder)}"
    if group:
        others = [node for rank, node in enumerate(group.nodes) if rank != group.rank]
        where += f", or a worker that it waits for ({', '.join(others)})"
    if compute.is_trial:
        next_step = "the search goes on with it"
    elif group and not group.is_chief:
        next_step = f"go on as the line of {group.nodes[0]} says"

    def record(reason: Interrupted) -> int:
        heartbeat.interrupted(reason)
        return reason.exit_code

    return watchdog.Watched(
        where,
        next_step,
        record,
        num_steps=context.job.train.steps_per_execution,
        first_use=first_use_factor(tf.config.get_visible_devices("GPU")),
    )


def record_start(
    context: RunContext,
    compute: Compute,
    *,
    devices: Sequence[Mapping[str, str]],
    parent: Parent | None,
) -> None:
    """Record what this start is made with; from here on the run can be resumed."""
    run, vectors = context.run, context.vectors
    write_provenance(
        run,
        context.dataset,
        allocation=compute.allocation,
        devices_asked=compute.devices,
        plan=asdict(compute.plan),
        start={
            "devices": devices,
            # Refused elsewhere: see `harness.system.site_settings`.
            **({"trusted_network": True} if compute.worker_group else {}),
            **({"embeddings": vectors.checksum} if vectors else {}),
            **describe_numerics(),
            "cuda": describe_cuda(),
            **({"gpus_checked": not is_switched_off()} if num_own_gpus() else {}),
            **({"parent": parent.record()} if parent else {}),
        },
    )
    mode = mode_in(run.folder, context.job.code)
    run.write("job.toml", context.job.to_toml(), mode=mode)


def write_inputs(context: RunContext, ratios: NgramRatios | None) -> None:
    """Write what the model's inputs are made by."""
    vocabulary = vocab_to_bytes(known_words(context.job, context.dataset))
    context.run.write("vocabulary.txt", vocabulary)
    if ratios:
        context.run.write(RATIOS_FILE, ratios.to_bytes())


def checksums_of(run: RunDirectory) -> dict[str, str]:
    """The sha256 of each file that the job decides, as it is on the disk, by `CHECKSUMS`."""
    paths = {key: run.path(name) for name, key in CHECKSUMS.items()}
    return {
        key: hashlib.sha256(path.read_bytes()).hexdigest()
        for key, path in paths.items()
        if path.is_file()
    }


def score_test(trainer: Trainer, dataset: Dataset, ratios: NgramRatios | None) -> dict[str, Any]:
    """Score the exported weights on the test set, and record the predictions.

    No other part of a run reads the test set.
    """
    test = test_reviews(trainer.job, dataset, ratios)
    trainer.heartbeat.beat("testing")
    probabilities = trainer.train_step.evaluator.probabilities(test, trainer.stop)
    scores = test_scores(test.labels, probabilities)
    arrays = {"probabilities": probabilities, "labels": test.labels}
    write_predictions(trainer.run, PREDICTIONS, arrays)
    trainer.log.test(scores)
    log_pictures(trainer, dataset, arrays)
    return {"num_test": len(test.labels), **scores}


def score_validation(trainer: Trainer, validation: Reviews, *, keeps: bool) -> dict[str, Any]:
    """The scores of the exported weights on the validation reviews that no epoch has.

    `val_roc_auc` is None if these have only one class.

    Args:
        keeps: also record the predictions, by which an ensemble of runs chooses its weights.
    """
    trainer.heartbeat.beat("validating")
    probabilities = trainer.train_step.evaluator.probabilities(validation, trainer.stop)
    if keeps:
        arrays = {"probabilities": probabilities, "labels": validation.labels}
        write_predictions(trainer.run, VALIDATION_PREDICTIONS, arrays)
    scores = test_scores(validation.labels, probabilities)
    names = (name for name in OBJECTIVES if name not in OF_EACH_EPOCH)
    return {name: scores[name.removeprefix("val_")] for name in names}


def write_predictions(run: RunDirectory, name: str, arrays: Mapping[str, Any]) -> None:
    """Write `probabilities` and `labels` of the reviews of a part of the data."""
    run.write(name, lambda file: np.savez(file, **arrays))


def training_reviews(job: Job, dataset: Dataset) -> tuple[Reviews, Reviews, NgramRatios | None]:
    """Training and validation reviews, as `Dataset.used` parts them.

    With `model.ngram_ratios` the ratios too, which the training reviews alone decide.
    """
    train, cut = dataset.used(job.data.limit, job.data.validation_split)
    train_set = _encoded(train, job)
    ratios = None
    if job.model.ngram_ratios:
        max_words, num_classes = job.model.ngram_ratios, len(dataset.classes)
        if max_words * dataset.num_outputs > MAX_RATIOS:
            raise InputError(
                f"model.ngram_ratios = {max_words}: with {num_classes} classes gives "
                f"{max_words * dataset.num_outputs} numbers a word, should be at most "
                f"{MAX_RATIOS}; set it to 0, or use fewer classes"
            )
        ratios, at_words = fit_ratios(train_set.between(0, cut).words(), max_words, num_classes)
        others = ratios.at_words(train_set.between(cut, len(train_set.labels)).words())
        train_set = train_set._replace(ratios=np.concatenate([at_words, others]))
    training = train_set.between(0, cut)
    validation = train_set.between(cut, len(train_set.labels))
    return training, validation, ratios


def test_reviews(job: Job, dataset: Dataset, ratios: NgramRatios | None) -> Reviews:
    """The test set's reviews, with the ratios of the training reviews, if there are any."""
    test = dataset.test.take(job.data.limit) if job.data.limit else dataset.test
    reviews = _encoded(test, job)
    return reviews._replace(ratios=ratios.at_words(reviews.words())) if ratios else reviews


def _encoded(split: Split, job: Job) -> Reviews:
    return Reviews(split.tokens, split.offsets, split.labels, job.data.vocab_size)


def describe_job(job: Job, run: RunDirectory) -> dict[str, Any]:
    """Which run this is."""
    return {
        "job": job.name,
        "run": run.folder.name,
        "architecture": job.model.architecture,
        "seed": job.train.seed,
    }


def describe_data(context: RunContext, training: Reviews, validation: Reviews) -> dict[str, Any]:
    """What the scores were measured on."""
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


def describe_vectors(context: RunContext) -> dict[str, Any]:
    """The pretrained vectors of words, if there are any."""
    vectors = context.vectors
    if vectors is None:
        return {}
    return {
        "embeddings": vectors.path.name,
        "embeddings_checksum": vectors.checksum,
        "embeddings_found": len(vectors.found),
        "embeddings_words": vectors.num_words,
    }


def describe_training(trainer: Trainer) -> dict[str, Any]:
    """The results of the training, with the validation scores of the exported epoch."""
    progress = trainer.progress
    exported = progress.best if trainer.best.is_on else progress.history[-1]
    return {
        "num_epochs": len(progress.history),
        "kept_epoch": exported["epoch"],
        "val_loss": exported.get("val_loss"),
        "val_accuracy": exported.get("val_accuracy"),
        "training_s": round(progress.training_s, 3),
        "first_step_s": trainer.first_step.done_s,
        "checkpoint_s": round(trainer.checkpoints.took_s, 3),
        "num_replicas": trainer.train_step.strategy.num_replicas_in_sync,
    }


def describe_run(trainer: Trainer, row: TrialRow | None, *, draws_graph: bool) -> None:
    """Write job, model and graph to the TensorBoard log, once a run.

    The graph is most of a trial's log, and a sweep's trials have the same one.
    """
    job, model = trainer.job, trainer.train_step.export_model
    lines: list[str] = []
    model.summary(line_length=100, print_fn=lines.append)
    trainer.log.text("job", f"```\n{job.to_toml()}```")
    trainer.log.text("model", "```\n" + "\n".join(lines) + "\n```")
    if draws_graph:
        trainer.log.graph(trainer.graph)
    if row:
        trainer.log.hyperparameters(
            row.values, row.name, columns=row.columns, objective=row.objective
        )
        return
    plain = {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in job.settings().items()
    }
    trainer.log.hyperparameters(plain, f"{job.name}/{trainer.run.folder.name}")


def log_pictures(trainer: Trainer, dataset: Dataset, arrays: dict[str, np.ndarray]) -> None:
    """Draw the test set's `probabilities` and `labels` into the TensorBoard log."""
    log, labels, probabilities = trainer.log, arrays["labels"], arrays["probabilities"]
    picture = confusion_picture(labels, probabilities, dataset.classes)
    log.picture("test/confusion_matrix", picture)
    log.picture("test/calibration", calibration_picture(labels, probabilities))
    if labels.min() != labels.max():  # of one class there is no curve
        log.picture("test/roc", roc_picture(labels, probabilities))
