"""The moving average of the weights, which begins short and grows to its full length.

Keras's average has one momentum m for all steps. A run of fewer steps than a few times 1 / (1 - m)
would be validated and saved with an average that still holds much of the starting weights.
"""

from typing import Any

import keras
from keras import ops


class RampedAverage:
    """An optimizer whose average has the momentum min(m, (1 + n) / (10 + n)) at its step n.

    The formula is that of `tf.train.ExponentialMovingAverage` with `num_updates`: the average spans
    the latest ninth of the steps, up to 1 / (1 - m) of them. Corrected for its bias, as Adam's
    moments are, it would weigh the first steps as much as the latest ones until then. n is the
    optimizer's count of steps, the same on every replica and part of every checkpoint, so nothing
    else has to be saved.
    """

    is_ramped = True  # False: one momentum for all steps, as runs begun by an older version have it
    # Of the optimizer that this class is put before.
    ema_momentum: float
    iterations: keras.Variable
    _model_variables_moving_average: list[keras.Variable]

    def _update_model_variables_moving_average(self, variables: list[keras.Variable]) -> None:
        # Keras calls this after each update of the weights, before it counts the step.
        if not self.is_ramped:
            super()._update_model_variables_moving_average(variables)  # type: ignore[misc]
            return
        for variable, average in zip(variables, self._model_variables_moving_average, strict=True):
            step = ops.cast(self.iterations, variable.dtype)
            momentum = ops.minimum(self.ema_momentum, (1 + step) / (10 + step))
            momentum = ops.where(step > 0, momentum, 0)  # before the first, the average is empty
            average.assign(momentum * average + (1 - momentum) * variable)


def ramped(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """An optimizer of the same settings with a `RampedAverage`; `optimizer` has yet to be built."""
    kind: Any = type(optimizer)
    with_average: Any = type(kind.__name__, (RampedAverage, kind), {})
    return with_average.from_config(optimizer.get_config())
