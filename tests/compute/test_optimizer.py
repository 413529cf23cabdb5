"""Keras's optimizers by name, learning-rate schedules, and the moving average of the weights."""

import inspect
import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.optimizers import ALL_OBJECTS_DICT

from harness.compute.optimizer import build_optimizer, last_rate, schedule_of
from harness.errors import InputError
from harness.job.keys import OF_ALL_OPTIMIZERS, OPTIMIZERS, TrainConfig

# Keras's classes that a job can't choose, and options that other keys of `[train]` set.
OTHERS = {"lossscaleoptimizer", "multioptimizer", "optimizer", "optimizermap"}
KEYS = {
    *("learning_rate", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum"),
    *("ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps", "name"),
    *("self", "kwargs", "exclude_layers"),
}


def test_every_optimizer_of_keras_has_its_options() -> None:
    """`OPTIMIZERS` has the names and options of the installed Keras."""
    assert {*OPTIMIZERS} == ALL_OBJECTS_DICT.keys() - OTHERS
    for name, options in OPTIMIZERS.items():
        known = {*inspect.signature(ALL_OBJECTS_DICT[name].__init__).parameters} - KEYS
        assert {*options, *OF_ALL_OPTIMIZERS} == known, name


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_a_checkpoint_has_the_whole_state_of_an_optimizer(name: str, precision: str) -> None:
    """A new optimizer with the same variables and options continues to the same bytes."""
    options = {"learning_rate": 0.05, "optimizer_options": {"weight_decay": 0.001}}
    train = TrainConfig.model_validate({"optimizer": name, "precision": precision, **options})
    start, *gradients = np.random.default_rng(1).normal(size=[3, 4, 4]).astype(np.float32)
    optimizer, weight = build_optimizer(train), keras.Variable(start)
    other, copy = build_optimizer(train), keras.Variable(np.zeros_like(start))
    optimizer.build([weight])
    other.build([copy])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
    for mine, theirs in zip([copy, *other.variables], [weight, *optimizer.variables], strict=True):
        mine.assign(theirs.numpy())
    for one, built in ((optimizer, weight), (other, copy)):
        one.apply([keras.ops.convert_to_tensor(start)], [built])
    assert copy.numpy().tobytes() == weight.numpy().tobytes()
    assert not np.array_equal(weight, start)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    assert inner.weight_decay == 0.001
    assert float(inner.learning_rate) == pytest.approx(0.05)


def rates(num_steps: int, **settings: Any) -> list[float]:
    optimizer = build_optimizer(TrainConfig(learning_rate=0.5, **settings), steps_per_epoch=4)
    schedule = schedule_of(optimizer)
    assert schedule is not None
    return [float(schedule(step)) for step in range(num_steps)]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_last_rate_is_that_of_the_last_step(precision: Any) -> None:
    """Keras's `learning_rate` is the rate of the next step, which a drop may have lowered."""
    train = TrainConfig(
        learning_rate=0.5, schedule="steps", schedule_drops=[1], precision=precision
    )
    optimizer = build_optimizer(train, steps_per_epoch=2)
    variable, used = keras.Variable([0.0]), [last_rate(optimizer)]
    optimizer.build([variable])
    for _ in range(3):
        optimizer.apply([tf.ones(1)])
        used.append(last_rate(optimizer))
    assert used == pytest.approx([0.5, 0.5, 0.5, 0.05])
    assert last_rate(build_optimizer(TrainConfig(learning_rate=0.5), 2)) == 0.5


def test_the_rate_rises_from_the_first_step() -> None:
    """A warm-up of 1.5 epochs of four steps takes six steps, none of them with the rate 0."""
    expected = [0.5 * min((step + 1) / 6, 1) for step in range(8)]
    np.testing.assert_allclose(rates(8, warmup_epochs=1.5), expected, rtol=1e-6)


def test_the_rate_falls_along_a_cosine_to_its_floor() -> None:
    """After the warm-up the rate follows half a cosine until schedule_epochs, then is constant."""
    found = rates(
        20, schedule="cosine", schedule_epochs=4, epochs=5, schedule_floor=0.2, warmup_epochs=1.0
    )
    fall = [(1 + math.cos(math.pi * max(0, min(1, (step - 4) / 12)))) / 2 for step in range(20)]
    expected = [0.5 * min(1, (i + 1) / 4) * (0.2 + 0.8 * share) for i, share in enumerate(fall)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[16:] == pytest.approx([0.1] * 4)


def test_the_rate_falls_linearly_and_in_steps() -> None:
    """The rate falls linearly over all epochs, or by a factor at each epoch of schedule_drops."""
    np.testing.assert_allclose(
        rates(9, schedule="linear", epochs=2), [0.5 * (1 - i / 8) for i in range(9)], rtol=1e-6
    )
    found = rates(12, schedule="steps", schedule_drops=[1, 2.5], schedule_factor=0.5)
    np.testing.assert_allclose(found, [0.5] * 4 + [0.25] * 6 + [0.125] * 2, rtol=1e-6)


def test_an_option_that_keras_refuses_is_named() -> None:
    """The line quotes Keras's reason."""
    with pytest.raises(InputError, match=r"train\.optimizer_options: sgd refuses: .*momentum"):
        build_optimizer(TrainConfig(optimizer="sgd", optimizer_options={"momentum": 3.0}))


STARTS = [1.0, -2.0]


def averages(optimizer: keras.optimizers.Optimizer, num_steps: int) -> tuple[np.ndarray, ...]:
    """Return a weight and its average after each step, both `[num_steps]`."""
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
    """Compute the averages by the formula; the first average is the first weight."""
    mean, means = 0.0, []
    for step, weight in enumerate(weights.tolist()):
        m = min(momentum, (1 + step) / (10 + step)) if step else 0.0
        mean = m * mean + (1 - m) * weight
        means.append(mean)
    return np.array(means)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("rmsprop", "float32"), ("adamw", "float16"), ("nadam", "float32"), ("sgd", "float16")],
)
def test_the_average_ramps_by_the_formula(kind: str, precision: str) -> None:
    """The momentum rises to the job's value in every optimizer, also with loss scaling."""
    settings = {"optimizer": kind, "precision": precision, "learning_rate": 0.1}
    train = TrainConfig.model_validate({**settings, "ema_momentum": 0.5})
    weights, means = averages(build_optimizer(train), 20)  # (1 + n) / (10 + n) exceeds 0.5 at n = 8
    np.testing.assert_allclose(means, by_hand(weights, 0.5), rtol=1e-5)
    # Another momentum would give other averages.
    for other in (0.4, 0.6):
        assert abs(means - by_hand(weights, other)).max() > 1e-3
    assert abs(means[8:] - weights[8:]).min() > 1e-3


def test_the_last_rate_of_several_replicas_is_read() -> None:
    """A strategy stores the number of steps in a variable with several copies."""
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        optimizer = build_optimizer(TrainConfig(schedule="cosine", learning_rate=0.5), 2)
        optimizer.build([keras.Variable([0.0])])
    assert last_rate(optimizer) == 0.5
