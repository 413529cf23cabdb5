"""A job's network: one of the five, or a function of the user's that is built and checked here."""

import contextlib
import functools
import inspect
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.layers import Embedding
from keras.src.backend.common import global_state

from harness.architectures import BUILDERS
from harness.compute.recurrent import turn_cudnn_off
from harness.compute.strategy import num_own_gpus
from harness.data.epoch_order import padded_lengths
from harness.data.vocabulary import FIRST_WORD
from harness.data.word_vectors import WordVectors
from harness.errors import InputError
from harness.job.keys import Job
from harness.job.own_code import OptionReader, load_function, own_errors
from harness.layers import (
    for_training,
    global_batch,
    needs_own_replica,
    place_dropouts,
    takes_masks,
)

KERAS_PRECISION = {
    "float32": "float32",
    "float64": "float64",  # to tell rounding from real differences
    "float16": "mixed_float16",
    "bfloat16": "mixed_bfloat16",
}
NAMES = "object_name_uids"  # Keras's record of how many layers of a kind have been made


@contextlib.contextmanager
def fresh_names() -> Iterator[None]:
    """Name the layers made inside as in a new process, whatever was built before."""
    before = global_state.get_global_attribute(NAMES)
    global_state.set_global_attribute(NAMES, defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(NAMES, defaultdict(int) if before is None else before)


@contextlib.contextmanager
def dtype_policy(job: Job) -> Iterator[None]:
    """Make layers of the job's precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(KERAS_PRECISION[job.train.precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_network(job: Job, num_outputs: int = 1) -> keras.Model:
    """The job's network in plain Keras, from `[rows, maxlen] int32` to `[rows, num_outputs]`.

    Raises:
        InputError: if the user's function fails, with its own error, file and line, or gives no
            such network.
    """
    if not job.model.is_own:
        build = BUILDERS[job.model.architecture]
        return build(job.data.vocab_size, job.network(), num_outputs=num_outputs)
    name = job.model.architecture
    where = f"model.architecture = {name!r}"
    function = load_function(job.code, name, where="model.architecture")
    options = OptionReader(job.model.options, "model.options")
    given: dict[str, Any] = {"num_outputs": num_outputs, "options": options}
    try:
        inspect.signature(function).bind(job.data.vocab_size, job.network(), **given)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: should take (vocab_size, config, *, num_outputs, options): {error}"
        ) from None
    with own_errors(where), fresh_names(), dtype_policy(job):
        model = function(job.data.vocab_size, job.network(), **given)
        if not isinstance(model, keras.Model):
            raise InputError(f"{where}: gives a {type(model).__name__}, should give a keras.Model")
        # A model that is a class has no weights before it has seen its input.
        output = model(keras.KerasTensor([None, job.data.maxlen], dtype="int32"))
    options.check(name)
    shape = getattr(output, "shape", None)
    if shape is None or tuple(shape)[1:] != (num_outputs,):
        shown = "several outputs" if shape is None else f"[{', '.join(map(str, shape))}]"
        raise InputError(
            f"{where}: gives {shown.replace('None', 'rows')}, should give [rows, {num_outputs}]: "
            "a probability for each row"
            + (" and class" if num_outputs > 1 else "")
            + "; end it in Dense(num_outputs)"
        )
    if takes_masks(model):
        turn_cudnn_off(model)  # it takes no mask that begins with zeros, as padded reviews have
    return model


def training_network(job: Job, export: keras.Model, num_outputs: int = 1) -> keras.Model:
    """The network that is trained: as `export`, with its weights and dropout over the global batch.

    Raises:
        InputError: if the user's function gives another network each time.
    """
    seed, batch_size = job.train.seed, job.train.batch_size
    if not job.model.is_own:
        return for_training(export, seed, batch_size)
    # Built again: only the user's function knows how, where layers are classes of the user's own.
    model = build_network(job, num_outputs)
    shapes = [[tuple(each.shape) for each in one.weights] for one in (export, model)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"model.architecture = {job.model.architecture!r}: gives another network each time it "
            "is called; make it depend on its arguments alone"
        )
    model.set_weights(export.get_weights())
    place_dropouts(model, seed, batch_size)
    return model


def put_vectors(model: keras.Model, job: Job, vectors: WordVectors | None) -> None:
    """Give the embedding the vectors of the words that were found; the others stay random.

    Raises:
        InputError: if the network has no embedding of that shape.
    """
    if vectors is None and job.model.train_embeddings:
        return
    layer = embedding_of_words(model, job)
    if vectors is not None:
        (matrix,) = layer.get_weights()
        matrix[vectors.found + FIRST_WORD] = vectors.vectors
        layer.set_weights([matrix])
    layer.trainable = job.model.train_embeddings


def embedding_of_words(model: keras.Model, job: Job) -> Embedding:
    """The embedding that takes the vectors of `model.embeddings`.

    Raises:
        InputError: if the network has none of that shape.
    """
    shape = (job.data.vocab_size, job.model.embedding_dim)
    layers = [layer for layer in model.layers if isinstance(layer, Embedding)]
    fitting = [layer for layer in layers if tuple(layer.embeddings.shape) == shape]
    if not fitting:
        raise InputError(
            f"model.embeddings: {job.model.architecture} has no layer Embedding of {shape[0]:,} "
            f"words and {shape[1]} numbers, data.vocab_size and model.embedding_dim; add one, or "
            "leave model.embeddings out"
        )
    return fitting[0]


def check_network(
    job: Job, num_outputs: int = 1, num_replicas: int = 1, *, trains: bool = True
) -> str:
    """Build a user's network once before anything of a run is written, and look at what it gives.

    Args:
        num_outputs: as `Dataset.num_outputs`.
        num_replicas: that train it.
        trains: look at a step of training too.

    Returns:
        A warning, or nothing.

    Raises:
        InputError: if it can't be built, gives no probabilities, or has what no step here does.
    """
    if not job.model.is_own:
        return ""
    where = f"model.architecture = {job.model.architecture!r}"
    model = build_network(job, num_outputs)
    tokens = np.arange(8 * job.data.maxlen, dtype=np.int32).reshape(8, -1) % job.data.vocab_size
    # Weights as large as these show what numbers the network can give, not those near 0 that it
    # happens to begin with.
    numbers = np.random.default_rng(1)
    for each in model.trainable_variables:
        each.assign(numbers.normal(size=each.shape))
    with own_errors(where):
        given = np.asarray(keras.ops.cast(model(tokens, training=False), "float32"))
    if trains:
        _check_other_forms(model, job, tokens, where=where)
    others = place_dropouts(model, job.train.seed, job.train.batch_size)
    num_losses, unused = _traced_training(model, job, where) if trains else (len(model.losses), [])
    if num_losses:
        raise InputError(
            f"{where}: adds {num_losses} losses of its own (regularizers or add_loss), and "
            "training takes none of them; take them out, and for smaller weights give "
            "train.optimizer_options.weight_decay"
        )
    if unused:
        raise InputError(
            f"{where}: its output in training does not depend on {', '.join(unused)}; use what "
            "these weights belong to, or give it trainable=False"
        )
    if num_replicas > 1 and (names := needs_own_replica(model)):
        raise InputError(
            f"{where}: {', '.join(names)} has synchronized=True, which works on one device alone; "
            "use LayerNormalization, or one device"
        )
    given = given[np.isfinite(given).all(axis=1)]
    sums = given.sum(axis=1)
    # Half-precision probabilities add up to 1 within a hundredth.
    adds_up = num_outputs == 1 or bool(np.all(np.abs(sums - 1) < 0.01))
    if not (adds_up and np.all((given >= 0) & (given <= 1))):
        activation = "sigmoid" if num_outputs == 1 else "softmax"
        found = f"numbers such as {given.flat[np.abs(given - 0.5).argmax()]:.3g}"
        raise InputError(
            f"{where}: gives {found}, which are no probabilities; end it in Dense(num_outputs, "
            f"activation='{activation}')"
        )
    if not others:
        return ""
    return (
        f"{where}: {', '.join(others)} computes something else on another number of replicas; "
        "keras.layers.Dropout, SpatialDropout1D and GlobalBatchDropout do not"
    )


def _check_other_forms(model: keras.Model, job: Job, tokens: np.ndarray, *, where: str) -> None:
    """Call a network as runs of the job do beside `[rows, maxlen]`: on short batches, compiled.

    Raises:
        InputError: with the network's own error.
    """
    network = functools.partial(model, training=False)
    if job.data.bucket:
        tokens = tokens[:, : padded_lengths(job.data.maxlen)[0]]
        should = f"should take data.bucket's batches, of {tokens.shape[1]} words and more"
        with own_errors(f"{where}: {should}; mend it, or leave data.bucket out"):
            network(tokens)
    if job.train.xla == "on" and not num_own_gpus():
        compiled = tf.function(network, autograph=False, jit_compile=True)
        with own_errors(f"{where}: should compile; mend it, or leave train.xla = 'on' out"):
            compiled(tokens)


def _traced_training(model: keras.Model, job: Job, where: str) -> tuple[int, list[str]]:
    """Trace a step of training as a run does, and run nothing: no random state changes.

    Args:
        model: the user's, with its dropout over the global batch; no other use is made of it.
        where: the job's key, for messages.

    Returns:
        How many losses of its own the model adds, and which trained weights get no gradient.
    """
    if job.model.embeddings:
        embedding_of_words(model, job)
    put_vectors(model, job, None)
    num_losses = 0
    unused: list[str] = []

    def step(tokens: tf.Tensor) -> None:
        nonlocal num_losses
        place = global_batch(tf.constant(0, tf.int64), tf.range(tokens.shape[0]))
        with tf.GradientTape() as tape, place:
            output = model(tokens, training=True)
        num_losses = len(model.losses)
        trained = model.trainable_variables
        gradients = tape.gradient(output, [each.value for each in trained])
        unused.extend(
            each.path for each, gradient in zip(trained, gradients, strict=True) if gradient is None
        )

    rows = tf.TensorSpec([job.train.batch_size, job.data.maxlen], tf.int32)
    with own_errors(where), fresh_names(), dtype_policy(job):
        tf.function(step, autograph=False).get_concrete_function(rows)
    return num_losses, unused


def load_network(job: Job, path: Path, num_outputs: int) -> keras.Model:
    """A user's network with the weights of a file; nothing of the file is run.

    Raises:
        InputError: if the network can't be built, or the weights are of another one.
    """
    model = build_network(job, num_outputs)
    try:
        model.load_weights(path)
    except Exception as error:  # Keras and h5py raise errors of any type for a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"model {path}: can't be loaded: {reason}") from None
    return model
