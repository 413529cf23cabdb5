"""Scores reviews with a network: batches, and the graph of the forward pass."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from harness.compute.device_errors import check_results
from harness.compute.execution_plan import ExecutionPlan
from harness.compute.recurrent import use_cudnn_rnn, use_turns_of_two
from harness.compute.strategy import num_own_gpus, spans_processes
from harness.data.epoch_order import BatchShape, evaluation_order, num_steps
from harness.data.input_pipeline import Batch, Reviews, Start, batches, in_parts
from harness.job.keys import Job
from harness.layers import look_up_by_gather
from harness.system import watchdog
from harness.system.processes import StopRequest

# Reviews of a replica in a batch of an evaluation. Nothing is learned, so only speed and memory
# count: on a CPU more leave its caches and take up to twice the time, a GPU needs many to be busy.
EVALUATION_BATCH = {"cpu": 256, "gpu": 1024}
COMPILED_PARTS = 2  # of such a batch, computed side by side where there are threads


class Evaluator:
    """The graph of a model's forward pass, traced once for all evaluations of a run."""

    def __init__(
        self,
        model: keras.Model,
        strategy: tf.distribute.Strategy,
        job: Job,
        plan: ExecutionPlan,
    ) -> None:
        """Take a model, whose layers may get other ways to compute, by the plan of the run."""
        self.model, self.strategy, data = model, strategy, job.data
        self.votes = spans_processes(strategy)
        self.is_compiled = plan.compiles_evaluation and not num_own_gpus()
        if self.is_compiled and not job.model.is_own:
            use_turns_of_two(model)
        if num_own_gpus():
            look_up_by_gather(model)
            if plan.way == "cudnn":
                use_cudnn_rnn(model)
        self.shape = BatchShape(evaluation_batch(strategy), data.maxlen, data.bucket)
        # By length, batches have several shapes: the second trace is for all of them.
        self._run_forward = tf.function(
            self._forward, autograph=False, reduce_retracing=data.bucket
        )
        # A run validates on the same reviews after every epoch, and to open them takes as long as
        # a batch.
        self._opened: tuple[Reviews, Iterator[Batch]] | None = None

    def probabilities(self, reviews: Reviews, stop: StopRequest | None = None) -> np.ndarray:
        """Of two classes the probability of label 1 for each review, `[num_reviews] float32`.

        Of more the probability of each class, `[num_reviews, num_classes] float32`.

        Raises:
            Interrupted: between two batches, if `stop` says so.
        """
        stop = stop or StopRequest()
        outputs: list[np.ndarray] = []
        order = evaluation_order(reviews.lengths(self.shape.maxlen), self.shape)
        if self._opened and self._opened[0] is reviews:
            opened = self._opened[1]
        else:
            opened = self._open(reviews, order)
        self._opened = None  # an evaluation that is interrupted leaves the rest of its batches
        for _ in range(num_steps(len(order), self.shape.batch_size)):
            batch = next(opened)
            stop.check()
            of_replicas, votes = self._run_forward(batch, tf.constant(stop.vote))
            if votes is not None:
                stop.agree(float(votes.numpy().sum()))
            outputs.extend(rows.numpy() for rows in of_replicas)
            check_results()
            watchdog.progress()
        self._opened = reviews, opened
        found = np.concatenate(outputs)[: len(order)]  # behind these the last batch has padding
        probabilities = np.empty_like(found)
        probabilities[order] = found
        return probabilities

    def _open(self, reviews: Reviews, order: np.ndarray) -> Iterator[Batch]:
        orders = order.astype(np.int32)[None]
        again = Start(endless=True)
        return iter(batches(self.strategy, reviews, orders, shape=self.shape, start=again))

    def _forward(
        self, batch: Batch, vote: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], tf.Tensor | None]:
        """The probabilities in the order of the batch, in parts, and the votes of all workers."""
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
        num_examples = self.shape.batch_size // self.strategy.num_replicas_in_sync
        parts = in_parts(batch, num_examples, -(-num_examples // COMPILED_PARTS))
        return tf.concat([network(part.inputs) for part in parts], axis=0)

    def _network(self, inputs: Any) -> tf.Tensor:
        return wide(self.model(inputs, training=False))


def wide(probabilities: tf.Tensor) -> tf.Tensor:
    """In the precision of the weights, also where a network of a user's ends in half of it."""
    half = probabilities.dtype in (tf.float16, tf.bfloat16)
    return tf.cast(probabilities, tf.float32) if half else probabilities


def evaluation_batch(strategy: tf.distribute.Strategy) -> int:
    """Reviews in a global batch of an evaluation."""
    kind = "gpu" if num_own_gpus() else "cpu"
    return int(EVALUATION_BATCH[kind] * strategy.num_replicas_in_sync)
