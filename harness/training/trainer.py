"""The training loop.

Unlike `model.fit`, the loop can resume in the middle of an epoch. The result of a resumed run is
bitwise identical to the result of a run without interruption.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from harness.compute.device_errors import check_results
from harness.compute.optimizer import last_rate
from harness.compute.train_step import TrainStep
from harness.data.input_pipeline import (
    Batch,
    BatchShape,
    Reviews,
    batches,
    num_steps,
    permutations_ahead,
)
from harness.errors import Interrupted, RunError
from harness.job.keys import OF_EACH_EPOCH
from harness.system import processes, watchdog
from harness.system.processes import age_s
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import untimed
from harness.training import checkpoint
from harness.training.callbacks import RunCallbacks
from harness.training.context import Compute, RunContext
from harness.training.metrics import exported_epoch, loss_and_accuracy, score_to_keep, test_scores
from harness.training.tensorboard_log import TensorBoardLog

# An execution runs `train.steps_per_execution` steps. After each execution that reaches or passes a
# multiple of this number of steps, the workers agree whether to stop.
STEPS_TO_STOP = 10


class Trainer:
    """Trains one run: first call `prepare`, then `fit`.

    After `fit`, `train_step.export_model` contains the weights to export.
    """

    def __init__(
        self,
        context: RunContext,
        compute: Compute,
        train_step: TrainStep,
        training: Reviews,
        callbacks: Sequence[keras.callbacks.Callback],
        heartbeat: Heartbeat,
    ) -> None:
        self.context, self.run, self.job = context, context.run, context.job
        self.compute, self.console, self.stop = compute, compute.console, compute.stop
        self.train_step, self.training, self.heartbeat = train_step, training, heartbeat
        train = context.job.train
        self.num_reviews = len(training.labels)
        self.steps_per_epoch = num_steps(self.num_reviews, train.batch_size)
        self.drain_every = train.log_every_steps  # steps between two regular calls of `_drain`
        if not self.stop.alone:
            self.drain_every = min(train.log_every_steps, STEPS_TO_STOP)
        # The seconds from the start of this process to the end of its first training step.
        self.first_step_s: float | None = None
        self.score_to_keep = score_to_keep(train)
        self.callbacks = RunCallbacks(train, train_step.model, callbacks)
        self.fit_s = 0.0  # the seconds from `prepare` to the end of `fit` in this process
        self._pending: list[tf.Tensor] = []  # results on the device, each `[steps, 2 or 3]`
        self._votes = 0.0  # above 0 if a worker asks all workers to stop
        self._is_over = False  # whether all epochs are trained, and the last checkpoint is written

    def prepare(self) -> None:
        """Restore the run from its checkpoint, and prepare everything that `fit` needs.

        Create the iterator over batches, trace the graph of a step, and open the TensorBoard log.

        Raises:
            InputError, Interrupted, DiskError, RunError: see `checkpoint.restore`.
            DiskError: if the TensorBoard log can't be written.
            RunError: if a user's callback fails, or a newer process took over the run.
        """
        self._began_s = time.perf_counter()
        # The training time and the step at this process's first results.
        self._compiled: tuple[float, int] | None = None
        worker_group = self.compute.worker_group
        if worker_group:
            processes.kept.append(self)
        # 1. Restore model, optimizer and progress from the newest intact checkpoint.
        self.progress, warnings = checkpoint.restore(
            self.run, self.train_step, self.context.identity, worker_group=worker_group
        )
        for line in warnings:
            self.console.warning(line)
        self.is_new = not self.progress.event_mark  # whether the TensorBoard log is empty
        # 2. Restore the callbacks' states; keep the learning rate of the checkpoint.
        self.callbacks.begin(self.progress)
        # 3. Create the iterator over batches, from the next step on.
        self._open_batches()
        # 4. Trace the graph. Then check the lease again, because another process may have taken
        # over the run during the tracing.
        vote = None if self.stop.alone else tf.constant(0, tf.float64)
        num = self.job.train.steps_per_execution
        traced = self.train_step.train_steps.get_concrete_function(self._batches, num, vote)
        self.graph = traced.graph
        watchdog.current.progress()
        self.run.check_lease()
        # 5. Cut TensorBoard's log, metrics.jsonl and timings.jsonl back to the checkpoint.
        self.log = TensorBoardLog(
            self.run.path("tensorboard"),
            self.progress.event_mark,
            num_steps=self.job.train.epochs * self.steps_per_epoch,
        )
        self._write_metrics()

    def _open_batches(self) -> None:
        """Create the iterator over batches, from the next step on.

        The iterator covers only the epochs for which `permutations_ahead` returns an order of
        the reviews.
        """
        train, data, progress = self.job.train, self.job.data, self.progress
        epochs = range(progress.epoch, train.epochs)
        shape = BatchShape(train.batch_size, data.maxlen, data.bucket)
        lengths = self.training.lengths(data.maxlen)
        permutations = permutations_ahead(train.seed, epochs, lengths, shape=shape)
        self._open_until = progress.epoch + len(permutations)
        # If the iterator could end, tf.distribute would ask all replicas at every step whether they
        # have another batch. So the iterator is endless, and the loop counts the batches.
        opened = batches(
            self.train_step.strategy,
            self.training,
            permutations,
            shape=shape,
            first_step=progress.step,
            steps_before=progress.epoch * self.steps_per_epoch,
        )
        self._batches: Iterator[Batch] = iter(opened)

    # The loop

    def fit(self, validation: Reviews) -> None:
        """Train the remaining epochs. After each epoch, validate and write a checkpoint."""
        train, progress, train_step = self.job.train, self.progress, self.train_step
        self._saved_s = time.perf_counter()
        while progress.epoch < train.epochs:
            if progress.step == 0:  # an epoch that has begun is trained to its end
                # A run trains at least one epoch; otherwise it would have no weights to keep.
                if train_step.model.stop_training and progress.history:
                    break
                # Check for a signal to stop before the call of `on_epoch_begin`, because a resumed
                # run would call `on_epoch_begin` a second time.
                self.stop.check()
                self.callbacks.on_epoch_begin(progress.epoch)
            self._train_epoch()
            train_step.export_weights()
            self._end_epoch(validation)
        self._is_over = True
        self.callbacks.on_train_end()
        if progress.best_weights:
            train_step.export_model.set_weights(progress.best_weights)
        else:
            train_step.export_weights()
        self.fit_s = round(time.perf_counter() - self._began_s, 3)

    def _train_epoch(self) -> None:
        train, progress = self.job.train, self.progress
        self._drained_s = time.perf_counter()
        if progress.epoch >= self._open_until:
            self._open_batches()
        # The number of started steps; `_drain` adds the finished steps to `progress.step`.
        step = progress.step
        while step < self.steps_per_epoch:
            if step:  # `fit` has called `check` before step 0
                self.stop.check()
            num = min(train.steps_per_execution, self.steps_per_epoch - step)
            vote = None if self.stop.alone else tf.constant(self.stop.vote, tf.float64)
            self._pending.append(self.train_step.train_steps(self._batches, num, vote))
            if self.first_step_s is None:
                self._pending[-1].numpy()  # waits for the steps
                watchdog.current.first_step_done()
                self.first_step_s = round(age_s(), 3)
                self.heartbeat.beat("training", first_step_s=self.first_step_s)
            before, step = step, step + num
            # All workers must call `agree` after the same steps. So they call it after each
            # execution that reaches or passes a multiple of `drain_every`.
            is_boundary = step // self.drain_every > before // self.drain_every
            if is_boundary or step == self.steps_per_epoch:
                self._drain()
                self.stop.agree(self._votes)
            elif watchdog.current.asks:
                self._drain()  # waits for the steps; if they hang, the watchdog ends the process
            if time.perf_counter() - self._saved_s >= train.checkpoint_every_s:
                self._drain()
                self._save()

    def _drain(self) -> None:
        """Copy results of pending steps from the device, add them to `progress`, and report them.

        Raises:
            RunError: if a loss is not finite; the message names the step.
        """
        if not self._pending:
            return
        self.run.check_lease()
        # `numpy` waits for the last step, so the clock is read afterwards.
        sums = np.concatenate([part.numpy() for part in self._pending])
        self._pending = []
        check_results()
        watchdog.current.progress()
        now_s = time.perf_counter()
        took_s, self._drained_s = now_s - self._drained_s, now_s
        batch_size = self.job.train.batch_size
        sizes = np.full(len(sums), float(batch_size))
        if self.progress.step + len(sums) == self.steps_per_epoch:  # the last batch may be smaller
            sizes[-1] = self.num_reviews - batch_size * (self.steps_per_epoch - 1)
        first_step, losses = self._num_steps_done() + 1, sums[:, 0] / sizes
        if not np.isfinite(losses).all():
            raise RunError(
                f"the loss is not finite at step {first_step + np.isfinite(losses).argmin()} "
                f"(epoch {self.progress.epoch + 1}); lower train.learning_rate or set "
                "train.clipnorm, and start a new run"
            )
        # Add the sums one step at a time, so that rounding doesn't depend on the number of pending
        # steps.
        for loss, num_correct in sums[:, :2].tolist():
            self.progress.loss_sum += loss
            self.progress.num_correct += num_correct
        self.progress.step += len(sums)
        self.progress.epoch_s += took_s
        self.progress.training_s += took_s
        # With several workers, a third column counts the replicas that ask to stop.
        self._votes += float(sums[:, 2:].sum())
        measured = self._report(losses[-1], took_s / len(sums), sizes.sum() / took_s)
        self.log.steps(first_step, losses, sums[:, 1] / sizes, measured)

    def _report(self, loss: float, step_s: float, reviews_per_s: float) -> dict[str, float]:
        """Show the progress on the console and in `state.json`.

        Returns:
            Tags and values for TensorBoard: the learning rate, the speed, and the machine's load.
        """
        progress, num_epochs = self.progress, self.job.train.epochs
        step, num_steps = self._num_steps_done(), num_epochs * self.steps_per_epoch
        measured = {
            "step/learning_rate": last_rate(self.train_step.optimizer),
            "step/reviews_per_s": reviews_per_s,
            "step/duration_ms": 1e3 * step_s,
        }
        if device := self.compute.monitor.sample():
            self.heartbeat.note(device=device)
            measured |= {f"device/{name}": value for name, value in device.items()}
        self.heartbeat.beat(
            "training",
            epoch=progress.epoch + 1,
            num_epochs=num_epochs,
            step=step,
            num_steps=num_steps,
            step_ms=round(1e3 * step_s, 3),
            reviews_per_s=round(reviews_per_s, 1),
            eta_s=self._eta_s(step, num_steps),
        )
        figures = f"loss {loss:.4f}  {reviews_per_s:.0f} reviews/s"
        epoch = f"epoch {progress.epoch + 1}/{num_epochs}"
        self.console.advance(epoch, step, num_steps, figures=figures)
        return measured

    def _eta_s(self, step: int, num_steps: int) -> float | None:
        """Estimate the rest of the training time; None at this process's first results.

        The first results of a process took longer, because TensorFlow compiled the kernels.
        """
        training_s = self.progress.training_s
        if self._compiled is None:
            self._compiled = training_s, step
            return None
        compiled_s, first_step = self._compiled
        return round((num_steps - step) * (training_s - compiled_s) / (step - first_step), 1)

    def _validate(self, validation: Reviews) -> dict[str, Any]:
        """Return validation loss and accuracy, and the scores of `train.monitor` and `train.keep`.

        The result also contains the duration of the validation in seconds.

        Raises:
            RunError: if the loss is not finite, or a score has no value.
        """
        began = time.perf_counter()
        self.heartbeat.beat("validating")
        probabilities = self.train_step.evaluator.probabilities(validation, self.stop)
        loss, accuracy = loss_and_accuracy(validation.labels, probabilities)
        if not np.isfinite(loss):
            raise RunError(
                f"the validation loss is not finite in epoch {self.progress.epoch + 1}; lower "
                "train.learning_rate or set train.clipnorm, and start a new run"
            )
        line: dict[str, Any] = {"val_loss": loss, "val_accuracy": accuracy}
        train = self.job.train
        used = {self.score_to_keep} if self.score_to_keep else set()
        if train.early_stopping_patience or train.reduce_lr_patience:
            used.add(train.monitor)
        if others := sorted(used - {*OF_EACH_EPOCH}):
            scores = test_scores(validation.labels, probabilities)
            for name in others:
                line[name] = scores.get(name.removeprefix("val_"))
                if line[name] is None:
                    raise RunError(
                        f"{name}: has no value for these validation reviews; choose another score "
                        "for train.monitor and train.keep"
                    )
        return {**line, "validation_s": round(time.perf_counter() - began, 3)}

    def _end_epoch(self, validation: Reviews) -> None:
        """Validate the epoch, record its metrics, write a checkpoint, and begin the next epoch."""
        progress = self.progress
        line: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / self.num_reviews,
            "accuracy": progress.num_correct / self.num_reviews,
            "learning_rate": last_rate(self.train_step.optimizer),
            "epoch_s": round(progress.epoch_s, 3),
            "reviews_per_s": round(self.num_reviews / max(progress.epoch_s, 1e-9), 1),
        }
        if len(validation.labels):
            line |= self._validate(validation)
        # Compute the checksum of the variables before `on_epoch_end` is called, because a callback
        # may change variables in `on_epoch_end`.
        line["checksum"] = checkpoint.checksum(self.train_step)
        progress.history.append(line)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum = progress.num_correct = progress.epoch_s = 0.0
        # Keep the last epoch's weights for the user's callbacks, which may change the model's.
        keeps = self.score_to_keep or self.job.train.callbacks
        if keeps and exported_epoch(progress.history, self.job.train) is line:
            progress.best_weights = self.train_step.export_model.get_weights()
        self.log.epoch(line)
        # Call the callbacks before writing the checkpoint, because they may cut the learning rate.
        self.callbacks.on_epoch_end(line)
        self._save()
        self._write_metrics()
        self.console.epoch(line, self.job.train.epochs)

    def _save(self) -> None:
        self.progress.stopped = bool(self.train_step.model.stop_training)
        self.progress.callback_states = self.callbacks.states()
        self.progress.event_mark = self.log.mark()
        total_steps = self._num_steps_done()
        checkpoint.save(self.run, self.train_step, self.progress, total_steps=total_steps)
        self._saved_s = time.perf_counter()
        watchdog.current.progress()

    def _num_steps_done(self) -> int:
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    def _write_metrics(self) -> None:
        # Write whole files: if the process were killed while it appends, half a line could remain,
        # or the resumed run could append a line twice.
        history = self.progress.history
        if history:
            last = history[-1]
            self.heartbeat.note(epoch=last["epoch"], val_accuracy=last.get("val_accuracy"))
        metrics = [untimed(line) for line in history]
        timings = [
            {"epoch": line["epoch"], **{k: v for k, v in line.items() if k not in kept}}
            for line, kept in zip(history, metrics, strict=True)
        ]
        for name, lines in (("timings.jsonl", timings), ("metrics.jsonl", metrics)):
            content = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
            self.run.write(name, content)

    @contextlib.contextmanager
    def saved_when_interrupted(self) -> Iterator[None]:
        """Write a checkpoint if a signal interrupts the run in the `with` block."""
        try:
            yield
        except Interrupted as reason:
            # If `_is_over` is set, the last checkpoint is already written, and `on_train_end` may
            # have changed the model after that.
            if not self._is_over:
                self._drain()
                self._save()
            reason.add_note("checkpoint saved")
            raise
