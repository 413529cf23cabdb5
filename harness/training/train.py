"""Trains one run from start to finish: reads the data, fits, tests, and writes the result."""

from typing import Any

import keras

from harness.compute.adversarial import build_step
from harness.compute.device_errors import check_results
from harness.compute.loss import class_weights
from harness.data.input_pipeline import num_steps, test_reviews, training_reviews
from harness.inference.model_file import save_model
from harness.tracking.records import Heartbeat
from harness.training import record
from harness.training.callbacks import own_callbacks
from harness.training.context import Compute, RunContext
from harness.training.failures import recorded_failures, watching
from harness.training.parent import Parent, begin_with
from harness.training.trainer import Trainer


def train(context: RunContext, compute: Compute, *, parent: Parent | None = None) -> dict[str, Any]:
    """Begin or resume a run, train it to its end, and return its result.

    On several nodes all workers call `train` at the same time. Workers other than the chief use a
    temporary folder and a silent console (`harness.training.launch.join_workers`).

    Args:
        parent: the run whose checkpoint or weights this run begins with; None without `--from`, or
            if this run already has a checkpoint.

    Returns:
        The content of `result.json`.

    Raises:
        InputError: if the class weights, a callback, the parent or a checkpoint can't be used.
        Interrupted: if a signal or a lost worker stopped the run, which can be resumed.
        RunError: if the run failed.
    """
    run, job, dataset = context.run, context.job, context.dataset
    training, validation, ratios = training_reviews(job, dataset)
    weights = class_weights(job.train, dataset.classes, training.labels)
    # Custom code may draw random numbers when it is imported, such as the seed of an initializer.
    keras.utils.set_random_seed(job.train.seed)
    callbacks = own_callbacks(job, compute.console.warning)
    steps_per_epoch = num_steps(len(training.labels), job.train.batch_size)
    run.take_lease()
    heartbeat = Heartbeat(run, compute.allocation)
    with (
        recorded_failures(heartbeat, compute.worker_group),
        watching(compute, heartbeat),
    ):
        heartbeat.beat(
            "starting",
            job=job.name,
            architecture=job.model.architecture,
            seed=job.train.seed,
            num_epochs=job.train.epochs,
        )
        record.record_start(context, compute, parent, ratios)
        train_step = build_step(
            job,
            compute.strategy,
            compute.plan,
            num_outputs=dataset.num_outputs,
            vectors=context.vectors,
            steps_per_epoch=steps_per_epoch,
            class_weights=weights,
        )
        if parent and compute.is_chief:  # the other workers get the chief's checkpoint
            compute.console.info(parent.describe())
            for line in begin_with(parent, context, train_step):
                compute.console.warning(line)
        trainer = Trainer(context, compute, train_step, training, callbacks, heartbeat)
        trainer.prepare()
        with trainer.log, trainer.saved_when_interrupted():
            kernels = record.record_kernels(trainer)
            if trainer.is_new:
                record.log_run(trainer)

            trainer.fit(validation)

            scores = {}
            if job.data.test:
                test = test_reviews(job, dataset, ratios)
                scores = record.score_test(trainer, test)
            if len(validation.labels):
                scores |= record.score_validation(trainer, validation)
            trial = compute.trial
            if not trial:
                record.record_gpu_gb(run)
            result = record.result_of(trainer, validation, kernels=kernels, scores=scores)
            if trial and (score := result.get(trial.objective)) is not None:
                trainer.log.scores("search", {trial.objective: score})
            save_model(run, train_step.export_model)
            check_results()
        record.finish(context, heartbeat, result)
    return result
