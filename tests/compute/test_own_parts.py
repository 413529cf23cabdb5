"""Custom losses and optimizers, and the lines that refuse unusable ones."""

import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from harness.compute.loss import check_loss, cross_entropy, loss_of
from harness.compute.optimizer import build_optimizer, check_optimizer
from harness.errors import InputError
from harness.job.job_file import check_job, load_job
from harness.job.keys import Job
from tests.conftest import JOBS

HEAD = "import keras\nimport tensorflow as tf\nfrom keras import ops\n"


def custom(source: str, key: str, **settings: object) -> Job:
    """Return a job whose `train.loss` or `train.optimizer` (`key`) is the function `f`."""
    content = {
        "name": "own",
        "model": {"architecture": "rnn"},
        "train": {key: "mine.py:f", **settings},
        "code": {"mine.py": HEAD + dedent(source)},
    }
    return check_job(content, Path("own.toml"))


def one_line(key: str, said: str) -> str:
    """Return a pattern for a one-line message about the function of a key."""
    return rf"^{key} = 'mine\.py:f': [^\n]*{re.escape(said)}[^\n]*$"


LOSSES = [
    ("def f(labels): return labels", "should be a function of (labels, probabilities): too many"),
    ("def f(labels, p):\n    return nowhere", "mine.py, line 6: NameError: name 'nowhere'"),
    ("def f(labels, p): return p", "returns float32 of shape (8, 1), should return a float"),
    ("def f(labels, p): return ops.mean(p)", "returns float32 of shape (), should return a float"),
    ("def f(labels, p): return ops.cast(p[:, 0], 'int32')", "returns int32 of shape (8,), should"),
    ("def f(labels, p): return labels * 2.0", "does not depend on the probabilities"),
    (
        "def f(labels, p): return tf.boolean_mask(p[:, 0], labels > 0.5)",
        "losses of shape (4,)",
    ),
    ("def f(labels, p): return p[1:, 0]", "returns float32 of shape (7,), should return a float"),
    ("def f(labels, p): return p[:, 0] - ops.mean(p)", "depends on other examples of the batch"),
    ("def f(labels, p): return p[:, 0] if labels[0] else -p[:, 0]", "mine.py, line 5: Operator"),
    ("def f(labels, p):\n    tf.print(p)\n    return p[:, 0]", "Detected unsupported operations"),
    ("f = 3", "3 is not a callable object"),
    ("N = keras.Variable(1.0)\ndef f(labels, p): return p[:, 0] * N", "uses a variable, such as"),
]


@pytest.mark.parametrize(("source", "said"), LOSSES)
def test_a_bad_loss_is_refused_in_one_line(source: str, said: str) -> None:
    """The line has the function's error with file and line number, or the expected return value."""
    with pytest.raises(InputError, match=one_line("train.loss", said)):
        check_loss(custom(f"\n{source}", "loss"), 1, compiled="tf.print" in source)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_a_custom_cross_entropy_equals_the_built_in_one(num_outputs: int) -> None:
    """The loss keeps the precision of the probabilities."""
    source = """
        def f(labels, probabilities):
            if probabilities.shape[1] == 1:
                return keras.losses.binary_crossentropy(labels[:, None], probabilities)
            return keras.losses.sparse_categorical_crossentropy(labels, probabilities)
        """
    job = custom(source, "loss")
    check_loss(job, num_outputs, compiled=True)
    labels = tf.constant([0.0, 1, 1])
    probabilities = tf.constant(np.random.default_rng(1).dirichlet([1, 1, 1], 3)[:, :num_outputs])
    for kind in (tf.float32, tf.float64):
        given = tf.cast(probabilities, kind)
        found = loss_of(job)(labels, given)
        assert found.dtype == kind
        np.testing.assert_array_equal(found, cross_entropy(labels, given, smoothing=0.0))


MAKE = "def f(learning_rate, options): return keras.optimizers.SGD(learning_rate"
STEP = """
class Mine(keras.optimizers.Optimizer):
    def update_step(self, gradient, variable, learning_rate):
        {}
def f(learning_rate, options): return Mine(learning_rate)
"""
OPTIMIZERS = [
    ("def f(learning_rate): return 1", "a function of (learning_rate, options): too many"),
    ("def f(learning_rate, options): return 1 / 0", "mine.py, line 4: ZeroDivisionError"),
    ("def f(learning_rate, options): return 'adam'", "returns a str, should return a keras.optim"),
    (f"{MAKE}, clipnorm=1.0)", "sets clipnorm = 1.0; leave it out, and set train.clipnorm"),
    (f"{MAKE}, use_ema=True)", "sets use_ema = True; leave it out, and set train.ema_momentum"),
    (f"{MAKE}, ema_overwrite_frequency=3)", "sets ema_overwrite_frequency = 3; leave it out"),
    (f"{MAKE}, gradient_accumulation_steps=4)", "set train.batch_size"),
    (f"{MAKE} / 2)", "does not use its argument learning_rate"),
    (
        "def f(learning_rate, options):\n"
        "    rate = keras.optimizers.schedules.CosineDecay(learning_rate, 9)\n"
        "    return keras.optimizers.SGD(rate)",
        "train.schedule",
    ),
    (
        "def f(learning_rate, options):\n"
        "    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(learning_rate))",
        "returns a LossScaleOptimizer",
    ),
    (STEP.format("raise ValueError(3)"), "mine.py, line 7: ValueError: 3"),
    (
        STEP.replace("def update", "def build(self, v):\n        super().build(v)\n"
                     "        self.num = tf.Variable(0.0)\n    def update").format("pass"),
        "its variable num is a tf.Variable, which would not be saved",
    ),
    (
        "NUM = keras.Variable(1.0, name='num')\n"
        + STEP.format("self.assign_sub(variable, NUM * gradient)"),
        "uses the variables num:0, for example of another optimizer",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("source", "said"), OPTIMIZERS)
def test_a_bad_optimizer_is_refused_in_one_line(source: str, said: str) -> None:
    """The line has the function's error with file and line number, or the key to set instead."""
    job = custom(source, "optimizer")
    with pytest.raises(InputError, match=one_line("train.optimizer", said)):
        check_optimizer(job.train, job.code)


def test_options_reach_an_optimizer_and_unknown_ones_are_refused() -> None:
    """`train.optimizer_options` are read like the options of a network."""
    source = f"{MAKE}, momentum=options['momentum'], nesterov=options.get('nesterov', False))"
    job = custom(source, "optimizer", optimizer_options={"momentum": 0.5})
    check_optimizer(job.train, job.code)
    built: Any = build_optimizer(job.train, code=job.code)
    assert built.momentum == 0.5
    for options, said in (
        ({}, r"train\.optimizer_options\.momentum is missing; set it in \[train\.optimizer_opt"),
        ({"momentum": 0.5, "nestrov": True}, r"nestrov = True: .*did you mean nesterov\?"),
    ):
        job = custom(source, "optimizer", optimizer_options=options)
        with pytest.raises(InputError, match=said):
            check_optimizer(job.train, job.code)


@pytest.mark.parametrize("settings", [{}, {"schedule": "cosine"}, {"precision": "float16"}])
def test_a_custom_sgd_takes_the_steps_of_keras_sgd(settings: dict[str, object]) -> None:
    """The steps are equal with the moving average, with a schedule, and with loss scaling."""
    job = custom(f"{MAKE}, momentum=0.9)", "optimizer", **settings)
    kerass = {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}}
    other = job.train.model_copy(update=kerass)
    found = []
    for train in (job.train, other):
        optimizer = build_optimizer(train, 4, code=job.code)
        weight = keras.Variable(np.ones([4, 4], np.float32))
        optimizer.build([weight])
        for _ in range(5):
            optimizer.apply([2 * weight.value], [weight])
        found.append([each.numpy() for each in (weight, *optimizer.variables)])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_example_takes_settings() -> None:
    """The optimizer also has steps in float64. Smoothed labels have no effect on a custom loss."""
    path = JOBS / "own" / "focal.toml"
    sets = ["train.precision=float64", "train.schedule=cosine", "train.label_smoothing=0.1"]
    job = load_job(path, sets)
    weight = keras.Variable(np.ones(4), dtype="float64")
    build_optimizer(job.train, 4, code=job.code).apply([weight.value], [weight])
    assert weight.numpy() == pytest.approx(1 - job.train.learning_rate)
    assert any("train.label_smoothing has no effect" in line for line in job.without_effect())
    for override, said in (
        ("train.loss=focal", r"train\.loss=focal: should be '' or file\.py:function or"),
        ("train.optimizer=admw", "did you mean adamw"),
    ):
        with pytest.raises(InputError, match=said):
            load_job(path, [override])
