"""Steps that look up the vectors of words by themselves: adversarial ones, and some on a GPU."""

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
from harness.layers import OuterEmbedding, global_batch, outer_embedding


def build_step(
    job: Job, strategy: tf.distribute.Strategy, plan: ExecutionPlan, **given: Any
) -> TrainStep:
    """The step of a job; the arguments are those of `TrainStep`."""
    kind = TrainStep
    has_words = job.model.train_embeddings and not job.model.is_own
    if job.train.adversarial:
        kind = AdversarialStep
    elif plan.way == "xla" and num_own_gpus() and has_words:
        kind = OuterLookupStep
    return kind(job, strategy, plan, **given)


class OuterLookupStep(TrainStep):
    """A step that looks up its words outside of what XLA compiles.

    On a GPU XLA turns the embedding's gradient, under deterministic operations, into a loop over
    all words of a batch; TensorFlow's own kernel sorts them.
    """

    @functools.cached_property
    def words(self) -> OuterEmbedding:
        """The embedding that takes the words of the network's input."""
        found = outer_embedding(self.model)
        if found is None:  # which the check of the job excludes
            raise RuntimeError("the network has no embedding of its own input that is trained")
        return found

    @functools.cached_property
    def _place(self) -> int:
        """Of the embedding's table among the trained variables."""
        trained = self.model.trainable_variables
        return [each is self.words.embeddings for each in trained].index(True)

    def compiled(self) -> Callable[[Batch], Gradients]:
        """`_at_words` as the plan has it computed, with the lookup before it and its gradient."""
        compiled = tf.function(self._at_words, jit_compile=self.is_compiled, autograph=False)

        def gradients_of(batch: Batch) -> Gradients:
            table = self.words.embeddings
            gradients, sums = compiled(batch, tf.gather(table.value, batch.tokens))
            num_words, num_channels = table.shape
            gradients[self._place] = tf.math.unsorted_segment_sum(
                tf.reshape(gradients[self._place], [-1, num_channels]),
                tf.reshape(batch.tokens, [-1]),
                num_words,
            )
            return gradients, sums

        return gradients_of

    def _at_words(self, batch: Batch, vectors: tf.Tensor) -> Gradients:
        """As `gradients`, but of the words' vectors in place of their table.

        Args:
            vectors: `[examples, time, channels]`.
        """
        trained = [each.value for each in self.model.trainable_variables]
        trained[self._place] = vectors
        place = global_batch(batch.step, batch.positions)
        with tf.GradientTape() as tape, place, self.words.given(vectors):
            tape.watch(vectors)
            probabilities = wide(self.model(batch.inputs, training=True))
            target, sums = self._loss(batch, probabilities)
        return [tf.convert_to_tensor(each) for each in tape.gradient(target, trained)], sums


class AdversarialStep(OuterLookupStep):
    """A step that trains on each review twice: as it is, and with its words' vectors moved."""

    def _at_words(self, batch: Batch, vectors: tf.Tensor) -> Gradients:
        gradients, sums = super()._at_words(batch, vectors)
        way = perturbation(gradients[self._place], vectors, batch.tokens)
        others, _ = super()._at_words(batch, vectors + self.job.train.adversarial * way)
        return [(one + other) / 2 for one, other in zip(gradients, others, strict=True)], sums


def perturbation(gradient: tf.Tensor, vectors: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """The direction of the word vectors that increases the loss most, scaled to their spread.

    Adversarial training of Miyato et al., "Adversarial Training Methods for Semi-Supervised Text
    Classification" (2017), whose vectors have the variance 1. Here the norm is the root mean square
    of the vectors instead, so that a network can't escape by larger ones.

    Args:
        gradient: of the loss, `[examples, time, channels]`.
        vectors: of the words, `[examples, time, channels]`.
        tokens: `[examples, time]`; 0 is padding, which counts for nothing.

    Returns:
        `[examples, time, channels]`; of an example without a gradient 0.
    """
    is_word = tf.cast(tf.not_equal(tokens, 0), vectors.dtype)[..., None]
    num_numbers = tf.reduce_sum(is_word, [1, 2]) * tf.cast(vectors.shape[2], vectors.dtype)
    squares = tf.reduce_sum(tf.square(vectors) * is_word, [1, 2])
    size = tf.sqrt(tf.math.divide_no_nan(squares, num_numbers))
    # Divided by the largest first: squares of small gradients would be 0.
    gradient *= is_word
    largest = tf.reduce_max(tf.abs(gradient), [1, 2], keepdims=True)
    gradient = tf.math.divide_no_nan(gradient, largest)
    length = tf.sqrt(tf.reduce_sum(tf.square(gradient), [1, 2]))
    return tf.math.divide_no_nan(size, length)[:, None, None] * gradient
