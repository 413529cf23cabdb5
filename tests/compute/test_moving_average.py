"""The average of the weights begins short, and grows to the length that the job gives it."""

import keras
import numpy as np
import pytest

from harness.compute.optimizer import build_optimizer
from harness.job.keys import TrainConfig

STARTS = [1.0, -2.0]


def averages(optimizer: keras.optimizers.Optimizer, num_steps: int) -> tuple[np.ndarray, ...]:
    """The weight after each step, and the average then, `[num_steps]` both."""
    weight = keras.Variable(STARTS)
    optimizer.build([weight])
    steps = []
    scale = optimizer.scale_loss(1.0)
    for step in range(num_steps):
        gradient = keras.ops.convert_to_tensor([scale * (0.5 + step), scale])
        optimizer.apply([gradient], [weight])
        shown = keras.Variable(STARTS)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        inner.finalize_variable_values([shown])
        steps.append((weight.numpy()[0], shown.numpy()[0]))
    weights, means = np.array(steps, np.float64).T
    return weights, means


def by_hand(weights: np.ndarray, momentum: float) -> np.ndarray:
    """The averages by the formula: the first step's is its weight."""
    mean, means = 0.0, []
    for step, weight in enumerate(weights.tolist()):
        m = min(momentum, (1 + step) / (10 + step)) if step else 0.0
        mean = m * mean + (1 - m) * weight
        means.append(mean)
    return np.array(means)


@pytest.mark.parametrize("kind", ["rmsprop", "adam", "adamw", "nadam", "sgd"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_average_is_that_of_the_formula(kind: str, precision: str) -> None:
    """In every optimizer, inside a loss scale too: short at first, at the job's length later."""
    settings = {"optimizer": kind, "precision": precision, "learning_rate": 0.1}
    train = TrainConfig.model_validate({**settings, "ema_momentum": 0.5})
    optimizer = build_optimizer(train)
    weights, means = averages(optimizer, 20)  # from step 8 on (1 + n) / (10 + n) is over 0.5
    np.testing.assert_allclose(means, by_hand(weights, 0.5), rtol=1e-5)
    # Else one that is long from the start, or always short, would do.
    for other in (0.4, 0.6):
        assert abs(means - by_hand(weights, other)).max() > 1e-3
    assert abs(means[8:] - weights[8:]).min() > 1e-3


def test_a_job_without_an_average_has_keras_own_optimizer() -> None:
    """There is nothing to ramp."""
    assert type(build_optimizer(TrainConfig(ema_momentum=0))) is keras.optimizers.RMSprop
