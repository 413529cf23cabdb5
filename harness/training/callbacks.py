"""Keras's callbacks in a run: those that the job's settings ask for, and the user's own.

They are called when training begins, around each epoch, and when training ends; the values of a
single step stay on the device until many are there.
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
# What Keras calls between epochs' boundaries, which this loop does not.
NOT_CALLED = [
    f"on_{name}_{end}"
    for name in ("batch", "train_batch", "test_batch", "predict_batch", "test", "predict")
    for end in ("begin", "end")
]


def own_callbacks(job: Job) -> list[keras.callbacks.Callback]:
    """The callbacks of the user's functions, in the order of the job.

    Raises:
        InputError: if a function fails or gives no such callback; in one line with file and line.
    """
    callbacks = []
    for name in job.train.callbacks:
        where = f"{KEY} = {name!r}"
        function = load_function(job.code, name, where=KEY)
        with own_errors(where):
            callback = function()
        if not isinstance(callback, keras.callbacks.Callback):
            raise InputError(
                f"{where}: gives a {type(callback).__name__}, should give a "
                "keras.callbacks.Callback"
            )
        for hook in NOT_CALLED:
            of_class = getattr(type(callback), hook)
            # A LambdaCallback has its hooks itself, not its class.
            if hook in vars(callback) or of_class is not getattr(keras.callbacks.Callback, hook):
                raise InputError(f"{where}: has {hook}, which is not called; use on_epoch_end")
        if _has_state(callback) is None:
            raise InputError(
                f"{where}: has one of save_state and load_state; give it both, or none"
            )
        callbacks.append(callback)
    return callbacks


def _has_state(callback: keras.callbacks.Callback) -> bool | None:
    """Whether a callback offers its state; None if it does so by half."""
    both = [callable(getattr(callback, name, None)) for name in ("save_state", "load_state")]
    return both[0] if both[0] == both[1] else None


class RunCallbacks:
    """All callbacks of a run, with what a resumed run needs of them."""

    def __init__(
        self, train: TrainConfig, model: keras.Model, own: Sequence[keras.callbacks.Callback] = ()
    ) -> None:
        """Give the callbacks, `own` from `own_callbacks`, their model, which has its optimizer."""
        self.train, self.model, self.own = train, model, own
        self.schedule = schedule_of(model.optimizer)
        self.built_in = keras.callbacks.CallbackList(_built_in(train), model=model)
        if self.schedule:
            for callback in self.built_in.callbacks:
                if isinstance(callback, keras.callbacks.ReduceLROnPlateau):
                    # What it takes for the model.
                    callback.set_model(SimpleNamespace(optimizer=self.schedule))
        for callback in own:
            self._call(callback, "set_params", {"epochs": train.epochs})
            self._call(callback, "set_model", model)

    @property
    def forgetful(self) -> list[str]:
        """The user's callbacks that offer no state."""
        pairs = zip(self.train.callbacks, self.own, strict=False)
        return [name for name, callback in pairs if not _has_state(callback)]

    def begin(self, progress: Progress) -> None:
        """Begin the training, or take up where `progress` is.

        The state of the built-in ones follows from the epochs' metrics, which are replayed. The
        user's get the state that they have saved; what they do to model and optimizer as training
        begins is in the checkpoint, and is done once.
        """
        rate = self.schedule.cut if self.schedule else self.model.optimizer.learning_rate
        value = float(rate.numpy())  # of the checkpoint, with all cuts
        self.built_in.on_train_begin()
        # As the run began: from the rate that is left, the cuts may reach 0, where Keras stops.
        rate.assign(1.0 if self.schedule else self.train.learning_rate)
        for line in progress.history:
            self.built_in.on_epoch_end(line["epoch"] - 1, dict(line))
        rate.assign(value)
        # They have none where the run has yet to begin, with the weights of another one too.
        variables = [rate, *self.model.variables, *self.model.optimizer.variables]
        saved = [each.numpy() for each in variables] if progress.callback_states else []
        for callback in self.own:
            self._call(callback, "on_train_begin")
        for callback, state in zip(self.own, progress.callback_states, strict=False):
            if _has_state(callback) and state is not None:
                self._call(callback, "load_state", state)
        for variable, numbers in zip(variables, saved, strict=False):
            variable.assign(numbers)
        # A callback of the user's may have taken back a stop that the replay gives again.
        if progress.stopped or progress.callback_states:
            self.model.stop_training = progress.stopped

    def on_epoch_begin(self, epoch: int) -> None:
        """Before the first step of an epoch, counted from 0."""
        for callback in self.own:
            self._call(callback, "on_epoch_begin", epoch, {})

    def on_epoch_end(self, line: dict[str, Any]) -> None:
        """After an epoch was validated; the user's get its metrics without measured times."""
        epoch = line["epoch"] - 1
        self.built_in.on_epoch_end(epoch, dict(line))
        for callback in self.own:
            self._call(callback, "on_epoch_end", epoch, untimed(line))

    def on_train_end(self) -> None:
        """After the last epoch."""
        for callback in self.own:
            self._call(callback, "on_train_end")

    def states(self) -> list[Any]:
        """What the user's callbacks want to have again in a resumed run, as JSON can hold it.

        Raises:
            RunError: if JSON can't.
        """
        states = []
        for name, callback in zip(self.train.callbacks, self.own, strict=True):
            state = self._call(callback, "save_state") if _has_state(callback) else None
            try:
                kept = json.loads(json.dumps(state, allow_nan=False))
                if kept != state:  # such as keys that are numbers
                    raise ValueError(f"of {state!r} it gives back {kept!r}")
            except (TypeError, ValueError) as error:
                raise RunError(
                    f"{KEY} = {name!r}: save_state should give what JSON can hold: {error}"
                ) from None
            states.append(kept)
        return states

    def _call(self, callback: keras.callbacks.Callback, hook: str, *args: Any) -> Any:
        name = self.train.callbacks[self.own.index(callback)]
        try:
            with own_errors(f"{KEY} = {name!r}"):
                return getattr(callback, hook)(*args)
        except InputError as error:  # in the middle of a run, so no refusal
            raise RunError(str(error)) from None


def _built_in(train: TrainConfig) -> list[keras.callbacks.Callback]:
    """Early stopping and learning-rate cuts as the job sets them.

    They are called at the ends of epochs only, and all their state comes from the epochs' logs.
    """
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
