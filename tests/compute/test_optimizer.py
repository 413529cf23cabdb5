"""Keras's optimizers by name, and learning rates that follow the number of steps."""

import inspect
import math
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.optimizers import ALL_OBJECTS_DICT

from harness.compute.optimizer import build_optimizer, schedule_of
from harness.errors import InputError
from harness.job.keys import OF_ALL_OPTIMIZERS, OPTIMIZERS, TrainConfig

# Classes that hold other optimizers, and what the keys of `[train]` say.
OTHERS = {"lossscaleoptimizer", "multioptimizer", "optimizer", "optimizermap"}
KEYS = {
    *("learning_rate", "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum"),
    *("ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps", "name"),
    *("self", "kwargs", "exclude_layers"),
}


def test_every_optimizer_of_keras_has_its_options() -> None:
    """Names and options are those of the installed Keras."""
    assert {*OPTIMIZERS} == ALL_OBJECTS_DICT.keys() - OTHERS
    for name, options in OPTIMIZERS.items():
        known = {*inspect.signature(ALL_OBJECTS_DICT[name].__init__).parameters} - KEYS
        assert {*options, *OF_ALL_OPTIMIZERS} == known, name


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_every_optimizer_takes_steps(name: str) -> None:
    """Each moves the weights down a slope, decays them, and keeps their moving average."""
    train = TrainConfig(
        optimizer=name, learning_rate=0.05, optimizer_options={"weight_decay": 0.001}
    )
    optimizer = build_optimizer(train)
    weight = keras.Variable(np.ones([4, 4], np.float32))
    optimizer.build([weight])
    for _ in range(3):
        optimizer.apply([2 * weight.value], [weight])
    assert float(np.mean(weight)) < 1
    assert optimizer.weight_decay == 0.001
    assert float(optimizer.learning_rate) == pytest.approx(0.05)


def rates(num_steps: int, **settings: Any) -> list[float]:
    optimizer = build_optimizer(TrainConfig(learning_rate=0.5, **settings), steps_per_epoch=4)
    schedule = schedule_of(optimizer)
    assert schedule is not None
    return [float(schedule(step)) for step in range(num_steps)]


def test_the_rate_rises_from_the_first_step() -> None:
    """A warm-up of an epoch and a half is six steps of four, and none has the rate 0."""
    expected = [0.5 * min((step + 1) / 6, 1) for step in range(8)]
    np.testing.assert_allclose(rates(8, warmup_epochs=1.5), expected, rtol=1e-6)


def test_the_rate_falls_along_a_cosine_to_its_floor() -> None:
    """After the warm-up half a cosine, over schedule_epochs, and the floor from there on."""
    found = rates(
        20, schedule="cosine", schedule_epochs=4, epochs=5, schedule_floor=0.2, warmup_epochs=1.0
    )
    fall = [(1 + math.cos(math.pi * max(0, min(1, (step - 4) / 12)))) / 2 for step in range(20)]
    expected = [0.5 * min(1, (i + 1) / 4) * (0.2 + 0.8 * share) for i, share in enumerate(fall)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[16:] == pytest.approx([0.1] * 4)


def test_the_rate_falls_linearly_and_in_steps() -> None:
    """Linearly over all epochs; or multiplied at the end of the epochs that are named."""
    np.testing.assert_allclose(
        rates(9, schedule="linear", epochs=2), [0.5 * (1 - i / 8) for i in range(9)], rtol=1e-6
    )
    found = rates(12, schedule="steps", schedule_drops=[1, 2.5], schedule_factor=0.5)
    np.testing.assert_allclose(found, [0.5] * 4 + [0.25] * 6 + [0.125] * 2, rtol=1e-6)


def test_a_cut_multiplies_what_the_schedule_gives() -> None:
    """A plateau cuts the rates of all steps to come; the optimizer's own is what it steps with."""
    optimizer = build_optimizer(
        TrainConfig(learning_rate=0.5, warmup_epochs=1.0, optimizer="sgd", ema_momentum=0), 4
    )
    weight = keras.Variable(10.0)
    optimizer.build([weight])
    schedule = schedule_of(optimizer)
    assert schedule is not None
    plateau = keras.callbacks.ReduceLROnPlateau(factor=0.5)
    plateau._reduce_optimizer_lr(schedule, 0)
    for done in range(6):
        assert float(optimizer.learning_rate) == pytest.approx(0.25 * min(1, (done + 1) / 4))
        before = float(weight.numpy())
        optimizer.apply([np.float32(1.0)], [weight])
        assert before - float(weight.numpy()) == pytest.approx(0.25 * min(1, (done + 1) / 4), 1e-4)


def test_an_option_that_keras_refuses_is_named() -> None:
    """Keras's own reason in one line."""
    with pytest.raises(InputError, match=r"train\.optimizer_options: sgd refuses: .*momentum"):
        build_optimizer(TrainConfig(optimizer="sgd", optimizer_options={"momentum": 3.0}))


def test_without_a_schedule_the_rate_is_a_variable() -> None:
    """The default path is Keras's own."""
    assert schedule_of(build_optimizer(TrainConfig())) is None
