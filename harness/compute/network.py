"""Builds a job's network, built-in or custom, and checks custom networks."""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.layers import BatchNormalization, Embedding
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from harness.architectures import sentiment
from harness.compute.optimizer import refuse_unsaved
from harness.compute.recurrent import turn_cudnn_off
from harness.compute.strategy import num_own_gpus
from harness.data.input_pipeline import padded_lengths
from harness.data.vocabulary import FIRST_WORD, WordVectors
from harness.errors import InputError
from harness.job.keys import Job
from harness.job.own_code import OptionReader, load_function, own_errors
from harness.layers import all_layers, for_training, makes_masks, place_dropouts

KERAS_PRECISION = {
    "float32": "float32",
    "float64": "float64",  # lets tests check whether two runs differ only by rounding
    "float16": "mixed_float16",
    "bfloat16": "mixed_bfloat16",
}
NAMES = "object_name_uids"  # Keras's counters, which number the layers of each kind


@contextlib.contextmanager
def fresh_names() -> Iterator[None]:
    """Reset Keras's numbering of layer names inside the `with` block, as in a new process."""
    before = global_state.get_global_attribute(NAMES)
    global_state.set_global_attribute(NAMES, defaultdict(int))
    try:
        yield
    finally:
        global_state.set_global_attribute(NAMES, defaultdict(int) if before is None else before)


@contextlib.contextmanager
def dtype_policy(job: Job) -> Iterator[None]:
    """Use the job's precision for layers built in the `with` block."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(KERAS_PRECISION[job.train.precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def build_network(job: Job, num_outputs: int = 1) -> keras.Model:
    """Build the job's network.

    The network maps word indices, `[rows, maxlen] int32`, to probabilities, `[rows, num_outputs]`.
    With `model.ngram_ratios`, the network has a second input, the n-grams' log-count ratios.

    Raises:
        InputError: if a custom function fails (the message contains its error, file and line), or
            if the shape of its network's output is not `[rows, num_outputs]`.
    """
    if not job.model.is_own:
        return sentiment(job.data.vocab_size, job.network(), num_outputs=num_outputs)
    name, key = job.model.architecture, "model.architecture"
    where = f"{key} = {name!r}"
    options = OptionReader(job.model.options, "model.options")
    given = (job.data.vocab_size, job.network())
    named = {"num_outputs": num_outputs, "options": options}
    form = "(vocab_size, config, *, num_outputs, options)"
    function = load_function(job.code, name, where=key, form=form, given=given, named=named)
    with own_errors(where), fresh_names(), dtype_policy(job):
        model = function(*given, **named)
        if not isinstance(model, keras.Model):
            raise InputError(
                f"{where}: returns a {type(model).__name__}, should return a keras.Model"
            )
        if type(model) is keras.Sequential and not model.built:
            # Keras would create an input of the precision's dtype, which rounds word indices.
            words = keras.Input([job.data.maxlen], dtype="int32")
            model = keras.Sequential([words, *model.layers], name=model.name)
        # A subclass of keras.Model creates its weights in its first call.
        output = model(keras.KerasTensor([None, job.data.maxlen], dtype="int32"))
    options.check(name)
    shape = getattr(output, "shape", "several outputs")
    if shape[1:] != (num_outputs,):
        shown = str(shape).replace("None", "rows")
        raise InputError(
            f"{where}: returns {shown}, should return probabilities of the shape "
            f"(rows, {num_outputs}); end the network in Dense(num_outputs)"
        )
    if makes_masks(model):
        turn_cudnn_off(model)  # cuDNN does not support the mask of a review padded at its start
    return model


def training_network(job: Job, export: keras.Model, num_outputs: int = 1) -> keras.Model:
    """Build the network to train: a copy of `export` with dropout masks for the global batch.

    The results of dropout do not depend on the number of replicas, because a mask has a row for
    each example of the global batch, and each replica uses the rows of its examples.

    Raises:
        InputError: if a custom function returns a different network, or the same layers, at its
            second call.
    """
    seed, batch_size = job.train.seed, job.train.batch_size
    if not job.model.is_own:
        return for_training(export, seed, batch_size)
    # Keras can't copy layers of custom classes, so call the user's function again.
    model = build_network(job, num_outputs)
    shapes = [[tuple(each.shape) for each in one.weights] for one in (export, model)]
    where = f"model.architecture = {job.model.architecture!r}"
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{where}: returns a different network at each call; let the network depend only on "
            "the function's arguments"
        )
    if {*map(id, export.variables)} & {*map(id, model.variables)}:
        raise InputError(
            f"{where}: returns the same layers at each call; create all layers in the function"
        )
    model.set_weights(export.get_weights())
    place_dropouts(model, seed, batch_size)
    return model


def put_vectors(model: keras.Model, job: Job, vectors: WordVectors | None) -> None:
    """Copy pretrained word vectors into the embedding layer, and set the layer's `trainable`.

    Args:
        vectors: the pretrained vectors; None leaves the layer's vectors unchanged.

    Raises:
        InputError: if the network has no Embedding layer for `data.vocab_size` words with
            `model.embedding_dim` dimensions.
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
    """Return the embedding layer that receives the vectors of `model.embeddings`.

    Raises:
        InputError: if the network has no Embedding layer for `data.vocab_size` words with
            `model.embedding_dim` dimensions.
    """
    shape = (job.data.vocab_size, job.model.embedding_dim)
    layers = [layer for layer in model.layers if isinstance(layer, Embedding)]
    fitting = [layer for layer in layers if tuple(layer.embeddings.shape) == shape]
    if not fitting:
        key = "model.embeddings" if job.model.embeddings else "model.train_embeddings"
        raise InputError(
            f"{key}: {job.model.architecture} has no Embedding layer for {shape[0]:,} "
            f"words (data.vocab_size) with {shape[1]} dimensions (model.embedding_dim); add this "
            f"layer, or leave {key} out"
        )
    return fitting[0]


def check_network(job: Job, num_outputs: int = 1, *, num_replicas: int = 1) -> str:
    """Build a custom network and check its outputs, before a new run writes anything.

    Args:
        num_outputs: the network's number of outputs, see `Dataset.num_outputs`.
        num_replicas: the number of replicas of the run.

    Returns:
        A warning with the names of all layers whose results depend on the number of replicas; "" if
        the network has no such layer.

    Raises:
        InputError: if the network can't be built or run with the job's settings, if its outputs are
            not probabilities, or if a checkpoint would not contain one of its variables.
    """
    if not job.model.is_own:
        return ""
    where = f"model.architecture = {job.model.architecture!r}"
    model = build_network(job, num_outputs)
    tokens = np.arange(8 * job.data.maxlen, dtype=np.int32).reshape(8, -1) % job.data.vocab_size
    # Assign large weights, so that the outputs of a network without a final activation fall outside
    # the range from 0 to 1. With the initial weights, these outputs would all be near 0.
    random = np.random.default_rng(1)
    for each in model.trainable_variables:
        each.assign(random.normal(size=each.shape))
    with own_errors(where):
        outputs = np.asarray(keras.ops.cast(model(tokens, training=False), "float32"))
    if job.model.embeddings or not job.model.train_embeddings:
        embedding_of_words(model, job)
    if job.data.bucket:
        shortest = padded_lengths(job.data.maxlen)[0]
        rule = f"with data.bucket = true, the network should accept rows of {shortest} words"
        with own_errors(f"{where}: {rule}"):
            model(tokens[:, :shortest], training=False)
    if job.train.xla == "on" and not num_own_gpus():
        with own_errors(f"{where}: train.xla = 'on' needs a network that XLA can compile"):
            tf.function(model, autograph=False, jit_compile=True)(tokens, training=False)
    outputs = outputs[np.isfinite(outputs).all(axis=1)]
    # The sum of half-precision probabilities may differ from 1 by up to 0.01.
    adds_up = num_outputs == 1 or bool(np.all(np.abs(outputs.sum(axis=1) - 1) < 0.01))
    if not (adds_up and np.all((outputs >= 0) & (outputs <= 1))):
        activation = "sigmoid" if num_outputs == 1 else "softmax"
        raise InputError(
            f"{where}: its outputs are not probabilities; end it in Dense(num_outputs, "
            f"activation='{activation}')"
        )
    for layer in [model, *all_layers(model)]:
        refuse_unsaved(layer, f"{where}, layer {layer.name}", "with add_weight")
        if num_replicas > 1 and getattr(layer, "synchronized", False):
            raise InputError(
                f"{where}: {layer.name} has synchronized=True, which fails on several devices; "
                "use LayerNormalization, or train on one device"
            )
    others = place_dropouts(model, job.train.seed, job.train.batch_size)
    if not others:
        return ""
    has_averages = any(isinstance(each, BatchNormalization) for each in all_layers(model))
    also = "; BatchNormalization also counts the zeros that fill a batch" if has_averages else ""
    return (
        f"{where}: the results of {', '.join(others)} depend on the number of replicas{also}. For "
        "dropout without this dependence, use keras.layers.Dropout, SpatialDropout1D or "
        "GlobalBatchDropout"
    )


@contextlib.contextmanager
def own_training(job: Job, model: keras.Model) -> Iterator[None]:
    """Explain an error that a custom network raises while TensorFlow traces a training step.

    Raises:
        InputError: if the custom network raises an error in the `with` block, draws random numbers
            from a generator that checkpoints would not contain, or adds losses.
    """
    if not job.model.is_own:
        yield
        return
    where = f"model.architecture = {job.model.architecture!r}"
    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
    with own_errors(where):
        yield
    if _draws_unsaved(tf.compat.v1.get_default_graph().as_graph_def()):
        raise InputError(
            f"{where}: draws random numbers from a generator that is not saved, so a resumed run "
            "would draw other numbers; use keras.random, store a keras.random.SeedGenerator in an "
            "attribute of the layer, and pass it as seed"
        )
    if model.losses:
        raise InputError(
            f"{where}: adds {len(model.losses)} losses (regularizers or add_loss), which training "
            "ignores; remove them, or use train.optimizer_options.weight_decay"
        )


def _draws_unsaved(graph: Any) -> bool:
    """Whether a graph draws random numbers from TensorFlow's generators or Keras's global one."""
    if global_state.get_global_attribute(GLOBAL_SEED_GENERATOR):
        return True
    nodes = (graph.node, *(function.node_def for function in graph.library.function))
    return any(
        node.op == "RngReadAndSkip" or ("seed2" in node.attr and not node.op.startswith("Cudnn"))
        for node in itertools.chain(*nodes)
    )


def check_gradients(job: Job, model: keras.Model, gradients: Sequence[tf.Tensor | None]) -> None:
    """Check that each trainable weight has an effect on the loss.

    Raises:
        InputError: if a weight has no gradient.
    """
    weights = zip(model.trainable_variables, gradients, strict=True)
    if unused := [weight.path for weight, gradient in weights if gradient is None]:
        raise InputError(
            f"model.architecture = {job.model.architecture!r}: its output in training does not "
            f"depend on {', '.join(unused)}; use these weights, or set trainable=False for them"
        )


def load_network(job: Job, path: Path, num_outputs: int) -> keras.Model:
    """Build the job's network, and load its weights from a file; no code in the file is run.

    Raises:
        InputError: if the network can't be built, or the file's weights don't fit the network.
    """
    with fresh_names(), dtype_policy(job):
        model = build_network(job, num_outputs)
    try:
        model.load_weights(path)
    except (MemoryError, tf.errors.ResourceExhaustedError):  # the file may still be intact
        raise
    except Exception as error:  # Keras and h5py raise errors of any type for a broken file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"model {path}: can't be loaded: {reason}") from None
    return model
