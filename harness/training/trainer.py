"""The outer loop: what `model.fit` does, and what it can't.

It goes on inside an epoch after any end, with the same bytes as a run that was never disturbed.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from harness.compute.execution_plan import ExecutionPlan
from harness.compute.train_step import TrainStep
from harness.compute.xla_cache import is_offered
from harness.data.input_pipeline import (
    TIMED_FETCHES,
    Batch,
    Reviews,
    batches,
    num_steps,
    permutations_ahead,
    waited_s,
)
from harness.errors import Interrupted, RunError
from harness.job import Job
from harness.slurm.rendezvous import WorkerGroup
from harness.system.console import Console
from harness.system.processes import age_s
from harness.system.resource_monitor import ResourceMonitor
from harness.system.signals import StopRequest
from harness.system.stderr_filter import filtered_stderr
from harness.tracking.heartbeat import Heartbeat
from harness.tracking.run_dir import RunDirectory
from harness.training import checkpoint
from harness.training.actions import keras_callbacks
from harness.training.metrics import binary_loss_and_accuracy
from harness.training.tensorboard_log import TensorBoardLog

STEPS_TO_STOP = 10  # at most, from a worker's signal to the step at which all workers stop
PROFILE_AFTER = 20  # steps, by when graphs are traced and buffers are warm


class Trainer:
    """The course of one run's training; `fit` leaves the weights to keep in `export_model`."""

    def __init__(
        self,
        run: RunDirectory,
        job: Job,
        strategy: tf.distribute.Strategy,
        training: Reviews,
        identity: str,
        heartbeat: Heartbeat,
        stop: StopRequest,
        console: Console,
        worker_group: WorkerGroup | None,
        monitor: ResourceMonitor,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        *,
        plan: ExecutionPlan,
    ) -> None:
        self.run, self.job, self.strategy = run, job, strategy
        train = job.train
        self.heartbeat, self.stop, self.console, self.monitor = heartbeat, stop, console, monitor
        self.train_step = TrainStep(job, strategy, plan)
        self.num_reviews = len(training.labels)
        self.steps_an_epoch = num_steps(self.num_reviews, job.train.batch_size)
        # The order matters: (1) variables and progress, (2) Keras's callbacks from the history,
        # (3) the event log, cut to what the checkpoint knows of.
        self.progress, skipped = checkpoint.restore(run, self.train_step, identity, worker_group)
        for line in skipped:
            console.warning(line)
        self.callbacks = keras_callbacks(train, self.train_step.model, callbacks)
        self._replay()
        self.fresh = not self.progress.event_mark  # nothing is in the log yet
        self._open(training)
        self.graph = self.train_step.trace(self._iterator)
        run.check_lease()  # tracing takes seconds, and the log is cut
        self.log = TensorBoardLog(
            run.path("tensorboard"), self.progress.event_mark, warn=console.warning
        )
        self._write_metrics()
        self._profiling = self._profiled = False
        self.first_step_s: float | None = None  # from this process's start
        self._pending: list[tf.Tensor] = []  # of each execution [steps, 3], still on the device
        self._timed: list[tuple[int, float]] = []  # steps and their seconds, of this epoch's latest
        self._votes = 0.0  # to stop, in the steps so far
        self._drain_every = train.log_every_steps
        if not stop.alone:
            self._drain_every = min(train.log_every_steps, STEPS_TO_STOP)
        self._since = self._saved = time.perf_counter()
        self.checkpoint_s = 0.0  # that this process took to write checkpoints

    @contextlib.contextmanager
    def saved_when_interrupted(self) -> Iterator[None]:
        """Write a checkpoint where a signal ends the run, then let the signal end it."""
        try:
            yield
        except Interrupted:
            self.drain()
            self.save()
            raise
        finally:
            self._stop_profile()

    def summary(self) -> dict[str, Any]:
        """What came of the training."""
        progress = self.progress
        exported = progress.best if self.job.train.keep == "best" else progress.history[-1]
        return {
            "num_epochs": len(progress.history),
            "kept_epoch": exported["epoch"],
            "val_loss": exported.get("val_loss"),
            "val_accuracy": exported.get("val_accuracy"),
            "training_s": round(progress.training_s, 3),
            "first_step_s": self.first_step_s,
            "checkpoint_s": round(self.checkpoint_s, 3),
            "num_replicas": self.strategy.num_replicas_in_sync,
        }

    def _replay(self) -> None:
        rate = float(self.train_step.optimizer.learning_rate.numpy())
        self.callbacks.on_train_begin()
        for line in self.progress.history:
            self.callbacks.on_epoch_end(line["epoch"] - 1, dict(line))
        self.train_step.optimizer.learning_rate.assign(rate)  # the cuts were in it already

    # The outer loop

    def fit(self, training: Reviews, validation: Reviews) -> None:
        """Train all epochs that are left, validating after each."""
        train, progress = self.job.train, self.progress
        self._since = self._saved = time.perf_counter()
        while progress.epoch < train.epochs and not self.train_step.model.stop_training:
            self._train_epoch(training)
            line = self._metrics()
            self.train_step.export_weights()
            if len(validation.labels):
                line |= self._validate(validation)
            self._end_epoch(line)
        if train.keep == "best":
            self.train_step.export_model.set_weights(progress.best_weights)
        else:
            self.train_step.export_weights()

    def _train_epoch(self, training: Reviews) -> None:
        train, progress = self.job.train, self.progress
        if progress.epoch >= self._open_until:
            self._open(training)
        done = progress.step
        while done < self.steps_an_epoch:
            self.stop.check()
            num = min(train.steps_per_execution, self.steps_an_epoch - done)
            self._profile(done)
            with self._clocked():
                self._pending.append(
                    self.train_step.train_steps(self._iterator, num, self.stop.vote)
                )
            before, done = done, done + num
            # At the same steps on every worker, wherever in the epoch it began.
            every = self._drain_every
            if done // every > before // every or done == self.steps_an_epoch:
                self.drain()
                self.stop.agree(self._votes)
            if time.perf_counter() - self._saved >= train.checkpoint_every_s:
                self.drain()
                self.save()

    @contextlib.contextmanager
    def _clocked(self) -> Iterator[None]:
        """Note when this process's first step was done."""
        if self.first_step_s is not None:
            yield
            return
        # Not where it compiles: should it crash, what it says must not be held back.
        with filtered_stderr() if is_offered() else contextlib.nullcontext():
            yield
            self._pending[0].numpy()  # the clock counts when the step is done
        self.first_step_s = round(age_s() or 0.0, 3)
        self.heartbeat.beat("training", first_step_s=self.first_step_s)

    def _open(self, training: Reviews) -> None:
        """Open the batches from here on, of as many epochs as are opened together."""
        train, progress = self.job.train, self.progress
        epochs = range(progress.epoch, train.epochs)
        permutations = permutations_ahead(train.seed, epochs, self.num_reviews)
        self._open_until = progress.epoch + len(permutations)
        self._iterator: Iterator[Batch] = iter(
            batches(
                self.strategy,
                training,
                permutations,
                batch_size=train.batch_size,
                maxlen=self.job.data.maxlen,
                first_step=progress.step,
                steps_before=progress.epoch * self.steps_an_epoch,
                timed=True,
            )
        )

    def _validate(self, validation: Reviews) -> dict[str, float]:
        began = time.perf_counter()
        self.heartbeat.beat("validating")
        probabilities = self.train_step.evaluator.probabilities(validation, self.stop)
        loss, accuracy = binary_loss_and_accuracy(validation.labels, probabilities)
        if not np.isfinite(loss):
            raise RunError(f"the validation loss is not finite in epoch {self.progress.epoch + 1}")
        return {
            "val_loss": loss,
            "val_accuracy": accuracy,
            "validation_s": round(time.perf_counter() - began, 3),
        }

    def _end_epoch(self, line: dict[str, Any]) -> None:
        progress, train = self.progress, self.job.train
        progress.history.append(line)
        sign = 1 if train.monitor == "val_loss" else -1
        if train.keep == "best" and (
            not progress.best_epoch
            or sign * line[train.monitor] < sign * progress.best[train.monitor]
        ):
            progress.best_epoch = line["epoch"]
            progress.best_weights = self.train_step.export_model.get_weights()
        progress.epoch, progress.step = line["epoch"], 0
        progress.loss_sum = progress.num_correct = progress.epoch_s = 0.0
        train_line = {k: line[k] for k in ("loss", "accuracy", "learning_rate", "reviews_per_s")}
        validation_line = {k: line[f"val_{k}"] for k in ("loss", "accuracy") if f"val_{k}" in line}
        self.log.epoch(line["epoch"], train=train_line, validation=validation_line)
        self.callbacks.on_epoch_end(line["epoch"] - 1, dict(line))
        self.save()
        self._write_metrics()
        self.console.epoch(line, train.epochs)
        self._since = time.perf_counter()

    def _metrics(self) -> dict[str, Any]:
        progress = self.progress
        return {
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / self.num_reviews,
            "accuracy": progress.num_correct / self.num_reviews,
            "learning_rate": float(self.train_step.optimizer.learning_rate.numpy()),
            "epoch_s": round(progress.epoch_s, 3),
            "reviews_per_s": round(self.num_reviews / max(progress.epoch_s, 1e-9), 1),
        }

    def _write_metrics(self) -> None:
        # The whole file anew: a line that was appended twice or by half could not be told.
        lines = [json.dumps(line, allow_nan=False) + "\n" for line in self.progress.history]
        self.run.write_text("metrics.jsonl", "".join(lines))

    # Between steps

    def drain(self) -> None:
        """Bring the figures of the steps since the last time from the device, and note them.

        Raises:
            RunError: at a loss that is not finite, with its step.
        """
        if not self._pending:
            return
        self.run.check_lease()
        # The last value arrives when the last step is done: only now does the clock tell.
        sums = np.concatenate([part.numpy() for part in self._pending])
        now = time.perf_counter()
        took, self._since = now - self._since, now
        self._pending = []
        progress, train = self.progress, self.job.train
        first = progress.epoch * self.steps_an_epoch + progress.step
        sizes = np.full(len(sums), float(train.batch_size))
        if progress.step + len(sums) == self.steps_an_epoch:
            sizes[-1] = self.num_reviews - train.batch_size * (self.steps_an_epoch - 1)
        losses, accuracies = sums[:, 0] / sizes, sums[:, 1] / sizes
        if not np.isfinite(losses).all():
            at = first + int(np.argmin(np.isfinite(losses))) + 1
            raise RunError(
                f"the loss is not finite at step {at} (epoch {progress.epoch + 1}); lower "
                "train.learning_rate or set train.clipnorm, and start anew"
            )
        for loss, num_correct, votes in sums.tolist():  # in order: the sum is always the same
            progress.loss_sum += loss
            progress.num_correct += num_correct
            self._votes += votes
        progress.step += len(sums)
        progress.epoch_s += took
        progress.training_s += took
        speed = sizes.sum() / took
        rate = float(self.train_step.optimizer.learning_rate.numpy())
        measured = self._measure(len(sums), took)
        self.log.steps(first + 1, losses, accuracies, rate, speed, measured)
        self._tell(first + len(sums), losses[-1], speed)

    def _measure(self, num: int, took_s: float) -> dict[str, float]:
        """How the last steps used the machine, by tag; the heartbeat tells of it too."""
        measured = {"step/duration_ms": 1e3 * took_s / num}
        self.heartbeat.note(step_ms=round(measured["step/duration_ms"], 3))
        # What stands before an epoch's first steps is no wait, but the validation.
        self._timed = [*self._timed, (num, took_s)] if self.progress.step > num else []
        while len(self._timed) > 1 and sum(n for n, _ in self._timed) > TIMED_FETCHES:
            self._timed.pop(0)
        device = self.monitor.sample()
        if not device:
            return measured
        self.heartbeat.note(device=device, warning=self.monitor.warning)
        timed, timed_s = sum(n for n, _ in self._timed), sum(s for _, s in self._timed)
        if timed and (wait_s := waited_s(self._iterator, timed, timed_s)) is not None:
            measured["step/input_wait_ms"] = 1e3 * wait_s / timed
            measured["step/input_wait_share"] = wait_s / timed_s
            self.heartbeat.note(input_wait_share=round(wait_s / timed_s, 4))
        return measured | {f"device/{name}": value for name, value in device.items()}

    def save(self) -> None:
        """Write a checkpoint of the run as it stands."""
        progress, began = self.progress, time.perf_counter()
        progress.event_mark = self.log.mark()
        total = progress.epoch * self.steps_an_epoch + progress.step
        checkpoint.save(self.run, self.train_step, progress, total)
        self._saved = time.perf_counter()
        self.checkpoint_s += self._saved - began

    def _tell(self, steps: int, loss: float, reviews_per_s: float) -> None:
        progress = self.progress
        total = self.job.train.epochs * self.steps_an_epoch
        eta_s = (total - steps) * progress.training_s / max(steps, 1)
        self.heartbeat.beat(
            "training",
            epoch=progress.epoch + 1,
            num_epochs=self.job.train.epochs,
            step=steps,
            num_steps=total,
            reviews_per_s=round(reviews_per_s, 1),
            eta_s=round(eta_s, 1),
        )
        figures = f"loss {loss:.4f}  {reviews_per_s:.0f} reviews/s"
        what = f"epoch {progress.epoch + 1}/{self.job.train.epochs}"
        self.console.advance(what, steps, total, figures)

    def _profile(self, done: int) -> None:
        num = self.job.train.profile_steps
        steps = self.progress.epoch * self.steps_an_epoch + done
        if self._profiling and steps >= PROFILE_AFTER + num:
            self._stop_profile()
        elif num and not self._profiled and PROFILE_AFTER <= steps < PROFILE_AFTER + num:
            tf.profiler.experimental.start(str(self.run.path("tensorboard")))
            self._profiling = self._profiled = True

    def _stop_profile(self) -> None:
        """Write the profile, if one is being taken."""
        if self._profiling:
            tf.profiler.experimental.stop()
            self._profiling = False
