"""All ways of computing a training step differ only by rounding."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from harness.compute.adversarial import (
    AdversarialStep,
    OuterLookupStep,
    build_step,
    perturbation,
)
from harness.compute.execution_plan import ExecutionPlan, Way
from harness.compute.loss import class_weights
from harness.compute.recurrent import kernels_of
from harness.compute.train_step import Gradients, TrainStep
from harness.data.input_pipeline import BatchShape, BatchSource, Reviews, batches
from harness.job.job_file import load_job
from tests.compute.test_network import custom
from tests.conftest import JOBS

pytestmark = pytest.mark.usefixtures("default_precision")

NUM_REVIEWS, LENGTH = 50, 12
SETTINGS = ("data.vocab_size=100", f"data.maxlen={LENGTH}", "train.batch_size=20", "model.units=4")


def reviews() -> Reviews:
    """Made-up reviews of 1 to LENGTH words."""
    numbers = np.random.default_rng(1)
    lengths = numbers.integers(1, LENGTH + 1, NUM_REVIEWS)
    tokens = numbers.integers(4, 100, lengths.sum()).astype(np.int32)
    labels = (np.arange(NUM_REVIEWS) % 2).astype(np.int32)
    return Reviews(tokens, np.r_[0, np.cumsum(lengths)], labels)


def opened(made: Reviews, *, bucket: bool = False) -> Any:
    """Return the batches of an epoch of three steps; the last batch is partial."""
    order = np.arange(NUM_REVIEWS, dtype=np.int32)[None]
    shape = BatchShape(20, LENGTH, bucket)
    return iter(batches(tf.distribute.get_strategy(), made, order, shape=shape))


@functools.cache
def trained(
    name: str, way: Way, parts: int, *settings: str
) -> tuple[np.ndarray, list[np.ndarray], set[str]]:
    """Train an epoch; return the steps' sums of metrics, the weights, and the graph's kernels."""
    job = load_job(JOBS / f"{name}.toml", [*SETTINGS, *settings])
    step = build_step(job, tf.distribute.get_strategy(), ExecutionPlan(way, 1, parts))
    made = opened(reviews(), bucket=job.data.bucket)
    graph = step.train_steps.get_concrete_function(made, 3).graph
    sums = step.train_steps(made, 3).numpy()
    return sums, step.model.get_weights(), set(kernels_of(step.model, graph, way).values())


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "xla", "parts"),
    [
        ("gru", True, 3),
        *(
            pytest.param(name, xla, parts, marks=pytest.mark.slow)
            for name in ("rnn", "stacked_lstm")
            for xla, parts in ((True, 1), (True, 3), (False, 3))
        ),
    ],
)
def test_a_step_in_parts_equals_a_whole_step(name: str, xla: bool, parts: int) -> None:
    """Dropout, padding of the last batch and the loss's mean apply to the global batch."""
    sums, weights, _ = trained(name, "keras", 1, "train.precision=float64")
    of_parts = trained(name, "xla" if xla else "keras", parts, "train.precision=float64")
    np.testing.assert_allclose(of_parts[0], sums, rtol=1e-10)
    for one, other in zip(of_parts[1], weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bilstm", ["model.pooling=max"]),
        ("bilstm", ["data.bucket=true", "train.adversarial=1"]),
        ("stacked_lstm", ["model.second_units=3"]),
    ],
)
def test_the_block_kernel_trains_like_the_loop(name: str, settings: list[str]) -> None:
    """Losses and weights differ only by rounding, also in parts; the record names the kernel."""
    sums, weights, kernels = trained(name, "keras", 1, *settings)
    block_sums, block_weights, block_kernels = trained(name, "block", 2, *settings)
    assert (kernels, block_kernels) == ({"loop"}, {"block"})
    np.testing.assert_allclose(block_sums, sums, rtol=1e-5)
    for one, other in zip(block_weights, weights, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def hlo_of(compute: Callable[..., Gradients], *vectors: tf.Tensor) -> str:
    """Return the program that XLA compiles for one batch."""
    compiled = tf.function(compute, jit_compile=True, autograph=False)
    get_ir = compiled.experimental_get_compiler_ir(next(opened(reviews())), *vectors)
    return str(get_ir(stage="hlo"))


@pytest.mark.full
def test_on_a_gpu_the_embedding_is_outside_of_the_compiled_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The compiled part has no scatter, which would loop over words; results agree to rounding."""
    strategy = tf.distribute.get_strategy()
    plan = ExecutionPlan("xla", 1)
    job = load_job(JOBS / "rnn.toml", [*SETTINGS, "train.precision=bfloat16"])
    usual = build_step(job, strategy, plan)
    monkeypatch.setattr("harness.compute.adversarial.num_own_gpus", lambda: 1)
    monkeypatch.setattr("harness.compute.train_step.num_own_gpus", lambda: 1)
    outside = build_step(job, strategy, plan)
    assert type(usual) is TrainStep
    assert type(outside) is OuterLookupStep
    vectors = tf.zeros([20, LENGTH, job.model.embedding_dim], outside.model.variable_dtype)
    assert "scatter(" in hlo_of(usual.gradients)
    assert "scatter(" not in hlo_of(outside._with_vectors, vectors)
    results = []
    for train_step in (usual, outside):
        sums = train_step.train_steps(opened(reviews()), 3).numpy()
        results.append([sums, *train_step.model.get_weights()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02, atol=0.02)


def test_an_adversarial_gradient_is_the_mean_of_two() -> None:
    """The plain gradients at the word vectors, and where the loss is larger, count alike."""
    settings = (*SETTINGS, "train.precision=float64", "train.adversarial=3")
    job = load_job(JOBS / "rnn.toml", settings)
    step = build_step(job, tf.distribute.get_strategy(), ExecutionPlan("keras", 1))
    assert isinstance(step, AdversarialStep)
    plain = super(AdversarialStep, step)._with_vectors
    batch = next(opened(reviews()))
    vectors = tf.gather(step.words.embeddings.value, batch.tokens)
    at_vectors, sums = plain(batch, vectors)
    of_vectors = at_vectors[step._table_index]
    moved, _ = plain(batch, vectors + 3 * perturbation(of_vectors, vectors, batch.tokens))
    found, found_sums = step._with_vectors(batch, vectors)
    np.testing.assert_array_equal(found_sums, sums)
    for mean, one, other in zip(found, at_vectors, moved, strict=True):
        np.testing.assert_allclose(mean, (one + other) / 2, rtol=1e-9, atol=1e-15)


@pytest.mark.full
def test_several_classes_train_like_plain_keras() -> None:
    """The weights and the sums of losses and of correct predictions are equal, also with class
    weights and smoothed labels.
    """
    import keras

    settings = [*SETTINGS, "model.dropout=0", "model.spatial_dropout=0", "train.ema_momentum=0"]
    settings += ["train.label_smoothing=0.1", "train.class_weights={ b = 0.5, d = 3 }"]
    clipped = "train.clipnorm=1000"  # above the norm of every gradient here
    job = load_job(JOBS / "lstm.toml", [*settings, "train.precision=float64", clipped])
    labels = (np.arange(NUM_REVIEWS) % 5).astype(np.int32)
    several = replace(reviews(), labels=labels)
    strategy = tf.distribute.get_strategy()
    by_class = class_weights(job.train, "abcde", labels)
    plan = ExecutionPlan("keras", 1, 3)
    train_step = TrainStep(job, strategy, plan, num_outputs=5, class_weights=by_class)
    plain = keras.models.clone_model(train_step.export_model)
    plain.set_weights(train_step.export_model.get_weights())
    sums = train_step.train_steps(opened(several), 3).numpy()

    optimizer = keras.optimizers.RMSprop(job.train.learning_rate)
    targets = (0.9 * np.eye(5) + 0.1 / 5) * np.array([[1], [0.5], [1], [3], [1]])
    every = np.arange(NUM_REVIEWS)
    tokens, _ = BatchSource(several, every[None], BatchShape(20, LENGTH)).padded(every)
    for step, chosen in enumerate((slice(0, 20), slice(20, 40), slice(40, 50))):
        with tf.GradientTape() as tape:
            outputs = plain(tokens[chosen], training=True)
            loss = -tf.reduce_sum(targets[labels[chosen]] * tf.math.log(outputs))
            mean = loss / len(labels[chosen])
        variables = plain.trainable_variables
        gradients = tape.gradient(mean, [v.value for v in variables])
        optimizer.apply([tf.convert_to_tensor(g) for g in gradients], variables)
        correct = np.sum(np.argmax(outputs, axis=1) == labels[chosen])
        assert sums[step, 0] == pytest.approx(float(loss), rel=1e-9)
        assert sums[step, 1] == correct
    for one, other in zip(train_step.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)
    probabilities = train_step.evaluator.probabilities(several)
    assert probabilities.shape == (NUM_REVIEWS, 5)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("bucket", [False, True])
def test_rows_of_weight_0_can_not_make_the_loss_infinite(bucket: bool) -> None:
    """A network that divides by the number of words gives finite losses and weights."""
    job = custom("""
        inputs = keras.Input([None], dtype="int32")
        vectors = layers.Embedding(vocab_size, 4, mask_zero=True)(inputs)
        mean = layers.GlobalAveragePooling1D()(vectors)
        return keras.Model(inputs, layers.Dense(num_outputs, activation="sigmoid")(mean))
    """)
    data = job.data.model_copy(update={"vocab_size": 100, "maxlen": LENGTH, "bucket": bucket})
    train = job.train.model_copy(update={"batch_size": 20})
    job = job.model_copy(update={"data": data, "train": train})
    step = build_step(job, tf.distribute.get_strategy(), ExecutionPlan("keras", 1))
    sums = step.train_steps(opened(reviews(), bucket=bucket), 3).numpy()
    assert all(np.isfinite(each).all() for each in (sums, *step.model.get_weights()))
