"""Computes the loss of each example (cross-entropy or a custom loss), and the class weights."""

from collections.abc import Callable, Sequence
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from harness.errors import InputError
from harness.job.keys import Job, TrainConfig
from harness.job.own_code import load_function, own_errors

# A function that takes labels and probabilities like those of `cross_entropy`, and returns the loss
# of each example.
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def cross_entropy(labels: tf.Tensor, probabilities: tf.Tensor, *, smoothing: float) -> tf.Tensor:
    """Compute the cross-entropy of each example in nats, `[examples]`.

    Args:
        labels: the examples' labels, which are whole numbers from 0, `[examples] float32`.
        probabilities: the probability of label 1 if there is one output, else the probability of
            each class, `[examples, num_outputs]`.
        smoothing: the share of each label's probability that is spread evenly over all classes; 0
            for none.
    """
    if probabilities.shape[1] == 1:
        return keras.losses.binary_crossentropy(
            labels[:, None], probabilities, label_smoothing=smoothing
        )
    whole = tf.cast(labels, tf.int32)
    if not smoothing:
        return keras.losses.sparse_categorical_crossentropy(whole, probabilities)
    one_hot = tf.one_hot(whole, probabilities.shape[1], dtype=probabilities.dtype)
    return keras.losses.categorical_crossentropy(one_hot, probabilities, label_smoothing=smoothing)


def loss_of(job: Job) -> Loss:
    """Return the loss function of a job's training.

    Raises:
        InputError: if a custom function can't be loaded. The returned function raises InputError if
            the custom function fails or does not return a number for each example.
    """
    if not job.train.loss:
        return partial(cross_entropy, smoothing=job.train.label_smoothing)
    where = f"train.loss = {job.train.loss!r}"
    form = "(labels, probabilities)"
    custom = load_function(job.code, job.train.loss, where="train.loss", form=form, given=(0, 0))

    def losses(labels: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
        with own_errors(where):
            values = tf.convert_to_tensor(custom(labels, probabilities))
        num_examples = probabilities.shape[:1]
        if not (values.dtype.is_floating and values.shape.is_compatible_with(num_examples)):
            raise InputError(
                f"{where}: returns {values.dtype.name} of shape {values.shape}, should return a "
                "float for each example"
            )
        return tf.cast(values, probabilities.dtype)

    return losses


def check_loss(job: Job, num_outputs: int, *, compiled: bool) -> None:
    """Call a custom loss in a graph, as a training step does, before the run writes anything.

    Args:
        num_outputs: the network's number of outputs, see `Dataset.num_outputs`.
        compiled: whether XLA compiles the steps of the run.

    Raises:
        InputError: if the custom loss fails, ignores the probabilities, or computes the loss of one
            example from other examples.
    """
    if not job.train.loss:
        return
    where = f"train.loss = {job.train.loss!r}"
    num_examples, num_classes = 8, max(num_outputs, 2)
    by_class = np.random.default_rng(1).dirichlet(np.ones(num_classes), num_examples)
    dtype = "float64" if job.train.precision == "float64" else "float32"
    labels = tf.constant(np.arange(num_examples) % num_classes, tf.float32)
    probabilities = tf.constant(by_class[:, -num_outputs:], dtype)
    losses = tf.function(loss_of(job), autograph=False, jit_compile=compiled)
    with own_errors(where):
        with tf.GradientTape() as tape:
            tape.watch(probabilities)
            values = losses(labels, probabilities)
        gradient = tape.gradient(values, probabilities)
    if gradient is None:
        raise InputError(
            f"{where}: does not depend on the probabilities; compute the loss from them with "
            "TensorFlow or keras.ops"
        )
    if values.shape != labels.shape:
        raise InputError(
            f"{where}: returns losses of shape {values.shape} for {num_examples} examples"
        )
    if losses.get_concrete_function(labels, probabilities).graph.variables:
        raise InputError(
            f"{where}: uses a variable, such as a counter or a random generator, which would not "
            "be saved; compute each loss from its label and probabilities alone"
        )
    half = num_examples // 2
    parts = [losses(labels[part], probabilities[part]) for part in (slice(half), slice(half, None))]
    if not np.allclose(np.concatenate(parts), values, rtol=1e-4, atol=1e-6, equal_nan=True):
        raise InputError(
            f"{where}: an example's loss depends on other examples of the batch, but a replica "
            "computes only a part of the batch; compute each loss from its example alone"
        )


def class_weights(
    train: TrainConfig, classes: Sequence[str], labels: np.ndarray
) -> tuple[float, ...]:
    """Return the weight of each class in the loss; empty if the job sets none.

    With `balanced`, every class has the same total weight, summed over its reviews, and the mean
    weight of all reviews is 1. As in scikit-learn, the `balanced` weight of a class is
    (number of reviews) / (number of classes * number of reviews of the class).

    Args:
        train: the job's `[train]` table.
        classes: the names of the classes; a label is an index into them.
        labels: the labels of the training reviews, `[num_reviews]`.

    Raises:
        InputError: for an unknown class, if all weights are 0, or if a class has no training
            reviews.
    """
    if isinstance(train.class_weights, dict):
        for name in train.class_weights:
            if name not in classes:
                raise InputError(
                    f"train.class_weights.{name}: the data have no such class; the classes are "
                    f"{', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
                )
        weights = tuple(train.class_weights.get(name, 1.0) for name in classes)
        if not any(weights):
            raise InputError("train.class_weights: all weights are 0; set one above 0")
        return weights
    if not train.class_weights:
        return ()
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise InputError(
            f"train.class_weights = 'balanced': class {classes[int(counts.argmin())]!r} has no "
            "training reviews; raise data.limit, or set each class's weight"
        )
    return tuple((len(labels) / (len(classes) * counts)).tolist())
