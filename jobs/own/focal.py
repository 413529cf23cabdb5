"""A custom loss and a custom optimizer."""

import keras
from keras import ops


def focal(labels, probabilities):
    """The focal loss of Lin et al. (2017) for two classes, which gives easy reviews less weight.

    labels: [examples], 0 or 1. probabilities: [examples, 1], of label 1. Returns [examples].
    """
    of_label = ops.where(labels > 0.5, probabilities[:, 0], 1 - probabilities[:, 0])
    of_label = ops.clip(of_label, 1e-7, 1)
    return -((1 - of_label) ** 2) * ops.log(of_label)


class SignDescent(keras.optimizers.Optimizer):
    """Moves each weight by a constant amount, against the sign of its gradient's moving average."""

    def __init__(self, learning_rate, momentum):
        """Set the momentum of the average."""
        super().__init__(learning_rate)
        self.momentum = momentum

    def build(self, variables):
        """Make the variables that a checkpoint holds."""
        super().build(variables)
        self.averages = [self.add_variable_from_reference(each, "average") for each in variables]

    def update_step(self, gradient, variable, learning_rate):
        """Update a variable by its gradient over the global batch."""
        average = self.averages[self._get_variable_index(variable)]
        self.assign(average, self.momentum * average + (1 - self.momentum) * gradient)
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * ops.sign(average))


def sign_descent(learning_rate, options):
    """Return the optimizer of a run; `options` is the table train.optimizer_options."""
    return SignDescent(learning_rate, momentum=options["momentum"])
