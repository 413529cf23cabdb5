"""The moving average of the weights, which begins short and grows to its full length.

Keras's average has one momentum m for all steps. A run of fewer steps than a few times 1 / (1 - m)
would be validated and saved with an average that still holds much of the starting weights.
"""

from collections.abc import Callable

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
    _get_variable_index: Callable[[keras.Variable], int]

    def _update_model_variables_moving_average(self, variables: list[keras.Variable]) -> None:
        # Keras calls this after each update of the weights, before it counts the step.
        for variable in variables:
            self.average(variable)

    def average(self, variable: keras.Variable) -> None:
        """Take a variable's value after this step into its average."""
        average = self._model_variables_moving_average[self._get_variable_index(variable)]
        step = ops.cast(self.iterations, variable.dtype)
        momentum = self.ema_momentum
        if self.is_ramped:
            momentum = ops.minimum(momentum, (1 + step) / (10 + step))
        momentum = ops.where(step > 0, momentum, 0)  # before the first, the average is empty
        average.assign(momentum * average + (1 - momentum) * variable)
