"""Keras callbacks in a run: early stopping, learning-rate cuts, and the user's callbacks.

The loop calls them when training begins and ends, and before and after each epoch. It has no values
of single steps for them, because these stay on the device until the log interval.
"""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras

from harness.compute.optimizer import schedule_of
from harness.errors import InputError, RunError
from harness.job.keys import SCORES, Job, TrainConfig
from harness.job.own_code import load_function, own_errors
from harness.tracking.run_dir import untimed
from harness.training.progress import Progress

KEY = "train.callbacks"
# Hooks that Keras calls and this loop does not.
NOT_CALLED = [
    f"on_{name}_{end}"
    for name in ("batch", "train_batch", "test_batch", "predict_batch", "test", "predict")
    for end in ("begin", "end")
]


def own_callbacks(job: Job) -> list[keras.callbacks.Callback]:
    """The callbacks that the user's functions return, in the order of the job.

    Raises:
        InputError: if a function fails, or its callback is none or has a hook that is never called.
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
            # Not a lookup in the class: a LambdaCallback has its hooks as attributes.
            method = getattr(getattr(callback, hook), "__func__", None)
            if method is not getattr(keras.callbacks.Callback, hook):
                raise InputError(f"{where}: has {hook}, which is not called; use on_epoch_end")
        callbacks.append(callback)
    return callbacks


def _has_state(callback: keras.callbacks.Callback) -> bool:
    """Whether a resumed run can restore the callback's state."""
    return all(callable(getattr(callback, name, None)) for name in ("save_state", "load_state"))


class RunCallbacks:
    """All callbacks of a run, and their states for a resumed run."""

    def __init__(
        self, train: TrainConfig, model: keras.Model, own: Sequence[keras.callbacks.Callback] = ()
    ) -> None:
        """Set the model of all callbacks.

        Args:
            model: has its optimizer.
            own: from `own_callbacks`.
        """
        self.train, self.model, self.own = train, model, own
        self.schedule = schedule_of(model.optimizer)
        self.built_in = keras.callbacks.CallbackList(_built_in(train), model=model)
        if self.schedule:
            for callback in self.built_in.callbacks:
                if isinstance(callback, keras.callbacks.ReduceLROnPlateau):
                    # It takes the schedule for an optimizer, and sets its `learning_rate`.
                    callback.set_model(SimpleNamespace(optimizer=self.schedule))
        for callback in own:
            self._call(callback, "set_params", {"epochs": train.epochs})
            self._call(callback, "set_model", model)

    @property
    def forgetful(self) -> list[str]:
        """The names of the user's callbacks that begin anew in a resumed run."""
        pairs = zip(self.train.callbacks, self.own, strict=False)
        return [name for name, callback in pairs if not _has_state(callback)]

    def begin(self, progress: Progress) -> None:
        """Begin the training, or continue it at `progress`.

        The built-in callbacks have no states in a checkpoint: they see the metrics of all epochs
        again. The user's callbacks load their states. A checkpoint holds the changes that
        `on_train_begin` makes to model and optimizer, so in a resumed run these are undone.
        """
        rate = self.schedule.cut if self.schedule else self.model.optimizer.learning_rate
        value = float(rate.numpy())  # of the checkpoint, with all cuts
        self.built_in.on_train_begin()
        # The replay starts at the first rate: cuts of the last one may reach 0, where Keras stops.
        rate.assign(1.0 if self.schedule else self.train.learning_rate)
        for line in progress.history:
            self.built_in.on_epoch_end(line["epoch"] - 1, dict(line))
        rate.assign(value)
        # Without states the run has not begun; it may have the weights of another run.
        variables = [rate, *self.model.variables, *self.model.optimizer.variables]
        saved = [each.numpy() for each in variables] if progress.callback_states else []
        for callback in self.own:
            self._call(callback, "on_train_begin")
        for callback, state in zip(self.own, progress.callback_states, strict=False):
            if _has_state(callback) and state is not None:
                self._call(callback, "load_state", state)
        for variable, numbers in zip(variables, saved, strict=False):
            variable.assign(numbers)
        # A user's callback may have undone a stop that the replay repeats.
        if progress.stopped or progress.callback_states:
            self.model.stop_training = progress.stopped

    def on_epoch_begin(self, epoch: int) -> None:
        """Call the user's callbacks before an epoch, counted from 0."""
        for callback in self.own:
            self._call(callback, "on_epoch_begin", epoch, {})

    def on_epoch_end(self, line: dict[str, Any]) -> None:
        """Call all callbacks after an epoch; the user's get its metrics without measured times."""
        epoch = line["epoch"] - 1
        self.built_in.on_epoch_end(epoch, dict(line))
        for callback in self.own:
            self._call(callback, "on_epoch_end", epoch, untimed(line))

    def on_train_end(self) -> None:
        """Call the user's callbacks after the last epoch."""
        for callback in self.own:
            self._call(callback, "on_train_end")

    def states(self) -> list[Any]:
        """The states of the user's callbacks; None for a callback without a state.

        Raises:
            RunError: if JSON can't hold a state.
        """
        states = []
        for name, callback in zip(self.train.callbacks, self.own, strict=True):
            state = self._call(callback, "save_state") if _has_state(callback) else None
            try:
                kept = json.loads(json.dumps(state, allow_nan=False))
                if kept != state:  # such as keys that are numbers
                    raise ValueError(f"{state!r} becomes {kept!r}")
            except (TypeError, ValueError) as error:
                raise RunError(
                    f"{KEY} = {name!r}: save_state should return plain JSON values: {error}"
                ) from None
            states.append(kept)
        return states

    def _call(self, callback: keras.callbacks.Callback, hook: str, *args: Any) -> Any:
        name = self.train.callbacks[self.own.index(callback)]
        try:
            with own_errors(f"{KEY} = {name!r}"):
                return getattr(callback, hook)(*args)
        except InputError as error:  # the run has begun, so it fails
            raise RunError(str(error)) from None


def _built_in(train: TrainConfig) -> list[keras.callbacks.Callback]:
    """Early stopping and learning-rate cuts, whose state follows from the metrics of the epochs."""
    monitor, mode = train.monitor, SCORES[train.monitor]
    callbacks: list[keras.callbacks.Callback] = []
    if patience := train.early_stopping_patience:
        callbacks.append(keras.callbacks.EarlyStopping(monitor, patience=patience, mode=mode))
    if patience := train.reduce_lr_patience:
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor, factor=train.reduce_lr_factor, patience=patience, mode=mode
            )
        )
    return callbacks
