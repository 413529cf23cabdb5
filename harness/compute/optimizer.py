"""Builds a job's optimizer, with the learning-rate schedule and the weights' moving average."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from harness.errors import InputError
from harness.job.keys import OPTIMIZERS, TrainConfig
from harness.job.own_code import OptionReader, load_function, own_errors

# Settings that a custom optimizer must not contain, and the job's keys to use instead. Unlike the
# settings, the keys work on any number of replicas.
JOB_KEYS = {
    **dict.fromkeys(("clipnorm", "global_clipnorm", "clipvalue"), "train.clipnorm"),
    **dict.fromkeys(("use_ema", "ema_overwrite_frequency"), "train.ema_momentum"),
    "gradient_accumulation_steps": "train.batch_size",
    "loss_scale_factor": "train.precision",
}


class RampedAverage:
    """Lets the momentum of an optimizer's moving average rise to `train.ema_momentum`.

    The momentum is min(m, (1 + n) / (10 + n)), where m is `train.ema_momentum` and n is the number
    of steps that the optimizer has taken. n is the same on all replicas, and every checkpoint
    contains n. Keras's average has the momentum `train.ema_momentum` at all steps, so after a short
    run Keras's average would still contain much of the initial weights.

    The formula for the momentum is that of `tf.train.ExponentialMovingAverage` with `num_updates`.
    After n steps, the average covers about the last n / 9 steps, but at most
    1 / (1 - `train.ema_momentum`) steps. A bias correction like Adam's is not used: it would give
    the first steps almost the same share of the average as later steps.
    """

    # `build_optimizer` makes a class that inherits from this class and from a Keras optimizer. The
    # Keras optimizer has these attributes.
    ema_momentum: float
    iterations: keras.Variable
    _model_variables_moving_average: list[keras.Variable]
    _get_variable_index: Callable[[keras.Variable], int]

    def _update_model_variables_moving_average(self, variables: list[keras.Variable]) -> None:
        # Keras calls this method after each update of the weights, before it counts the step.
        for variable in variables:
            average = self._model_variables_moving_average[self._get_variable_index(variable)]
            n = ops.cast(self.iterations, variable.dtype)
            momentum = ops.minimum(self.ema_momentum, (1 + n) / (10 + n))
            momentum = ops.where(n > 0, momentum, 0)  # the average is unset before the first step
            average.assign(momentum * average + (1 - momentum) * variable)


class LossScaling(keras.optimizers.LossScaleOptimizer):  # type: ignore[misc]
    """Keras's loss scaling for float16; `variables` includes all variables of the inner optimizer.

    A decorator of Keras's `build` turns the tracking of variables off during the whole call. During
    this call, an inner optimizer such as Nadam creates variables that the decorator would leave
    untracked, such as `_u_product`. Checkpoints would not contain these variables, and a resumed
    run would give another result. So this class removes the decorator.
    """

    build = keras.optimizers.LossScaleOptimizer.build.__wrapped__


class RateSchedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The learning rate of each step.

    The rate depends only on the optimizer's number of steps and on the factor `cut`. When the score
    of `train.monitor` stops improving, Keras's ReduceLROnPlateau lowers `cut`, and thus the rate.
    All replicas have the same number of steps and the same `cut`, and so use the same rate. Every
    checkpoint contains both, so a resumed run continues the schedule where the run stopped.
    """

    def __init__(self, train: TrainConfig, steps_per_epoch: int) -> None:
        """Build a job's learning-rate schedule; the caller must be in the strategy's scope."""
        self.train, self.steps_per_epoch = train, steps_per_epoch
        self.warmup_steps = round(train.warmup_epochs * steps_per_epoch)
        self.num_steps = (train.schedule_epochs or train.epochs) * steps_per_epoch
        self.cut = keras.Variable(1.0, trainable=False, dtype="float32", name="rate_cut")

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the learning rate after `step` steps, `[] float32`."""
        done = tf.cast(step, tf.float64)
        # The second factor is the warm-up, which is above 0 even in the first step.
        share = self._share(done) * tf.minimum((done + 1) / max(self.warmup_steps, 1), 1.0)
        return self.cut.value * tf.cast(self.train.learning_rate * share, tf.float32)

    @property
    def learning_rate(self) -> keras.Variable:
        """Return the factor `cut`; ReduceLROnPlateau changes the variable of this name."""
        return self.cut

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.cut.assign(value)

    def _share(self, done: tf.Tensor) -> tf.Tensor:
        """Return the factor of `train.schedule` after `done` steps; the caller adds the warm-up."""
        train = self.train
        if train.schedule == "constant":
            return tf.ones_like(done)
        if train.schedule == "steps":
            drops = [epoch * self.steps_per_epoch for epoch in train.schedule_drops]
            num = tf.reduce_sum(tf.cast(done >= tf.constant(drops, tf.float64), tf.float64))
            return tf.pow(tf.constant(train.schedule_factor, tf.float64), num)
        whole = max(self.num_steps - self.warmup_steps, 1)
        part = tf.clip_by_value((done - self.warmup_steps) / whole, 0, 1)
        fall = (1 + tf.cos(math.pi * part)) / 2 if train.schedule == "cosine" else 1 - part
        return train.schedule_floor + (1 - train.schedule_floor) * fall

    def get_config(self) -> dict[str, Any]:
        """Return an empty dictionary, because a run builds the schedule from its job."""
        return {}


def build_optimizer(
    train: TrainConfig, steps_per_epoch: int = 1, *, code: Mapping[str, str] = {}
) -> keras.optimizers.Optimizer:
    """Build the optimizer, with moving average and learning-rate schedule if the job sets them.

    For float16, the optimizer is wrapped in `LossScaling`.

    Args:
        train: the job's `[train]` table.
        steps_per_epoch: the number of steps of an epoch, for the learning-rate schedule.
        code: the source files of the job's functions, by path, for a custom optimizer.

    Raises:
        InputError: if Keras refuses an option, or a custom optimizer can't be built or used.
    """
    if train.optimizer in OPTIMIZERS:
        optimizer = _optimizer_of_keras(train)
    else:
        optimizer = _custom_optimizer(train, code)
    if train.ema_momentum > 0:
        # Change the class of the finished optimizer, because a user's function may have built it.
        optimizer.use_ema, optimizer.ema_momentum = True, train.ema_momentum
        kind: Any = type(optimizer)
        optimizer.__class__ = type(kind.__name__, (RampedAverage, kind), {})
    if train.schedule != "constant" or train.warmup_epochs > 0:
        optimizer.learning_rate = RateSchedule(train, steps_per_epoch)
    if train.precision == "float16":
        return LossScaling(optimizer)
    return optimizer


def _optimizer_of_keras(train: TrainConfig) -> keras.optimizers.Optimizer:
    config = {"learning_rate": train.learning_rate, **train.optimizer_options}
    try:
        return keras.optimizers.get({"class_name": train.optimizer, "config": config})
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"train.optimizer_options: {train.optimizer} refuses: {reason}") from None


def _custom_optimizer(train: TrainConfig, code: Mapping[str, str]) -> keras.optimizers.Optimizer:
    """Call the user's function and return its optimizer.

    Raises:
        InputError: if the function fails (the message contains its error, file and line) or does
            not return an optimizer; if the optimizer sets an option for which the job has a key
            (`JOB_KEYS`); or if the optimizer ignores the job's learning rate.
    """
    name, key = train.optimizer, "train.optimizer"
    where = f"{key} = {name!r}"
    options = OptionReader(train.optimizer_options, "train.optimizer_options")
    arguments = (train.learning_rate, options)
    function = load_function(
        code, name, where=key, form="(learning_rate, options)", given=arguments
    )
    with own_errors(where):
        optimizer = function(*arguments)
    has_scale = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if not isinstance(optimizer, keras.optimizers.Optimizer) or has_scale:
        raise InputError(
            f"{where}: returns a {type(optimizer).__name__}, should return a "
            "keras.optimizers.Optimizer other than LossScaleOptimizer; if train.precision = "
            "'float16', the harness adds LossScaleOptimizer itself"
        )
    options.check(name)
    for setting, instead in JOB_KEYS.items():
        if value := getattr(optimizer, setting, None):
            raise InputError(
                f"{where}: sets {setting} = {value!r}; leave it out, and set {instead}"
            )
    rate = optimizer._learning_rate
    if not isinstance(rate, keras.Variable) or np.float32(rate) != np.float32(train.learning_rate):
        raise InputError(
            f"{where}: does not use its argument learning_rate; pass this argument to the "
            "optimizer, and set the rate only with train.learning_rate and train.schedule"
        )
    return optimizer


def refuse_unsaved(owner: Any, where: str, remedy: str) -> None:
    """Refuse an optimizer or a layer with a `tf.Variable`, which checkpoints would not contain.

    Raises:
        InputError: if an attribute of `owner` is a `tf.Variable`.
    """
    for name, value in vars(owner).items():
        if isinstance(value, tf.Variable):
            raise InputError(
                f"{where}: its variable {name} is a tf.Variable, which would not be saved; create "
                f"it {remedy}"
            )


def check_optimizer(train: TrainConfig, code: Mapping[str, str]) -> None:
    """Check an optimizer: build it and, if it is custom, compute a step with it.

    Keras's optimizers are checked only if `train.optimizer_options` is set.

    Raises:
        InputError: if the optimizer can't be built, if a step with the optimizer fails, or if the
            state of the optimizer can't be saved.
    """
    if train.optimizer in OPTIMIZERS:
        if train.optimizer_options:
            build_optimizer(train)
        return
    optimizer = build_optimizer(train, code=code)
    where = f"train.optimizer = {train.optimizer!r}"
    inner = inner_optimizer(optimizer)
    weights = [keras.Variable(np.ones(shape, np.float32)) for shape in ([3, 2], [2])]
    with own_errors(where):
        optimizer.build(weights)

        def step() -> None:
            optimizer.apply([tf.ones_like(each.value) for each in weights], weights)

        traced = tf.function(step, autograph=False)
        traced()
    remedy = "in build() with add_variable or add_variable_from_reference"
    refuse_unsaved(inner, where, remedy)
    saved = {id(each.value) for each in [*weights, *optimizer.variables]}
    if schedule := schedule_of(optimizer):
        saved.add(id(schedule.cut.value))
    used = traced.get_concrete_function().graph.variables
    if unsaved := [each.name for each in used if id(each) not in saved]:
        raise InputError(
            f"{where}: uses the variables {', '.join(unsaved)[:200]}, for example of another "
            f"optimizer or a seed generator, which would not be saved; create its state {remedy}"
        )


def last_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Return the learning rate of an optimizer's last step, or of its first if there was none."""
    schedule = schedule_of(optimizer)
    if schedule is None:
        return float(optimizer.learning_rate.numpy())
    # `learning_rate` is the rate of the next step.
    return float(schedule(max(int(inner_optimizer(optimizer).iterations.numpy()) - 1, 0)))


def schedule_of(optimizer: keras.optimizers.Optimizer) -> RateSchedule | None:
    """Return an optimizer's learning-rate schedule; None if the learning rate is constant."""
    schedule = inner_optimizer(optimizer)._learning_rate
    return schedule if isinstance(schedule, RateSchedule) else None


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer inside of Keras's loss scaling for float16, if there is one."""
    return getattr(optimizer, "inner_optimizer", optimizer)
