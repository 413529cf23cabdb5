"""The job's optimizer, its moving average of the weights, and the schedule of its learning rate."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from harness.errors import InputError
from harness.job.keys import OPTIMIZERS, TrainConfig
from harness.job.own_code import OptionReader, load_taking, own_errors

# What an optimizer of a user's leaves to the job, which does it alike on any number of replicas.
OF_THE_JOB = {
    **dict.fromkeys(("clipnorm", "global_clipnorm", "clipvalue"), "train.clipnorm"),
    "use_ema": "train.ema_momentum",
    "gradient_accumulation_steps": "train.batch_size",
    "loss_scale_factor": "train.precision",
}


class RampedAverage:
    """An optimizer whose average has the momentum min(m, (1 + n) / (10 + n)) at its step n.

    Keras's average has one momentum m for all steps. A run of fewer steps than a few times
    1 / (1 - m) would be validated and saved with an average that still holds much of the starting
    weights.

    The formula is that of `tf.train.ExponentialMovingAverage` with `num_updates`: the average spans
    the latest ninth of the steps, up to 1 / (1 - m) of them. Corrected for its bias, as Adam's
    moments are, it would weigh the first steps as much as the latest ones until then. n is the
    optimizer's count of steps, the same on every replica and part of every checkpoint, so nothing
    else has to be saved.
    """

    # Of the optimizer that this class is put before.
    ema_momentum: float
    iterations: keras.Variable
    _model_variables_moving_average: list[keras.Variable]
    _get_variable_index: Callable[[keras.Variable], int]

    def _update_model_variables_moving_average(self, variables: list[keras.Variable]) -> None:
        # Keras calls this after each update of the weights, before it counts the step.
        for variable in variables:
            self.average(variable)

    def average(self, variable: keras.Variable) -> None:
        """Take a variable's value after this step into its average."""
        average = self._model_variables_moving_average[self._get_variable_index(variable)]
        step = ops.cast(self.iterations, variable.dtype)
        momentum = ops.minimum(self.ema_momentum, (1 + step) / (10 + step))
        momentum = ops.where(step > 0, momentum, 0)  # before the first, the average is empty
        average.assign(momentum * average + (1 - momentum) * variable)


class RateSchedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """The learning rate of each step, from the number of steps done.

    Nothing but the optimizer's own count decides it, which each checkpoint holds: so a resumed run
    goes on with the same rates, and all replicas have one. `cut` is what a plateau multiplies by.
    """

    def __init__(self, train: TrainConfig, steps_per_epoch: int) -> None:
        """Make the schedule of a job; in the strategy's scope."""
        self.train, self.steps_per_epoch = train, steps_per_epoch
        self.warmup_steps = round(train.warmup_epochs * steps_per_epoch)
        self.num_steps = (train.schedule_epochs or train.epochs) * steps_per_epoch
        self.cut = keras.Variable(1.0, trainable=False, dtype="float32", name="rate_cut")

    def __call__(self, step: Any) -> tf.Tensor:
        """The rate after `step` steps, `[] float32`."""
        done = tf.cast(step, tf.float64)
        # The second factor warms up, from a first small rate to the whole one.
        share = self._share(done) * tf.minimum((done + 1) / max(self.warmup_steps, 1), 1.0)
        return self.cut.value * tf.cast(self.train.learning_rate * share, tf.float32)

    @property
    def learning_rate(self) -> keras.Variable:
        """The cut, under the name by which a plateau's callback reads and sets an optimizer's."""
        return self.cut

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.cut.assign(value)

    def _share(self, done: tf.Tensor) -> tf.Tensor:
        """Of the rate, without the warm-up."""
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
        """No file holds a schedule: it is made from the job."""
        return {}


def has_schedule(train: TrainConfig) -> bool:
    """Whether the rate follows the steps, and not one variable."""
    return train.schedule != "constant" or train.warmup_epochs > 0


def extended(optimizer: keras.optimizers.Optimizer, by: type[Any]) -> keras.optimizers.Optimizer:
    """An optimizer of the same settings with a class before its own; `optimizer` is not built."""
    kind: Any = type(optimizer)
    both: Any = type(kind.__name__, (by, kind), {})
    return both.from_config(optimizer.get_config())


def build_optimizer(
    train: TrainConfig, steps_per_epoch: int = 1, *, code: Mapping[str, str] = {}
) -> keras.optimizers.Optimizer:
    """The job's optimizer with its moving average, inside a loss scale for float16.

    Args:
        code: the job's, for an optimizer of the user's own.

    Raises:
        InputError: if Keras refuses one of its options; for a user's own as `own_optimizer` says.
    """
    if train.optimizer in OPTIMIZERS:
        optimizer = _optimizer_of_keras(train)
        if train.ema_momentum > 0:
            optimizer = extended(optimizer, RampedAverage)
    else:
        optimizer = own_optimizer(train, code)
        if train.ema_momentum > 0:
            # The user's class alone knows how one is made, so this one is changed.
            optimizer.use_ema, optimizer.ema_momentum = True, train.ema_momentum
            kind: Any = type(optimizer)
            optimizer.__class__ = type(kind.__name__, (RampedAverage, kind), {})
    if has_schedule(train):
        optimizer.learning_rate = RateSchedule(train, steps_per_epoch)
    if train.precision == "float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def own_optimizer(train: TrainConfig, code: Mapping[str, str]) -> keras.optimizers.Optimizer:
    """The optimizer that a user's function gives.

    Raises:
        InputError: if the function fails, with its own error, file and line, or gives none that
            leaves to the job what the job decides.
    """
    name, key = train.optimizer, "train.optimizer"
    where = f"{key} = {name!r}"
    options = OptionReader(train.optimizer_options, "train.optimizer_options")
    given = (train.learning_rate, options)
    function = load_taking(code, name, where=key, form="(learning_rate, options)", given=given)
    with own_errors(where):
        optimizer = function(*given)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise InputError(
            f"{where}: gives a {type(optimizer).__name__}, should give a keras.optimizers.Optimizer"
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise InputError(
            f"{where}: gives a LossScaleOptimizer, should give the optimizer in it; "
            "train.precision = 'float16' adds the loss scale"
        )
    options.check(name)
    for setting, instead in OF_THE_JOB.items():
        if value := getattr(optimizer, setting, None):
            raise InputError(f"{where}: has {setting} = {value!r}; leave it out, set {instead}")
    rate = optimizer._learning_rate
    if not isinstance(rate, keras.Variable) or np.float32(rate) != np.float32(train.learning_rate):
        raise InputError(
            f"{where}: has another learning rate than it is given; give it learning_rate, and set "
            "train.learning_rate and train.schedule"
        )
    return optimizer


def check_optimizer(train: TrainConfig, code: Mapping[str, str]) -> None:
    """Build an optimizer with options once, and take a step with a user's own.

    Raises:
        InputError: as `build_optimizer`, or if the step fails or its state can't be saved.
    """
    if train.optimizer in OPTIMIZERS:
        if train.optimizer_options:
            build_optimizer(train)
        return
    where = f"train.optimizer = {train.optimizer!r}"
    optimizer = build_optimizer(train, code=code)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    weights = [keras.Variable(np.ones(shape, np.float32)) for shape in ([3, 2], [2])]
    with own_errors(where):
        optimizer.build(weights)

        def step() -> None:
            optimizer.apply([tf.ones_like(each.value) for each in weights], weights)

        tf.function(step, autograph=False)()
    for name, value in vars(inner).items():
        if isinstance(value, tf.Variable):
            raise InputError(
                f"{where}: its variable {name} is TensorFlow's and would not be saved; make it in "
                "build() by add_variable or add_variable_from_reference"
            )


def _optimizer_of_keras(train: TrainConfig) -> keras.optimizers.Optimizer:
    config: dict[str, Any] = {
        "learning_rate": train.learning_rate,
        "use_ema": train.ema_momentum > 0,
        "ema_momentum": train.ema_momentum or 0.99,
    }
    try:
        return keras.optimizers.get(
            {"class_name": train.optimizer, "config": {**config, **train.optimizer_options}}
        )
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"train.optimizer_options: {train.optimizer} refuses: {reason}") from None


def schedule_of(optimizer: keras.optimizers.Optimizer) -> RateSchedule | None:
    """The schedule of an optimizer, if it has one."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    found = inner._learning_rate
    return found if isinstance(found, RateSchedule) else None
