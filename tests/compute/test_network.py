"""A user's network is built from its source, checked before a run begins, and loaded again."""

import contextlib
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from harness.architectures import BUILDERS
from harness.compute import network
from harness.compute.network import (
    build_network,
    check_network,
    dtype_policy,
    load_network,
    training_network,
)
from harness.compute.recurrent import turn_cudnn_off
from harness.errors import InputError
from harness.inference.model_file import save_model
from harness.job.job_file import check_job, load_job
from harness.job.keys import Job
from harness.job.own_code import OptionReader
from harness.layers import GlobalBatchDropout, look_up_by_gather
from harness.tracking.run_dir import RunDirectory
from tests.conftest import JOBS

HEAD = "import keras\nfrom keras import layers\n"
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


def own(body: str, head: str = HEAD, **options: object) -> Job:
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


@pytest.mark.parametrize("body", [BODY, CLASS, FAULTY])
@pytest.mark.parametrize("num_outputs", [1, 5])
def test_any_keras_model_is_built_trained_and_loaded(
    tmp_path: Path, body: str, num_outputs: int
) -> None:
    """A chain of layers and a class of the user's come back from their source and their weights."""
    job = own(body.replace('"sigmoid"', '"softmax"') if num_outputs > 1 else body)
    model = build_network(job, num_outputs)
    trained = training_network(job, model, num_outputs)
    tokens = np.arange(18).reshape(3, 6)
    np.testing.assert_array_equal(model(tokens), trained(tokens))
    assert [each.name for each in trained.layers] == [each.name for each in model.layers]
    files = []
    for name in ("a", "b"):
        run = RunDirectory(tmp_path / name)
        run.take_lease()
        save_model(run, model, is_own=True)
        files.append(run.path("model.keras"))
    assert files[0].read_bytes() == files[1].read_bytes()
    loaded = load_network(job, files[0], num_outputs)
    np.testing.assert_array_equal(model(tokens), loaded(tokens))
    if body == BODY:  # plain Keras knows all of it
        np.testing.assert_array_equal(model(tokens), keras.saving.load_model(files[0])(tokens))


def in_training(code: str) -> str:
    """The body of a class that does something in training alone."""
    return CLASS.replace("call(self, tokens):", "call(self, tokens, training=False):").replace(
        "values = self.embedding(tokens)",
        f"values = self.embedding(tokens)\n            if training: {code}",
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (in_training("values = values[:, 0] * undefined"), "mynet.py, line 13: NameError"),
        (in_training("self.add_loss(keras.ops.sum(values))"), "adds 1 losses"),
        (
            in_training("values = keras.ops.stop_gradient(values)"),
            "does not depend on net/embedding/embeddings; use what",
        ),
        ("return 3", "gives a int, should give a keras.Model"),
        ("return undefined", "mynet.py, line 4: NameError: name 'undefined' is not defined"),
        (BODY.replace("num_outputs,", "3,"), "gives [rows, 3], should give [rows, 1]"),
        (BODY.replace("layers.GlobalMaxPooling1D(), ", ""), "gives [rows, 6, 1], should give"),
        (BODY.replace('"sigmoid"', "None"), "which are no probabilities"),
        (BODY.replace("0.5", "options['rate']"), "model.options.rate is missing"),
        (BODY.replace("0.5", "7"), "mynet.py, line 6: ValueError: Invalid value received"),
        (BODY.replace("num_outputs,", "num_outputs, kernel_regularizer='l2',"), "adds 1 losses"),
    ],
)
def test_a_network_that_can_t_be_trained_is_refused(body: str, says: str) -> None:
    """One line holds its own error, file and line."""
    with pytest.raises(InputError) as refused:
        check_network(own(body))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_network_without_an_embedding_for_the_vectors_is_refused() -> None:
    """Before anything of the run is written; one that has begun is not looked at."""
    content = own(BODY).model_dump()
    content["model"] |= {"embeddings": "glove.txt", "embedding_dim": 5}
    job = check_job(content, Path("mine.toml"))
    with pytest.raises(InputError, match="no layer Embedding of 50 words and 5 numbers"):
        check_network(job)
    assert check_network(job, trains=False) == ""
    content["model"]["embedding_dim"] = 4
    assert check_network(check_job(content, Path("mine.toml"))) == ""


def test_a_run_that_has_begun_trains_as_it_did() -> None:
    """What a new run is refused for in training does not end an older one."""
    job = own(in_training("self.add_loss(keras.ops.sum(values))"))
    assert check_network(job, trains=False) == ""
    regularized = BODY.replace("num_outputs,", "num_outputs, kernel_regularizer='l2',")
    with pytest.raises(InputError, match="adds 1 losses"):
        check_network(own(regularized), trains=False)


def test_a_look_at_training_changes_no_random_state() -> None:
    """The numbers that a run draws afterwards are as without it."""
    noise = "values = values + keras.random.normal(keras.ops.shape(values))"
    drawn = []
    for body in (CLASS, in_training(noise)):
        keras.utils.set_random_seed(3)
        model = build_network(own(body))
        if body != CLASS:
            network._traced_training(model, own(body), "net")
        drawn.append([np.random.random(), float(keras.random.uniform([]))])
    assert drawn[0] == drawn[1]


def test_probabilities_of_classes_add_up() -> None:
    """With more than two classes a sigmoid for each is refused, and a softmax is not."""
    with pytest.raises(InputError, match=r"no probabilities.*softmax"):
        check_network(own(BODY), num_outputs=3)
    assert check_network(own(BODY.replace('"sigmoid"', '"softmax"')), num_outputs=3) == ""


def test_an_option_that_nothing_reads_is_refused() -> None:
    """A typing error in the free table is found, and the names that count are told."""
    body = BODY.replace("0.5", "options.get('rate', 0.5)")
    check_network(own(body, rate=0.1))
    with pytest.raises(InputError, match=r"model\.options\.raet = 0\.1.*did you mean rate\?"):
        check_network(own(body, raet=0.1))
    with pytest.raises(InputError, match="reads no such option; known: rate"):
        check_network(own(body, units=3))


def test_every_way_to_read_an_option_counts() -> None:
    """Whoever takes all options, as `**options` does, has read all of them."""
    for read in (
        dict,
        lambda o: {**o},
        lambda o: {} | o,
        lambda o: o | {},
        list,
        lambda o: dict(o.items()),
    ):
        options = OptionReader({"a": 1, "b": 2}, "model.options")
        read(options)
        options.check("net")
    options = OptionReader({"a": 1}, "model.options")
    assert (options.setdefault("a", 2), options.setdefault("b", 3), options["b"]) == (1, 3, 3)
    options["c"] = 4  # for itself, as the job has none
    options.check("net")
    with pytest.raises(KeyError):
        OptionReader({}, "model.options")["a"]
    with pytest.raises(InputError, match=r"model\.options\.a = 1"):
        OptionReader({"a": 1}, "model.options").check("net")


def test_a_network_may_take_values_out_of_its_options() -> None:
    """It is built several times in a run, and the job that is recorded keeps them."""
    loop = "    more, left = [], options['widths']\n    while left: more += [dense(left.pop())]"
    body = loop + BODY.replace("layers.Dropout(0.5)", "*more")
    job = own(body, head=f"{HEAD}dense = layers.Dense\n", widths=[3, 4, 5])
    first = build_network(job)
    assert training_network(job, first).count_params() == first.count_params()
    assert job.model.options == {"widths": [3, 4, 5]}


def with_keys(job: Job, table: str, **keys: object) -> Job:
    content = job.model_dump()
    content[table] |= keys
    return check_job(content, Path("mine.toml"))


@pytest.mark.parametrize(
    ("width", "bucket", "says"), [(10, False, ""), (8, True, ""), (10, True, "of 8 words and more")]
)
def test_batches_by_length_need_a_network_for_short_ones(
    width: int, bucket: bool, says: str
) -> None:
    """And texts to classify are as short; a run that has begun is not looked at."""
    body = BODY.replace("layers.GlobalMax", "layers.Conv1D(4, options['width']), layers.GlobalMax")
    job = with_keys(own(body, width=width), "data", maxlen=16, bucket=bucket)
    assert check_network(job, trains=False) == ""
    with contextlib.nullcontext() if not says else pytest.raises(InputError, match=says):
        check_network(job)


@pytest.mark.parametrize(("first", "says"), [("", ""), ("layers.Hashing(50), ", "should compile")])
def test_a_compiled_evaluation_needs_a_network_that_compiles(first: str, says: str) -> None:
    """XLA has no operations on texts; it is told before an epoch is trained."""
    job = own(BODY.replace("[layers", f"[{first}layers"))
    assert check_network(job) == ""
    compiled = with_keys(job, "train", xla="on")
    assert check_network(compiled, trains=False) == ""
    with contextlib.nullcontext() if not says else pytest.raises(InputError, match=says):
        check_network(compiled)


def test_a_signature_that_does_not_fit_is_named() -> None:
    """A function for something else ends in one line with what it should take."""
    job = own("return 1").model_copy(update={"code": {"mynet.py": "def net(a): pass\n"}})
    with pytest.raises(InputError, match=r"should take \(vocab_size, config, \*, num_outputs"):
        check_network(job)


def test_a_network_that_is_another_each_time_is_refused() -> None:
    """The trained and the exported one must have the same weights."""
    body = BODY.replace("vocab_size, 4", "vocab_size, SIZES.pop()")
    job = own(body, head=f"{HEAD}SIZES = [1, 2, 3, 4, 5]\n")
    with pytest.raises(InputError, match="another network each time"):
        training_network(job, build_network(job))


def test_layers_that_depend_on_the_replicas_are_named() -> None:
    """A generator of random numbers, and averages over a batch, lead to a warning."""
    assert check_network(own(BODY)) == ""
    for layer, name in (
        ("layers.GaussianNoise(0.1)", "gaussian_noise"),
        ("layers.BatchNormalization()", "batch_normalization"),
    ):
        assert name in check_network(own(BODY.replace("layers.Dropout(0.5)", layer)))
    recurrent = BODY.replace("layers.GlobalMaxPooling1D()", "layers.LSTM(4, dropout=0.5)")
    assert "lstm" in check_network(own(recurrent))
    assert check_network(own(recurrent.replace(", dropout=0.5", ""))) == ""


def test_averages_over_replicas_are_refused_on_several() -> None:
    """TensorFlow adds up nothing over replicas inside of a compiled step."""
    job = own(BODY.replace("layers.Dropout(0.5)", "layers.BatchNormalization(synchronized=True)"))
    assert check_network(job) == ""
    with pytest.raises(InputError, match="batch_normalization has synchronized=True"):
        check_network(job, num_replicas=2)


@pytest.mark.parametrize("mask", [True, False])
def test_recurrent_layers_that_get_a_mask_do_without_cudnn(mask: bool) -> None:
    """It takes masks of padding at the end alone; where XLA is on, inner layers do without too."""
    inner = "keras.Sequential([layers.LSTM(4)])"
    body = BODY.replace("layers.GlobalMaxPooling1D()", inner)
    model = build_network(own(body.replace("vocab_size, 4", f"vocab_size, 4, mask_zero={mask}")))
    (lstm,) = (each for each in model._flatten_layers() if isinstance(each, keras.layers.LSTM))
    assert lstm.use_cudnn == (False if mask else "auto")
    turn_cudnn_off(model)
    assert lstm.use_cudnn is False


def test_dropout_inside_of_other_layers_is_over_the_global_batch() -> None:
    """No layer keeps Keras's own dropout in training, however deep it is, and each has a seed."""
    job = own(CLASS)
    trained = training_network(job, build_network(job))
    assert trained.parts[0].call.__func__ is GlobalBatchDropout.call
    with pytest.raises(RuntimeError, match="in the training of a run alone"):
        trained(np.zeros([2, 6], np.int32), training=True)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_words_are_looked_up_by_a_gather_as_by_keras(precision: str) -> None:
    """The same vectors and gradients, to the byte, in the trained network and in the saved one."""
    job = load_job(JOBS / "lstm.toml", [f"train.precision={precision}", "data.vocab_size=9"])
    tokens = tf.constant([[0, 3, 3, 8]])
    with dtype_policy(job):
        saved = build_network(job)
        trained = training_network(job, saved)
    for model in (saved, trained):
        embedding = model.layers[0]

        def found(embedding: Any = embedding) -> list[Any]:
            with tf.GradientTape() as tape:
                vectors = embedding(tokens)
                total = tf.reduce_sum(vectors * tf.range(32, dtype=vectors.dtype))
            return [vectors, tf.convert_to_tensor(tape.gradient(total, embedding.embeddings.value))]

        expected = found()
        graph = tf.function(embedding, autograph=False)
        assert "Less" in operations(graph, tokens)
        look_up_by_gather(model)
        for one, other in zip(found(), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert "Less" not in operations(tf.function(embedding, autograph=False), tokens)


def operations(function: Any, tokens: tf.Tensor) -> set[str]:
    """The kinds of operations in a function's graph."""
    return {each.type for each in function.get_concrete_function(tokens).graph.get_operations()}


def test_the_five_networks_are_as_they_were() -> None:
    """A network of the package is a function of the vocabulary and the table alone."""
    job = check_job({"name": "a", "model": {"architecture": "gru", "units": 4}}, Path("a.toml"))
    built = build_network(job)
    assert check_network(job) == ""
    assert built.count_params() == BUILDERS["gru"](8000, job.model).count_params()
