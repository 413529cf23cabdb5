"""Recurrent layers: what is used in place of Keras's loop computes what it does."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from harness.compute.execution_plan import ExecutionPlan
from harness.compute.network import build_network, dtype_policy
from harness.compute.recurrent import use_turns_of_two
from harness.compute.train_step import TrainStep
from harness.inputs.epoch_order import BatchShape
from harness.inputs.input_pipeline import Reviews, batches
from harness.job_file import load_job
from tests.conftest import JOBS

NUM_REVIEWS, LENGTH = 50, 12
SETTINGS = ("data.vocab_size=100", f"data.maxlen={LENGTH}", "train.batch_size=20", "model.units=4")


def trained(
    name: str, settings: list[str], *, block: bool, parts: int
) -> tuple[np.ndarray, list[np.ndarray], set[str]]:
    """The sums of three steps, the weights after them, and the kernels in the graph."""
    numbers = np.random.default_rng(1)
    lengths = numbers.integers(1, LENGTH + 1, NUM_REVIEWS)
    tokens = numbers.integers(4, 100, lengths.sum()).astype(np.int32)
    labels = (np.arange(NUM_REVIEWS) % 2).astype(np.int32)
    reviews = Reviews(tokens, np.r_[0, np.cumsum(lengths)], labels)
    job = load_job(JOBS / f"{name}.toml", [*SETTINGS, *settings])
    plan = ExecutionPlan(xla=False, threads=1, parts=parts, why="", block=block)
    strategy = tf.distribute.get_strategy()
    train_step = TrainStep(job, strategy, plan)
    order = np.arange(NUM_REVIEWS, dtype=np.int32)[None]
    shape = BatchShape(20, LENGTH, job.data.bucket)
    opened = iter(batches(strategy, reviews, order, shape=shape))
    kernels = train_step.kernels(train_step.trace(opened))
    sums = np.concatenate([train_step.train_steps(opened, 1).numpy() for _ in range(3)])
    return sums, train_step.model.get_weights(), set(kernels.values())


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lstm", []),
        ("bilstm", ["model.pooling=max"]),
        ("bilstm", ["data.bucket=true", "train.adversarial=1"]),
        ("stacked_lstm", ["model.second_units=3"]),
    ],
)
def test_the_block_kernel_trains_as_the_loop(name: str, settings: list[str]) -> None:
    """The same losses and weights to rounding, in parts too; the record names the kernel."""
    sums, weights, kernels = trained(name, settings, block=False, parts=1)
    found, weights_found, kernels_found = trained(name, settings, block=True, parts=2)
    assert (kernels, kernels_found) == ({"loop"}, {"block"})
    np.testing.assert_allclose(found, sums, rtol=1e-5)
    for one, other in zip(weights_found, weights, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.full
@pytest.mark.parametrize("num_words", [1, 12, 13])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lstm", []),
        ("bilstm", ["train.precision=float16"]),
        ("bilstm", ["data.bucket=true", "model.pooling=max+mean"]),
        ("stacked_lstm", ["model.second_units=3"]),
    ],
)
def test_two_words_a_turn_give_what_the_loop_gives(
    name: str, settings: list[str], num_words: int
) -> None:
    """To rounding, of an odd number too, and TensorFlow need not know how many there are."""
    job = load_job(JOBS / f"{name}.toml", [*SETTINGS, *settings])
    with dtype_policy(job):
        model = build_network(job)
    tokens = tf.constant(np.random.default_rng(1).integers(4, 100, [5, num_words]), tf.int32)
    expected = model(tokens, training=False)
    use_turns_of_two(model)
    network = tf.function(
        functools.partial(model, training=False),
        autograph=False,
        input_signature=[tf.TensorSpec([None, None], tf.int32)],
    )
    half = job.train.precision == "float16"
    np.testing.assert_allclose(network(tokens), expected, atol=1e-3 if half else 1e-6)
