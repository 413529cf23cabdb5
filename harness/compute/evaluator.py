"""Computes a network's probabilities for reviews, batch by batch."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from harness.compute.device_errors import check_results
from harness.compute.execution_plan import ExecutionPlan
from harness.compute.recurrent import replace_loops, turns_of_two, use_cudnn_rnn
from harness.compute.strategy import num_own_gpus, spans_processes
from harness.data.input_pipeline import (
    Batch,
    BatchShape,
    Reviews,
    batches,
    batches_of_few,
    evaluation_order,
    in_parts,
    num_steps,
)
from harness.job.keys import Job
from harness.layers import look_up_by_gather
from harness.system import watchdog
from harness.system.processes import StopRequest

# The number of reviews per replica in a batch, which affects only speed and memory. On a CPU, a
# larger batch would exceed the caches, and take up to twice the time per review. A GPU is fast only
# with a large batch.
EVALUATION_BATCH = {"cpu": 256, "gpu": 1024}
COMPILED_PARTS = 2  # number of parts of a batch that XLA computes in parallel


class Evaluator:
    """Evaluates a model; all evaluations of a run use the same traced graph."""

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        job: Job,
        plan: ExecutionPlan,
        *,
        num_rows: int = 0,
    ) -> None:
        """Prepare a model for evaluation; `plan` and the device decide how the layers compute.

        Args:
            num_rows: the number of reviews in a batch, for few reviews on one device; 0 stands for
                EVALUATION_BATCH reviews per replica, which a tf.data pipeline prepares.
        """
        self.model, self.strategy, data = model, strategy, job.data
        self.votes = spans_processes(strategy)
        on_gpu = num_own_gpus() > 0
        self.is_compiled = plan.compiles_evaluation and not on_gpu
        if self.is_compiled and not job.model.is_own:
            replace_loops(model, turns_of_two)
        if on_gpu:
            look_up_by_gather(model)
            if plan.way == "cudnn":
                use_cudnn_rnn(model)
        self.is_for_few = num_rows > 0
        self.num_rows = num_rows or EVALUATION_BATCH["gpu" if on_gpu else "cpu"]
        num_replicas = strategy.num_replicas_in_sync
        self.shape = BatchShape(self.num_rows * num_replicas, data.maxlen, data.bucket)
        # With `data.bucket`, batches differ in length. TensorFlow then traces the function twice:
        # once for the first length, and once for all other lengths.
        self._run_forward = tf.function(
            self._forward, autograph=False, reduce_retracing=data.bucket
        )
        # All validations of a run use one endless dataset, because opening a dataset takes time.
        self._opened: tuple[Reviews, Iterator[Batch]] | None = None

    def probabilities(self, reviews: Reviews, stop: StopRequest | None = None) -> np.ndarray:
        """Compute the probability of label 1 for each review, `[num_reviews]`.

        With more than two classes, the result contains the probability of each class,
        `[num_reviews, num_classes]`. The numbers are float64 if `train.precision` is float64, else
        float32.

        Raises:
            Interrupted: if `stop` requests a stop; `stop` is checked before each batch.
        """
        stop = stop or StopRequest()
        outputs: list[np.ndarray] = []
        order = evaluation_order(reviews.lengths(self.shape.maxlen), self.shape)
        if self._opened and self._opened[0] is reviews:
            opened = self._opened[1]
        else:
            order32 = order.astype(np.int32)
            opened = (
                batches_of_few(reviews, order32, self.shape)
                if self.is_for_few
                else iter(batches(self.strategy, reviews, order32[None], shape=self.shape))
            )
        self._opened = None  # after an interruption, the next evaluation opens a new dataset
        for _ in range(num_steps(len(order), self.shape.batch_size)):
            stop.check()
            of_replicas, votes = self._run_forward(next(opened), tf.constant(stop.vote))
            if votes is not None:
                stop.agree(float(votes.numpy().sum()))
            outputs.extend(rows.numpy() for rows in of_replicas)
            check_results()
            watchdog.current.progress()
        self._opened = reviews, opened
        ordered = np.concatenate(outputs)[: len(order)]  # drops rows that pad the last batch
        probabilities = np.empty_like(ordered)
        probabilities[order] = ordered
        return probabilities

    def _forward(
        self, batch: Batch, vote: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], tf.Tensor | None]:
        """Return the probabilities of a batch, in the batch's order, and the votes of all replicas.

        A replica's vote is 1 if a signal has asked its process to stop, else 0. If the run has
        a single process, the method returns None instead of the votes.
        """
        outputs, votes = self.strategy.run(self._replica_forward, args=(batch, vote))
        if self.votes:
            return (self.strategy.gather(outputs, axis=0),), self.strategy.gather(votes, axis=0)
        return self.strategy.experimental_local_results(outputs), None

    def _replica_forward(self, batch: Batch, vote: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        probabilities = self._compiled(batch) if self.is_compiled else self._network(batch.inputs)
        if probabilities.shape[1] == 1:
            probabilities = probabilities[:, 0]
        return probabilities, vote[None]

    def _compiled(self, batch: Batch) -> tf.Tensor:
        network = tf.function(self._network, jit_compile=True, autograph=False)
        parts = in_parts(batch, self.num_rows, self.num_rows // COMPILED_PARTS)
        return tf.concat([network(part.inputs) for part in parts], axis=0)

    def _network(self, inputs: Any) -> tf.Tensor:
        return wide(self.model(inputs, training=False))


def wide(probabilities: tf.Tensor) -> tf.Tensor:
    """Convert half-precision probabilities of a custom network to float32."""
    half = probabilities.dtype in (tf.float16, tf.bfloat16)
    return tf.cast(probabilities, tf.float32) if half else probabilities
