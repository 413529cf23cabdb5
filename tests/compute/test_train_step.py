"""The inner loop: a step is the same to rounding however it is computed."""

import functools
import json
import subprocess
import sys
from collections.abc import Callable, Collection

import numpy as np
import pytest
import tensorflow as tf

from harness.compute.adversarial import OuterLookupStep, build_step
from harness.compute.execution_plan import ExecutionPlan
from harness.compute.train_step import Gradients, TrainStep
from harness.data.epoch_order import BatchShape
from harness.data.input_pipeline import Reviews, batches, in_parts
from harness.job.job_file import load_job
from tests.conftest import JOBS, PROJECT

NUM_REVIEWS, LENGTH = 50, 6
SETTINGS = ("data.vocab_size=100", f"data.maxlen={LENGTH}", "train.batch_size=20", "model.units=4")


def reviews() -> Reviews:
    """Reviews of four words each, made up."""
    tokens = np.random.default_rng(1).integers(4, 100, 4 * NUM_REVIEWS).astype(np.int32)
    labels = (np.arange(NUM_REVIEWS) % 2).astype(np.int32)
    return Reviews(tokens, np.arange(0, 4 * NUM_REVIEWS + 1, 4), labels)


@functools.cache
def trained(name: str, xla: bool, parts: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The sums of an epoch's three steps, the last of them not full, and the weights after it."""
    strategy = tf.distribute.get_strategy()
    job = load_job(JOBS / f"{name}.toml", [*SETTINGS, "train.precision=float64"])
    train_step = TrainStep(job, strategy, ExecutionPlan("xla" if xla else "keras", 1, parts))
    order = np.arange(NUM_REVIEWS, dtype=np.int32)[None]
    opened = batches(strategy, reviews(), order, shape=BatchShape(20, LENGTH))
    sums = train_step.train_steps(iter(opened), 3).numpy()
    return sums, train_step.model.get_weights()


@pytest.fixture(autouse=True)
def default_precision() -> object:
    """The precision of the other tests, after these."""
    yield
    import keras

    keras.config.set_dtype_policy("float32")


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "xla", "parts"),
    [
        ("gru", True, 3),
        ("gru", False, 3),
        *(
            pytest.param(name, xla, parts, marks=pytest.mark.slow)
            for name, xla, parts in (
                *((name, True, 1) for name in ("rnn", "gru", "stacked_lstm")),
                *((name, xla, 3) for name in ("rnn", "stacked_lstm") for xla in (True, False)),
            )
        ),
    ],
)
def test_a_step_in_parts_is_the_step_as_a_whole(name: str, xla: bool, parts: int) -> None:
    """Dropout, fillers of the last batch and the loss's mean are the global batch's."""
    sums, weights = trained(name, xla=False, parts=1)
    found, weights_found = trained(name, xla=xla, parts=parts)
    np.testing.assert_allclose(found, sums, rtol=1e-10)
    for one, other in zip(weights_found, weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


def hlo_of(compute: Callable[..., Gradients], *vectors: tf.Tensor) -> str:
    """What XLA gets to compile, for one batch."""
    strategy = tf.distribute.get_strategy()
    order = np.arange(NUM_REVIEWS, dtype=np.int32)[None]
    batch = next(iter(batches(strategy, reviews(), order, shape=BatchShape(20, LENGTH))))
    compiled = tf.function(compute, jit_compile=True, autograph=False)
    return str(compiled.experimental_get_compiler_ir(batch, *vectors)(stage="hlo"))


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "precision", "rtol"),
    [
        pytest.param("rnn", "float32", 1e-6, marks=pytest.mark.slow),
        pytest.param("gru", "float64", 1e-10, marks=pytest.mark.slow),
        ("rnn", "bfloat16", 0.02),
    ],
)
def test_the_embedding_is_outside_of_what_xla_compiles_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, rtol: float
) -> None:
    """No scatter is left, which would be a loop over words, and steps are the same to rounding."""
    strategy = tf.distribute.get_strategy()
    plan = ExecutionPlan("xla", 1)
    job = load_job(JOBS / f"{name}.toml", [*SETTINGS, f"train.precision={precision}"])
    order = np.arange(NUM_REVIEWS, dtype=np.int32)[None]
    usual = build_step(job, strategy, plan)
    monkeypatch.setattr("harness.compute.adversarial.num_own_gpus", lambda: 1)
    monkeypatch.setattr("harness.compute.train_step.num_own_gpus", lambda: 1)
    outside = build_step(job, strategy, plan)
    assert type(usual) is TrainStep
    assert type(outside) is OuterLookupStep
    vectors = tf.zeros([20, LENGTH, job.model.embedding_dim], outside.model.variable_dtype)
    assert "scatter(" in hlo_of(usual.gradients)
    assert "scatter(" not in hlo_of(outside._at_words, vectors)
    results = []
    for train_step in (usual, outside):
        opened = batches(strategy, reviews(), order, shape=BatchShape(20, LENGTH))
        sums = train_step.train_steps(iter(opened), 3).numpy()
        results.append([sums, *train_step.model.get_weights()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


@pytest.mark.full
@pytest.mark.parametrize("parts", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_several_classes_train_as_with_plain_keras(parts: int) -> None:
    """Sums of losses and of correct predictions, and the weights, in parts too."""
    import keras

    settings = [*SETTINGS, "model.dropout=0", "model.spatial_dropout=0", "train.ema_momentum=0"]
    clipped = "train.clipnorm=1000"  # which changes nothing here
    job = load_job(JOBS / "lstm.toml", [*settings, "train.precision=float64", clipped])
    labels = (np.arange(NUM_REVIEWS) % 5).astype(np.int32)
    several = reviews()._replace(labels=labels)
    strategy = tf.distribute.get_strategy()
    plan = ExecutionPlan("xla" if parts > 1 else "keras", 1, parts)
    train_step = TrainStep(job, strategy, plan, num_outputs=5)
    plain = keras.models.clone_model(train_step.export_model)
    plain.set_weights(train_step.export_model.get_weights())
    order = np.arange(NUM_REVIEWS, dtype=np.int32)[None]
    opened = batches(strategy, several, order, shape=BatchShape(20, LENGTH))
    sums = train_step.train_steps(iter(opened), 3).numpy()

    optimizer = keras.optimizers.RMSprop(job.train.learning_rate)
    tokens = several.tokens.reshape(NUM_REVIEWS, 4)
    tokens = np.pad(tokens, [(0, 0), (LENGTH - 4, 0)])
    for step, chosen in enumerate((slice(0, 20), slice(20, 40), slice(40, 50))):
        with tf.GradientTape() as tape:
            outputs = plain(tokens[chosen], training=True)
            of_label = tf.gather(outputs, labels[chosen], batch_dims=1)
            loss = -tf.reduce_sum(tf.math.log(of_label))
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


def test_parts_hold_all_rows_in_order() -> None:
    """The last part has what is left; a batch that fits is left as it is."""
    order = np.arange(NUM_REVIEWS, dtype=np.int32)[None]
    strategy = tf.distribute.get_strategy()
    batch = next(iter(batches(strategy, reviews(), order, shape=BatchShape(20, LENGTH))))
    parts = in_parts(batch, 20, 8)
    assert [len(part.positions) for part in parts] == [8, 8, 4]
    for field in ("tokens", "labels", "weights", "positions"):
        joined = np.concatenate([getattr(part, field) for part in parts])
        np.testing.assert_array_equal(joined, getattr(batch, field))
    assert {int(part.count) for part in parts} == {20}
    assert in_parts(batch, 20, 20) == [batch]


KERNELS = {
    "rnn": ["loop"],
    "lstm": ["cudnn"],
    "gru": ["cudnn"],
    "bilstm": ["cudnn"],
    "stacked_lstm": ["cudnn", "cudnn"],
    "notebook/gru": ["loop"],
    "lstm train.precision=float16": ["cudnn"],
    "gru train.precision=bfloat16 model.pooling=mean": ["cudnn"],
    "bilstm train.precision=float16 model.pooling=max": ["cudnn"],
    "stacked_lstm train.precision=bfloat16 model.pooling=max": ["cudnn", "cudnn"],
    "bilstm data.bucket=true": ["cudnn", "cudnn"],
    "gru data.bucket=true train.precision=float16 model.pooling=max+mean": ["cudnn"],
    "half fused": ["cudnn", "loop"],
}
HARDEST = (
    *("rnn", "bilstm", "stacked_lstm train.precision=bfloat16 model.pooling=max"),
    *("bilstm data.bucket=true", "half fused"),
)


@pytest.mark.full
@pytest.mark.parametrize(
    ("devices", "names"),
    [
        pytest.param("cpu:1", KERNELS, marks=pytest.mark.slow),
        pytest.param("cpu:2", KERNELS, marks=pytest.mark.slow),
        ("cpu:2", HARDEST),
    ],
)
def test_the_record_names_the_kernel_that_the_graph_holds(
    devices: str, names: Collection[str]
) -> None:
    """Where Keras sees a GPU it fuses LSTM and GRU layers on every replica, and no others.

    In a process of its own, since Keras's own question for a GPU is answered yes in it.
    """
    command = [sys.executable, "-m", "tests.compute.trace_kernels", devices, *names]
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {name: KERNELS[name] for name in names}
