"""Reviews to probabilities, by one model on all replicas."""

import keras
import numpy as np
import tensorflow as tf

from harness.pipeline import Batch, Reviews, batches
from harness.signals import StopRequest

# Reviews of a replica in a batch of an evaluation. Nothing is learned, so only speed and memory
# count: on a CPU more leave its caches and take up to twice the time, a GPU needs many to be busy.
ROWS = {"cpu": 256, "gpu": 1024}


def evaluation_batch(strategy: tf.distribute.Strategy) -> int:
    """Reviews in a global batch of an evaluation."""
    kind = "gpu" if tf.config.get_visible_devices("GPU") else "cpu"
    return int(ROWS[kind] * strategy.num_replicas_in_sync)


class Evaluator:
    """Holds the forward graph of a model, traced once for all evaluations of a run."""

    def __init__(self, model: keras.Model, strategy: tf.distribute.Strategy, maxlen: int) -> None:
        self.model, self.strategy, self.maxlen = model, strategy, maxlen
        self._run_forward = tf.function(self._forward, autograph=False)  # as in the learner
        self._opened: tuple[Reviews, tf.distribute.DistributedDataset] | None = None

    def probabilities(self, reviews: Reviews, stop: StopRequest | None = None) -> np.ndarray:
        """The probability of each review to be positive, `[num_reviews] float32`.

        Raises:
            Interrupted: between two batches, if `stop` says so.
        """
        stop = stop or StopRequest()
        parts = []
        for batch in self._open(reviews):
            stop.check()
            # A replica's share has fillers behind it where the batch does not divide.
            outputs, weights, votes = self._run_forward(batch, tf.constant(stop.vote))
            stop.agree(float(votes.numpy().sum()))
            parts.append(outputs.numpy()[weights.numpy() > 0])
        return np.concatenate(parts)

    def _open(self, reviews: Reviews) -> tf.distribute.DistributedDataset:
        # Opened once, for a run validates on the same reviews after every epoch.
        if self._opened is None or self._opened[0] is not reviews:
            order = np.arange(len(reviews.labels), dtype=np.int32)[None]
            size = evaluation_batch(self.strategy)
            opened = batches(self.strategy, reviews, order, batch_size=size, maxlen=self.maxlen)
            self._opened = reviews, opened
        return self._opened[1]

    def _forward(self, batch: Batch, vote: tf.Tensor) -> tuple[tf.Tensor, ...]:
        def replica_forward(batch: Batch, vote: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return self.model(batch.tokens, training=False)[:, 0], batch.weights, vote[None]

        outputs = self.strategy.run(replica_forward, args=(batch, vote))
        return tuple(self.strategy.gather(output, axis=0) for output in outputs)
