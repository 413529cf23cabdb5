"""The loss of an example: cross-entropy or one's own, and the weights of classes."""

from collections.abc import Callable, Sequence
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from harness.errors import InputError
from harness.job.keys import Job, TrainConfig
from harness.job.own_code import load_taking, own_errors

# Of labels `[examples] float32` and probabilities `[examples, num_outputs]`, as `cross_entropy`.
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def cross_entropy(labels: tf.Tensor, probabilities: tf.Tensor, *, smoothing: float) -> tf.Tensor:
    """The cross-entropy of each example, in nats, `[examples]`.

    Args:
        labels: `[examples] float32`, whole numbers.
        probabilities: `[examples, num_outputs]`: of label 1, or of each class.
        smoothing: share of each label that is spread over all classes.
    """
    if probabilities.shape[1] == 1:
        return keras.losses.binary_crossentropy(
            labels[:, None], probabilities, label_smoothing=smoothing
        )
    whole = tf.cast(labels, tf.int32)
    if not smoothing:
        return keras.losses.sparse_categorical_crossentropy(whole, probabilities)
    of_class = tf.one_hot(whole, probabilities.shape[1], dtype=probabilities.dtype)
    return keras.losses.categorical_crossentropy(of_class, probabilities, label_smoothing=smoothing)


def loss_of(job: Job) -> Loss:
    """The loss that a job trains with.

    Raises:
        InputError: if the user's function can't be loaded, and when it is called and fails, with
            its own error, file and line, or gives no number for each example.
    """
    if not job.train.loss:
        return partial(cross_entropy, smoothing=job.train.label_smoothing)
    where = f"train.loss = {job.train.loss!r}"
    form = "(labels, probabilities)"
    own = load_taking(job.code, job.train.loss, where="train.loss", form=form, given=(0, 0))

    def losses(labels: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
        with own_errors(where):
            found = tf.convert_to_tensor(own(labels, probabilities))
        if not (found.dtype.is_floating and found.shape.rank == 1):
            shown = ", ".join("examples" if each is None else str(each) for each in found.shape)
            raise InputError(
                f"{where}: gives [{shown}] {found.dtype.name}, should give [examples] of floats: a "
                "loss for each example"
            )
        return tf.cast(found, probabilities.dtype)

    return losses


def check_loss(job: Job, num_outputs: int, *, compiled: bool) -> None:
    """Call a user's loss once before anything of a run is written, and look at what it gives.

    Args:
        num_outputs: as `Dataset.num_outputs`.
        compiled: whether the run compiles its steps by XLA.

    Raises:
        InputError: if it fails, is no function of the probabilities, or mixes the examples.
    """
    if not job.train.loss:
        return
    where = f"train.loss = {job.train.loss!r}"
    num_examples, num_classes = 8, max(num_outputs, 2)
    numbers = np.random.default_rng(1)
    by_class = numbers.dirichlet(np.ones(num_classes), num_examples)
    kind = "float64" if job.train.precision == "float64" else "float32"
    labels = tf.constant(np.arange(num_examples) % num_classes, tf.float32)
    probabilities = tf.constant(by_class[:, -num_outputs:], kind)
    losses = loss_of(job)

    def with_gradient(labels: tf.Tensor, probabilities: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(probabilities)
            found = losses(labels, probabilities)
        with own_errors(where):
            return found, tape.gradient(found, probabilities)

    # As a graph, which steps are; its own errors are raised while it is traced.
    graph = tf.function(with_gradient, autograph=False, jit_compile=compiled)
    concrete = graph.get_concrete_function(labels, probabilities)
    if len(concrete.structured_outputs) < 2 or concrete.structured_outputs[1] is None:
        raise InputError(
            f"{where}: does not depend on the probabilities; compute it from them by TensorFlow or "
            "keras.ops"
        )
    with own_errors(where):
        found, gradient = (each.numpy() for each in graph(labels, probabilities))
    if found.shape != (num_examples,):
        raise InputError(f"{where}: gives {len(found)} losses for {num_examples} examples")
    if not (np.isfinite(found).all() and np.isfinite(gradient).all()):
        raise InputError(
            f"{where}: gives a loss or a gradient that is no finite number; keep logarithms and "
            "quotients away from 0"
        )
    half = num_examples // 2
    parts = [losses(labels[part], probabilities[part]) for part in (slice(half), slice(half, None))]
    if not np.allclose(np.concatenate(parts), found, rtol=1e-4, atol=1e-6):
        raise InputError(
            f"{where}: an example's loss depends on the others of its batch, and replicas see a "
            "part of it; compute each by itself"
        )


def class_weights(
    train: TrainConfig, classes: Sequence[str], labels: np.ndarray
) -> tuple[float, ...]:
    """The weight of each class in the loss; empty if all weigh the same.

    `balanced` gives each class the same sum over the training reviews, and a review the weight 1 in
    the mean, as scikit-learn does: n / (number of classes * reviews of the class).

    Args:
        classes: names, by label.
        labels: of the training reviews, `[num_reviews]`, from 0.

    Raises:
        InputError: for a class that the data do not have, or none of the training reviews has, and
            where no class has a weight above 0.
    """
    given = train.class_weights
    if given == "":
        return ()
    if isinstance(given, dict):
        for name in given:
            if name not in classes:
                raise InputError(
                    f"train.class_weights.{name}: the data have no such class; they have "
                    f"{', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}"
                )
        weights = tuple(given.get(name, 1.0) for name in classes)
        if not any(weights):
            raise InputError(
                "train.class_weights: no class has a weight above 0; give one of them more"
            )
        return weights
    counts = np.bincount(labels, minlength=len(classes))
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise InputError(
                f"train.class_weights = 'balanced': none of the training reviews is {name!r}; "
                "raise data.limit, or give weights by name"
            )
    return tuple((len(labels) / (len(classes) * counts)).tolist())


def weights_of(labels: tf.Tensor, by_class: Sequence[float]) -> tf.Tensor:
    """The weight of each example, `[examples]`.

    Args:
        labels: `[examples] float32`, whole numbers.
        by_class: one for each label.
    """
    return tf.gather(tf.constant(by_class, tf.float32), tf.cast(labels, tf.int32))
