"""Recurrent layers: the replacements of Keras's loop compute the same results as the loop."""

import functools
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from harness.compute import device_check
from harness.compute.execution_plan import ExecutionPlan
from harness.compute.network import build_network, dtype_policy, training_network
from harness.compute.recurrent import (
    compute_in_float32,
    recurrent_layers,
    replace_loops,
    turns_of_two,
    use_cudnn_rnn,
    why_slow,
)
from harness.job.job_file import load_job
from tests.conftest import JOBS

SETTINGS = ("data.vocab_size=100", "data.maxlen=12", "train.batch_size=20", "model.units=4")


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lstm", []),
        ("bilstm", ["train.precision=float16"]),
        ("bilstm", ["data.bucket=true", "model.pooling=max+mean"]),
    ],
)
def test_two_words_per_turn_give_the_results_of_the_loop(name: str, settings: list[str]) -> None:
    """Only rounding differs, also for an odd number of words that is unknown during tracing."""
    job = load_job(JOBS / f"{name}.toml", [*SETTINGS, *settings])
    with dtype_policy(job):
        model = build_network(job)
    generator = np.random.default_rng(1)
    tokens = [tf.constant(generator.integers(4, 100, [5, num]), tf.int32) for num in (1, 13)]
    expected = [model(each, training=False) for each in tokens]
    replace_loops(model, turns_of_two)
    network = tf.function(
        functools.partial(model, training=False),
        autograph=False,
        input_signature=[tf.TensorSpec([None, None], tf.int32)],
    )
    half = job.train.precision == "float16"
    for one, wanted in zip(tokens, expected, strict=True):
        np.testing.assert_allclose(network(one), wanted, atol=1e-3 if half else 1e-6)


class Cudnn:
    """Replaces CudnnRNNV3 on a CPU, and follows cuDNN's manual for CUDNN_RNN_TANH.

    `params` contains, row by row, the matrix of the input, the matrix of the state, and a bias
    for each matrix.
    """

    def __init__(self) -> None:
        self.num_calls, self.takes_columns = 0, False

    def __call__(
        self, *, input_h: tf.Tensor, params: tf.Tensor, rnn_mode: str, **others: Any
    ) -> SimpleNamespace:
        assert rnn_mode == "rnn_tanh"
        self.num_calls += 1
        words = others["input"]
        units, features = input_h.shape[-1], words.shape[-1]
        sizes = [units * features, units * units, units, units]
        of_words, of_state, bias, second_bias = tf.split(params, sizes)
        of_words = tf.reshape(of_words, [units, features])
        of_state = tf.reshape(of_state, [units, units])
        state, outputs = input_h[:, 0], []
        for word in tf.unstack(words, axis=1):
            by_state = tf.matmul(state, of_state, transpose_b=not self.takes_columns)
            by_word = tf.matmul(word, of_words, transpose_b=True)
            state = tf.tanh(by_word + bias + by_state + second_bias)
            outputs.append(state)
        return SimpleNamespace(output=tf.stack(outputs, axis=1), output_h=state[:, None])


@pytest.fixture
def cudnn(monkeypatch: pytest.MonkeyPatch) -> Cudnn:
    """Replace cuDNN's plain RNN by one that runs on a CPU."""
    operation = Cudnn()
    monkeypatch.setattr(tf.raw_ops, "CudnnRNNV3", operation)
    return operation


def test_cudnns_plain_rnn_equals_keras_layer(cudnn: Cudnn) -> None:
    """Outputs and gradients are equal, in both directions, for all words and for the last word."""
    model = keras.Sequential(
        [
            keras.Input([None, 3]),
            layers.Bidirectional(layers.SimpleRNN(4, return_sequences=True)),
            layers.SimpleRNN(5, bias_initializer="glorot_uniform"),
            layers.Dense(2),
        ]
    )
    words = tf.random.stateless_normal([6, 7, 3], [1, 2])

    def outputs_and_gradients() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(words)
            outputs = model(words)
            total = tf.reduce_sum(outputs**2)
        variables = [each.value for each in model.trainable_variables]
        return [outputs, *tape.gradient(total, [words, *variables])]

    expected = outputs_and_gradients()
    use_cudnn_rnn(model)
    assert cudnn.num_calls == 0
    for found, should in zip(outputs_and_gradients(), expected, strict=True):
        np.testing.assert_allclose(found, should, atol=1e-5)
    assert cudnn.num_calls == 3


def test_a_plain_rnn_that_gets_a_mask_keeps_its_loop(cudnn: Cudnn) -> None:
    """cuDNN supports no mask that begins with zeros."""
    embedding = layers.Embedding(9, 3, mask_zero=True)
    model = keras.Sequential([keras.Input([None]), embedding, layers.SimpleRNN(4)])
    tokens = tf.constant([[0, 0, 3, 4], [0, 5, 6, 7]])
    expected = model(tokens)
    use_cudnn_rnn(model)
    np.testing.assert_array_equal(model(tokens), expected)
    assert cudnn.num_calls == 0


def test_cudnns_plain_rnn_is_used_where_it_agrees(
    cudnn: Cudnn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each GPU is compared with the CPU; Keras's loop replaces a wrong kernel."""
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(device_check, "is_switched_off", lambda: False)
    find = device_check.find_difference.__wrapped__  # without the cache
    monkeypatch.setattr(device_check, "find_difference", lambda gpu, layers: find("CPU:0", layers))
    rnn, lstm = (load_job(JOBS / f"{name}.toml") for name in ("rnn", "lstm"))
    plan = ExecutionPlan("cudnn", 1)
    assert device_check.checked_plan(plan, rnn).way == "cudnn"
    assert cudnn.num_calls == 1
    cudnn.takes_columns = True
    assert device_check.checked_plan(plan, rnn).way == "keras"
    assert device_check.checked_plan(plan, lstm).way == "cudnn"  # an LSTM job has no plain RNN


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "relu"},
        {"dropout": 0.1},
        {"recurrent_dropout": 0.1},
        {"unroll": True},
        {"use_bias": False},
    ],
    ids=str,
)
def test_a_plain_rnn_with_a_setting_that_cudnn_lacks_keeps_its_loop(
    cudnn: Cudnn, settings: dict[str, Any]
) -> None:
    """The layer's results do not change."""
    layer = layers.SimpleRNN(4, **settings)
    words = tf.random.stateless_normal([6, 7, 3], [1, 2])
    expected = layer(words)
    use_cudnn_rnn(layer)
    np.testing.assert_allclose(layer(words), expected, atol=1e-5)
    assert cudnn.num_calls == 0


def test_layers_without_cudnn_cause_a_warning() -> None:
    """The warning names them."""
    assert why_slow({"lstm": "cudnn"}) == ""
    line = why_slow({"lstm": "cudnn", "gru": "loop", "rnn": "xla"})
    assert line.startswith("gru, rnn: slow on a GPU")


def test_recurrent_layers_compute_in_float32_instead_of_bfloat16() -> None:
    """Their cells and directions also do; other layers and the saved network stay in bfloat16."""
    job = load_job(JOBS / "bilstm.toml", [*SETTINGS, "train.precision=bfloat16"])
    with dtype_policy(job):
        saved = build_network(job)
        trained = training_network(job, saved)
    (layer,), (of_saved,) = recurrent_layers(trained), recurrent_layers(saved)
    assert compute_in_float32(trained) == [layer.name]
    assert {each.compute_dtype for each in layer._flatten_layers()} == {"float32"}
    assert trained.layers[-2].compute_dtype == "bfloat16"
    assert of_saved.compute_dtype == "bfloat16"
    assert compute_in_float32(trained) == []
