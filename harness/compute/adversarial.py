"""Training steps that look up the word vectors outside of the network.

Adversarial training changes the word vectors before the network receives them. If XLA compiles the
steps on a GPU, a look-up outside of the network is faster than inside. So on a GPU the look-up is
always outside of the network, even without adversarial training (see `OuterLookupStep`).
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from harness.compute.evaluator import wide
from harness.compute.execution_plan import ExecutionPlan
from harness.compute.strategy import num_own_gpus
from harness.compute.train_step import Gradients, TrainStep
from harness.data.input_pipeline import Batch
from harness.job.keys import Job
from harness.layers import OuterEmbedding, global_batch


def build_step(
    job: Job, strategy: tf.distribute.Strategy, plan: ExecutionPlan, **options: Any
) -> TrainStep:
    """Build the training step of a job; `options` are further arguments of `TrainStep`."""
    kind = TrainStep
    trains_words = job.model.train_embeddings and not job.model.is_own
    if job.train.adversarial:
        kind = AdversarialStep
    elif plan.way == "xla" and num_own_gpus() and trains_words:
        kind = OuterLookupStep
    return kind(job, strategy, plan, **options)


class OuterLookupStep(TrainStep):
    """A step that looks up the word vectors outside of the part that XLA compiles.

    With deterministic operations, XLA computes the embedding's gradient on a GPU in a slow loop
    over all words of a batch. TensorFlow's kernel for the embedding's gradient sorts the words, and
    is faster than XLA's loop.
    """

    @functools.cached_property
    def words(self) -> OuterEmbedding:
        """Return the network's only embedding layer, which is trainable."""
        (embedding,) = (each for each in self.model.layers if isinstance(each, OuterEmbedding))
        return embedding

    @functools.cached_property
    def _table_index(self) -> int:
        """Return the index of the embedding's table in the list of trained variables."""
        trained = self.model.trainable_variables
        return [each is self.words.embeddings for each in trained].index(True)

    def compiled(self) -> Callable[[Batch], Gradients]:
        """Return a compiled version of the method `gradients`.

        The word vectors are looked up outside of XLA, and the gradient of the look-up is computed
        there too.
        """
        compiled = tf.function(self._with_vectors, jit_compile=self.is_compiled, autograph=False)

        def gradients_of(batch: Batch) -> Gradients:
            table = self.words.embeddings
            gradients, sums = compiled(batch, tf.gather(table.value, batch.tokens))
            num_words, num_channels = table.shape
            gradients[self._table_index] = tf.math.unsorted_segment_sum(
                tf.reshape(gradients[self._table_index], [-1, num_channels]),
                tf.reshape(batch.tokens, [-1]),
                num_words,
            )
            return gradients, sums

        return gradients_of

    def _with_vectors(self, batch: Batch, vectors: tf.Tensor) -> Gradients:
        """Compute `Gradients` for a part of a batch whose word vectors are already looked up.

        The result contains the gradient of `vectors` in place of the gradient of the embedding.

        Args:
            batch: some examples of a global batch.
            vectors: the word vectors of these examples, `[examples, time, channels]`.
        """
        trained = [each.value for each in self.model.trainable_variables]
        trained[self._table_index] = vectors
        rows = global_batch(batch.step, batch.positions)
        with tf.GradientTape() as tape, rows, self.words.returning(vectors):
            tape.watch(vectors)
            probabilities = wide(self.model(batch.inputs, training=True))
            target, sums = self._loss(batch, probabilities)
        return [tf.convert_to_tensor(each) for each in tape.gradient(target, trained)], sums


class AdversarialStep(OuterLookupStep):
    """A step that trains on each review twice: once unchanged, once with perturbed word vectors."""

    def _with_vectors(self, batch: Batch, vectors: tf.Tensor) -> Gradients:
        gradients, sums = super()._with_vectors(batch, vectors)
        direction = perturbation(gradients[self._table_index], vectors, batch.tokens)
        perturbed = vectors + self.job.train.adversarial * direction
        others, _ = super()._with_vectors(batch, perturbed)
        return [(one + other) / 2 for one, other in zip(gradients, others, strict=True)], sums


def perturbation(gradient: tf.Tensor, vectors: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Return the perturbation of the word vectors that increases the loss most.

    The method is from Miyato et al., "Adversarial Training Methods for Semi-Supervised Text
    Classification" (2017). A perturbation of fixed norm would hardly affect large word
    vectors, so Miyato et al. scale the word vectors to variance 1. This function scales the
    perturbation instead: its norm is the root mean square of all numbers in the example's word
    vectors.

    Args:
        gradient: the gradient of the loss, `[examples, time, channels]`.
        vectors: the word vectors, `[examples, time, channels]`.
        tokens: the word indices, `[examples, time]`; 0 is padding, which is ignored.

    Returns:
        The perturbation, `[examples, time, channels]`; 0 for an example whose gradient is 0.
    """
    is_word = tf.cast(tf.not_equal(tokens, 0), vectors.dtype)[..., None]
    num_numbers = tf.reduce_sum(is_word, [1, 2]) * tf.cast(vectors.shape[2], vectors.dtype)
    squares = tf.reduce_sum(tf.square(vectors) * is_word, [1, 2])
    size = tf.sqrt(tf.math.divide_no_nan(squares, num_numbers))
    # Divide by the largest number first, because squares of small gradients would underflow to 0.
    gradient *= is_word
    largest = tf.reduce_max(tf.abs(gradient), [1, 2], keepdims=True)
    gradient = tf.math.divide_no_nan(gradient, largest)
    length = tf.sqrt(tf.reduce_sum(tf.square(gradient), [1, 2]))
    return tf.math.divide_no_nan(size, length)[:, None, None] * gradient
