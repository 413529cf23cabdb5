"""A custom network is built from its source, checked before a run begins, and loaded again."""

import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from harness.compute.execution_plan import ExecutionPlan
from harness.compute.network import (
    build_network,
    check_network,
    dtype_policy,
    load_network,
    training_network,
)
from harness.compute.recurrent import turn_cudnn_off
from harness.compute.train_step import TrainStep
from harness.data.input_pipeline import Batch
from harness.errors import InputError
from harness.inference.model_file import save_model
from harness.job.job_file import check_job, load_job
from harness.job.keys import Job, TrainConfig
from harness.job.own_code import OptionReader
from harness.layers import GlobalBatchDropout, look_up_by_gather
from harness.tracking.run_dir import RunDirectory
from tests.conftest import JOBS

HEAD = "import keras, tensorflow as tf\nfrom keras import layers\n"
BODY = """
    return keras.Sequential(
        [layers.Embedding(vocab_size, 4), layers.GlobalMaxPooling1D(), layers.Dropout(0.5),
         layers.Dense(num_outputs, activation="sigmoid")])
"""
CLASS = """
    class Net(keras.Model):
        def __init__(self, size):
            super().__init__()
            self.embedding = layers.Embedding(vocab_size, size)
            self.parts = [layers.Dropout(0.5), layers.GRU(4)]
            self.last = layers.Dense(num_outputs, activation=lambda x: keras.ops.sigmoid(x))
        def call(self, tokens):
            values = self.embedding(tokens)
            for part in self.parts:
                values = part(values)
            return self.last(values)
    return Net(4)
"""


def custom(body: str, head: str = HEAD, **options: object) -> Job:
    source = f"{head}def net(vocab_size, config, *, num_outputs, options):\n"
    return check_job(
        {
            "name": "mine",
            "model": {"architecture": "mynet.py:net", "options": options},
            "data": {"vocab_size": 50, "maxlen": 6},
            "code": {"mynet.py": source + indent(dedent(body), "    ")},
        },
        Path("mine.toml"),
    )


FAULTY = CLASS.replace(
    "return Net(4)", "    def get_config(self): return {'size': self.sizes[0]}\n    return Net(4)"
)


@pytest.mark.parametrize(("body", "num_outputs"), [(BODY, 1), (BODY, 5), (CLASS, 5), (FAULTY, 1)])
def test_any_keras_model_is_built_trained_and_loaded(
    tmp_path: Path, body: str, num_outputs: int
) -> None:
    """Sequential models and subclasses of keras.Model are rebuilt from source and weights."""
    job = custom(body.replace('"sigmoid"', '"softmax"') if num_outputs > 1 else body)
    model = build_network(job, num_outputs)
    trained = training_network(job, model, num_outputs)
    tokens = np.arange(18).reshape(3, 6)
    np.testing.assert_array_equal(model(tokens), trained(tokens))
    assert [each.name for each in trained.layers] == [each.name for each in model.layers]
    files = []
    for name in ("a", "b"):
        run = RunDirectory(tmp_path / name)
        run.take_lease()
        save_model(run, model)
        files.append(run.path("model.keras"))
        assert {each.name for each in run.folder.iterdir()} == {"lease.json", "model.keras"}
    assert files[0].read_bytes() == files[1].read_bytes()
    loaded = load_network(job, files[0], num_outputs)
    np.testing.assert_array_equal(model(tokens), loaded(tokens))
    if body == BODY:  # without custom classes
        np.testing.assert_array_equal(model(tokens), keras.saving.load_model(files[0])(tokens))


def in_training(code: str) -> str:
    """Return the body of a model that executes `code` only in training."""
    return CLASS.replace("call(self, tokens):", "call(self, tokens, training=False):").replace(
        "values = self.embedding(tokens)",
        f"values = self.embedding(tokens)\n            if training: {code}",
    )


def with_variable(owner: str) -> str:
    """Return the body of a model that gives `owner` a variable outside of Keras."""
    line = f"    {owner}.num = __import__('tensorflow').Variable(0.0)\n"
    return CLASS.replace("        def call", f"        {line}        def call")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (in_training("values = values[:, 0] * undefined"), "mynet.py, line 13: NameError"),
        (in_training("values += keras.random.normal([4])"), "draws random numbers from a gen"),
        (in_training("values *= tf.nn.dropout(tf.ones([4]), 0.1)"), "draws random numbers from"),
        (in_training("values += tf.random.get_global_generator().normal([4])"), "draws random"),
        (BODY.replace("num_outputs,", "num_outputs, kernel_regularizer='l2',"), "adds 1 losses"),
        (in_training("values = keras.ops.stop_gradient(values)"), "depend on net/embedding/emb"),
        ("return 3", "returns a int, should return a keras.Model"),
        (BODY.replace("num_outputs,", "3,"), "returns (rows, 3), should return"),
        (BODY.replace('"sigmoid"', "None"), "its outputs are not probabilities"),
        (BODY.replace("0.5", "options['rate']"), "model.options.rate is missing"),
        (BODY.replace("0.5", "7"), "mynet.py, line 6: ValueError: Invalid value received"),
        (with_variable("self.last"), "layer dense: its variable num is a tf.Variable, which would"),
        (with_variable("self"), "layer net: its variable num is a tf.Variable, which would not be"),
    ],
)
def test_a_network_that_can_t_be_trained_is_refused(body: str, says: str) -> None:
    """The message is one line with the network's error, its file and its line number."""
    with pytest.raises(InputError, match=rf"^[^\n]*{re.escape(says)}[^\n]*$"):
        begin(custom(body))


def begin(job: Job) -> None:
    """Check a network as a new run does, until the run has traced its first step."""
    check_network(job)
    step = TrainStep(job, tf.distribute.get_strategy(), ExecutionPlan("keras", 1))
    rows, floats = tf.TensorSpec([20], tf.int32), tf.TensorSpec([20], tf.float32)
    count, number = tf.TensorSpec([], tf.float32), tf.TensorSpec([], tf.int64)
    tokens = tf.TensorSpec([20, job.data.maxlen], tf.int32)
    batch = Batch(tokens, floats, floats, rows, count, number)
    tf.function(step.gradients, autograph=False).get_concrete_function(batch)


def test_a_network_without_an_embedding_for_the_vectors_is_refused() -> None:
    """Vectors that are loaded or not trained need an embedding of their shape."""
    content = custom(BODY).model_dump()
    content["model"] |= {"train_embeddings": False, "embedding_dim": 5}
    with pytest.raises(InputError, match=r"no Embedding layer for 50 words .* with 5 dimensions"):
        begin(check_job(content, Path("mine.toml")))
    content["model"]["embedding_dim"] = 4
    begin(check_job(content, Path("mine.toml")))


@pytest.mark.parametrize(
    ("part", "other", "settings", "says"),
    [
        ("layers.Glob", "layers.Conv1D(4, 10), layers.Glob", {"data": {"bucket": True}}, "8 words"),
        ("[layers", "[layers.Hashing(50), layers", {"train": {"xla": "on"}}, "compile"),
        ("layers.Dropout(0.5)", "layers.BatchNormalization(synchronized=True)", {}, "synchronized"),
    ],
)
def test_a_network_that_a_setting_excludes_is_refused(
    part: str, other: str, settings: dict[str, dict[str, object]], says: str
) -> None:
    """Each network is valid, but not with batches by length, compilation or several replicas."""
    content = custom(BODY.replace(part, other)).model_dump()
    content["data"]["maxlen"] = 16
    plain = check_job(content, Path("mine.toml"))
    check_network(plain)
    for table, keys in settings.items():
        content[table] |= keys
    with pytest.raises(InputError, match=rf"^[^\n]*{re.escape(says)}[^\n]*$"):
        check_network(check_job(content, Path("mine.toml")), num_replicas=2)


def test_probabilities_of_classes_add_up() -> None:
    """More than two classes need a softmax; a sigmoid is refused."""
    with pytest.raises(InputError, match=r"not probabilities.*softmax"):
        check_network(custom(BODY), num_outputs=3)
    assert check_network(custom(BODY.replace('"sigmoid"', '"softmax"')), num_outputs=3) == ""


def test_an_option_that_nothing_reads_is_refused() -> None:
    """The line for an unknown option names the options that the network reads."""
    body = BODY.replace("0.5", "options.get('rate', 0.5)")
    check_network(custom(body, rate=0.1))
    with pytest.raises(InputError, match=r"model\.options\.raet = 0\.1.*did you mean rate\?"):
        check_network(custom(body, raet=0.1))
    with pytest.raises(InputError, match="reads no such option; known: rate"):
        check_network(custom(body, units=3))


@pytest.mark.parametrize(
    "read", [dict, lambda o: {**o}, lambda o: {} | o, lambda o: o | {}, lambda o: dict(o.items())]
)
def test_a_function_that_copies_its_options_reads_them_all(read: Callable[[Any], object]) -> None:
    """Copying counts as reading all options, because a call with `**options` copies them, too."""
    options = OptionReader({"a": 1, "b": 2}, "model.options")
    with pytest.raises(InputError, match=r"model\.options\.[ab] = "):
        options.check("net")
    read(options)
    options.check("net")
    assert (options.setdefault("a", 2), options.setdefault("c", 3)) == (1, 3)
    options.check("net")
    with pytest.raises(KeyError):
        options["d"]


def test_a_network_may_take_values_out_of_its_options() -> None:
    """A run builds the network several times, and the recorded job keeps the options."""
    loop = "    more, left = [], options['widths']\n    while left: more += [dense(left.pop())]"
    body = loop + BODY.replace("layers.Dropout(0.5)", "*more")
    job = custom(body, head=f"{HEAD}dense = layers.Dense\n", widths=[3, 4, 5])
    first = build_network(job)
    assert training_network(job, first).count_params() == first.count_params()
    assert job.model.options == {"widths": [3, 4, 5]}


def test_a_function_that_returns_different_networks_is_refused() -> None:
    """Before training, a run checks that trained and exported network have equal weights."""
    body = BODY.replace("vocab_size, 4", "vocab_size, SIZES.pop()")
    job = custom(body, head=f"{HEAD}SIZES = [1, 2, 3, 4, 5]\n")
    with pytest.raises(InputError, match="a different network at each call"):
        begin(job)


def test_a_function_that_returns_the_same_layers_is_refused() -> None:
    """The checks of the exported network would change the trained network."""
    body = BODY.replace("layers.Embedding(", "shared(layers.Embedding, ")
    shared = "import functools\n@functools.cache\ndef shared(kind, *sizes): return kind(*sizes)\n"
    with pytest.raises(InputError, match="returns the same layers at each call"):
        begin(custom(body, head=f"{HEAD}{shared}"))


def test_layers_that_depend_on_the_replicas_are_named() -> None:
    """Random layers and averages over a batch cause a warning. Averages include empty reviews."""
    assert check_network(custom(BODY)) == ""
    for layer, name in (
        ("layers.GaussianNoise(0.1)", "gaussian_noise"),
        ("layers.BatchNormalization()", "batch_normalization"),
    ):
        warning = check_network(custom(BODY.replace("layers.Dropout(0.5)", layer)))
        assert name in warning
        assert ("zeros that fill" in warning) == (name == "batch_normalization")
    recurrent = BODY.replace("layers.GlobalMaxPooling1D()", "layers.LSTM(4, dropout=0.5)")
    assert "lstm" in check_network(custom(recurrent))
    assert check_network(custom(recurrent.replace(", dropout=0.5", ""))) == ""


def test_a_sequential_network_gets_whole_word_indices() -> None:
    """In bfloat16, 4001 and 4004 would be the same word."""
    train = TrainConfig(precision="bfloat16")
    model = build_network(custom(BODY).model_copy(update={"train": train}))
    assert model.inputs[0].dtype == "int32"


@pytest.mark.parametrize("mask", [True, False])
def test_recurrent_layers_with_a_mask_do_not_use_cudnn(mask: bool) -> None:
    """cuDNN supports padding only at the end. `turn_cudnn_off` also reaches nested layers."""
    inner = "keras.Sequential([layers.LSTM(4)])"
    body = BODY.replace("layers.GlobalMaxPooling1D()", inner)
    model = build_network(custom(body.replace("vocab_size, 4", f"vocab_size, 4, mask_zero={mask}")))
    (lstm,) = (each for each in model._flatten_layers() if isinstance(each, keras.layers.LSTM))
    assert lstm.use_cudnn == (False if mask else "auto")
    turn_cudnn_off(model)
    assert lstm.use_cudnn is False


def test_nested_dropout_is_over_the_global_batch() -> None:
    """In training, nested layers use dropout over the global batch, not Keras's dropout."""
    job = custom(CLASS)
    trained = training_network(job, build_network(job))
    assert trained.parts[0].call.__func__ is GlobalBatchDropout.call
    with pytest.raises(RuntimeError, match="only in the training of a run"):
        trained(np.zeros([2, 6], np.int32), training=True)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_gather_looks_up_words_like_keras(precision: str) -> None:
    """Vectors and gradients have the same bytes, in the trained and in the saved network."""
    job = load_job(JOBS / "lstm.toml", [f"train.precision={precision}", "data.vocab_size=9"])
    tokens = tf.constant([[0, 3, 3, 8]])
    with dtype_policy(job):
        saved = build_network(job)
        trained = training_network(job, saved)
    for model in (saved, trained):
        embedding = model.layers[0]

        def outputs(embedding: Any = embedding) -> list[Any]:
            with tf.GradientTape() as tape:
                vectors = embedding(tokens)
                total = tf.reduce_sum(vectors * tf.range(32, dtype=vectors.dtype))
            return [vectors, tf.convert_to_tensor(tape.gradient(total, embedding.embeddings.value))]

        expected = outputs()
        graph = tf.function(embedding, autograph=False)
        assert "Less" in operations(graph, tokens)
        look_up_by_gather(model)
        for one, other in zip(outputs(), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert "Less" not in operations(tf.function(embedding, autograph=False), tokens)


def operations(function: Any, tokens: tf.Tensor) -> set[str]:
    """Return the kinds of operations in a function's graph."""
    return {each.type for each in function.get_concrete_function(tokens).graph.get_operations()}
