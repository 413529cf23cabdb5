"""Keras callbacks in a run: early stopping, learning-rate cuts, and the user's callbacks.

The training loop calls callbacks when training begins and ends, and before and after each epoch. No
callback is called after a step, because a step's results stay on the device until the next logged
step.
"""

import json
import operator
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import keras

from harness.compute.optimizer import schedule_of
from harness.errors import InputError, RunError
from harness.job.keys import SCORES, Job, TrainConfig
from harness.job.own_code import load_function, own_errors
from harness.system import watchdog
from harness.tracking.run_dir import untimed
from harness.training.checkpoint import Progress

KEY = "train.callbacks"
# Hooks that `model.fit` calls, but the training loop of this package does not call.
NOT_CALLED = [
    f"on_{name}_{end}"
    for name in ("batch", "train_batch", "test_batch", "predict_batch", "test", "predict")
    for end in ("begin", "end")
]


def own_callbacks(job: Job, warn: Callable[[str], object]) -> list[keras.callbacks.Callback]:
    """Call the user's functions, and return their callbacks in the order of `train.callbacks`.

    Args:
        job: the job.
        warn: a function that receives the text of a warning. There is a warning for each callback
            whose state a resumed run can't restore.

    Raises:
        InputError: if a function fails or returns no callback, or the callback defines a hook in
            `NOT_CALLED`.
    """
    callbacks = []
    for name in job.train.callbacks:
        where = f"{KEY} = {name!r}"
        function = load_function(job.code, name, where=KEY)
        with own_errors(where):
            callback = function()
        if not isinstance(callback, keras.callbacks.Callback):
            raise InputError(
                f"{where}: returns a {type(callback).__name__}, should return a "
                "keras.callbacks.Callback"
            )
        for hook in NOT_CALLED:
            # Look the hook up in the callback object: a LambdaCallback stores its hooks in the
            # object, not in its class.
            method = getattr(getattr(callback, hook), "__func__", None)
            if method is not getattr(keras.callbacks.Callback, hook):
                raise InputError(f"{where}: has {hook}, which is never called; use on_epoch_end")
        if not _has_state(callback):
            warn(
                f"{where}: has no save_state and load_state, so a resumed run can't restore its "
                "state; add both methods if the callback has a state"
            )
        callbacks.append(callback)
    return callbacks


def _has_state(callback: keras.callbacks.Callback) -> bool:
    """Whether a resumed run can restore the callback's state."""
    return all(callable(getattr(callback, name, None)) for name in ("save_state", "load_state"))


class RunCallbacks:
    """Calls the callbacks of a run, and restores their states in a resumed run."""

    def __init__(
        self, train: TrainConfig, model: keras.Model, own: Sequence[keras.callbacks.Callback] = ()
    ) -> None:
        """Create the built-in callbacks, and pass the model to all callbacks.

        Args:
            train: the job's `[train]` table.
            model: the network, after its optimizer is set.
            own: the user's callbacks, as `own_callbacks` returns them.
        """
        self.train, self.model, self.own = train, model, own
        self.schedule = schedule_of(model.optimizer)
        self.built_in = keras.callbacks.CallbackList(_built_in(train), model=model)
        if self.schedule:
            for callback in self.built_in.callbacks:
                if isinstance(callback, keras.callbacks.ReduceLROnPlateau):
                    # The callback must set the schedule's `learning_rate`, not the optimizer's.
                    callback.set_model(SimpleNamespace(optimizer=self.schedule))
        for callback in own:
            self._call(callback, "set_params", {"epochs": train.epochs})
            self._call(callback, "set_model", model)

    def begin(self, progress: Progress) -> None:
        """Begin the training, or continue it at `progress`.

        A checkpoint contains no states of the built-in callbacks, so a resumed run passes the
        metrics of all earlier epochs to the built-in callbacks again. The user's callbacks load
        their states from the checkpoint. A resumed run also calls `on_train_begin` of the user's
        callbacks, which can change variables of the model and the optimizer. After the call of
        `on_train_begin`, a resumed run sets all variables back to the checkpoint's values, because
        the checkpoint already contains the changes that `on_train_begin` made at the run's first
        start.
        """
        rate = self.schedule.cut if self.schedule else self.model.optimizer.learning_rate
        value = float(rate.numpy())  # the checkpoint's learning rate, after all cuts
        self.built_in.on_train_begin()
        # Start from the initial rate, because the following loop applies all cuts again. The
        # checkpoint's rate already contains the cuts, and a second application could make it 0.
        rate.assign(1.0 if self.schedule else self.train.learning_rate)
        for line in progress.history:
            self.built_in.on_epoch_end(line["epoch"] - 1, dict(line))
        rate.assign(value)
        # A run without saved states is new, and keeps the changes of `on_train_begin`.
        variables = [rate, *self.model.variables, *self.model.optimizer.variables]
        saved = [each.numpy() for each in variables] if progress.callback_states else []
        before = [*map(id, self.model.optimizer.variables)]
        for callback in self.own:
            self._call(callback, "on_train_begin")
        if before != [*map(id, self.model.optimizer.variables)]:
            raise RunError(
                "train.callbacks: on_train_begin replaces a variable of the optimizer, such as its "
                "learning rate, so the run could not be resumed; set train.schedule instead"
            )
        for callback, state in zip(self.own, progress.callback_states, strict=False):
            if _has_state(callback) and state is not None:
                self._call(callback, "load_state", state)
        for variable, numbers in zip(variables, saved, strict=False):
            variable.assign(numbers)
        # In the loop over `history`, EarlyStopping may have set `stop_training`. Restore the value
        # in the checkpoint, because a user's callback may have cleared `stop_training` before the
        # run wrote the checkpoint.
        if progress.stopped or progress.callback_states:
            self.model.stop_training = progress.stopped

    def on_epoch_begin(self, epoch: int) -> None:
        """Call the user's callbacks before an epoch; the first epoch has index 0."""
        for callback in self.own:
            self._call(callback, "on_epoch_begin", epoch, {})

    def on_epoch_end(self, line: dict[str, Any]) -> None:
        """Call all callbacks after an epoch; the user's callbacks receive no measured times."""
        epoch = line["epoch"] - 1
        self.built_in.on_epoch_end(epoch, dict(line))
        for callback in self.own:
            self._call(callback, "on_epoch_end", epoch, untimed(line))

    def on_train_end(self) -> None:
        """Call the user's callbacks after the last epoch."""
        for callback in self.own:
            self._call(callback, "on_train_end")

    def states(self) -> list[Any]:
        """Return the states of the user's callbacks; None for a callback without a state.

        Raises:
            RunError: if JSON can't represent a state.
        """
        states = []
        for name, callback in zip(self.train.callbacks, self.own, strict=True):
            state = self._call(callback, "save_state") if _has_state(callback) else None
            try:
                kept = json.loads(json.dumps(state, allow_nan=False))
                if kept != state:  # for example, JSON turns the key 1 into the text "1"
                    raise ValueError(f"{state!r} becomes {kept!r}")
            except (TypeError, ValueError) as error:
                raise RunError(
                    f"{KEY} = {name!r}: save_state should return plain JSON values: {error}"
                ) from None
            states.append(kept)
        return states

    def _call(self, callback: keras.callbacks.Callback, hook: str, *args: Any) -> Any:
        where = f"{KEY} = {self.train.callbacks[self.own.index(callback)]!r}"
        trained = [each.path for each in self.model.trainable_variables]
        try:
            with own_errors(where), watchdog.current.pausing():
                value = getattr(callback, hook)(*args)
        except InputError as error:  # it becomes a RunError, because the run has already begun
            raise RunError(str(error)) from None
        if "epoch" in hook and trained != [each.path for each in self.model.trainable_variables]:
            raise RunError(
                f"{where}: {hook} changes which weights are trained; the change would have an "
                "effect only after the run is resumed; set trainable in on_train_begin or in the "
                "network"
            )
        return value


def _built_in(train: TrainConfig) -> list[keras.callbacks.Callback]:
    """Return callbacks for early stopping and learning-rate cuts, which read only metrics."""
    monitor, mode = train.monitor, SCORES[train.monitor]
    callbacks: list[keras.callbacks.Callback] = []
    if patience := train.early_stopping_patience:
        stopping = keras.callbacks.EarlyStopping(monitor, patience=patience, mode=mode)
        # Compare in float64, as `exported_epoch` and the audit do; Keras compares in float32.
        stopping.monitor_op = operator.lt if mode == "min" else operator.gt
        callbacks.append(stopping)
    if patience := train.reduce_lr_patience:
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor, factor=train.reduce_lr_factor, patience=patience, mode=mode
            )
        )
    return callbacks
