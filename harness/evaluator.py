"""Reviews to probabilities, by one model on all replicas."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from harness.pipeline import Batch, Reviews, batches

# Reviews in a global batch of an evaluation. Nothing is learned, so only speed and memory count.
EVALUATION_BATCH = 1024


class Evaluator:
    """Holds the forward graph of a model, traced once for all evaluations of a run."""

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy, maxlen: int) -> None:
        self.model, self.strategy, self.maxlen = model, strategy, maxlen
        self._run_forward = tf.function(self._forward)

    def probabilities(
        self, reviews: Reviews, between_batches: Callable[[], None] = lambda: None
    ) -> np.ndarray:
        """The probability of each review to be positive, `[num_reviews] float32`.

        `between_batches` is called before each batch, and may raise to end the evaluation.
        """
        order = np.arange(len(reviews.labels))
        parts = []
        for batch in batches(
            self.strategy, reviews, order, batch_size=EVALUATION_BATCH, maxlen=self.maxlen
        ):
            between_batches()
            # A replica's share has fillers behind it where the batch does not divide.
            outputs, weights = self._run_forward(batch)
            parts.append(outputs.numpy()[weights.numpy() > 0])
        return np.concatenate(parts)

    def _forward(self, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        outputs = self.strategy.run(
            lambda b: self.model(b.tokens, training=False)[:, 0], args=(batch,)
        )
        return self.strategy.gather(outputs, axis=0), self.strategy.gather(batch.weights, axis=0)
