"""Builds a job's models, optimizer and training step.

The strategy's scope contains two models. `model` is the network to train; its dropout masks are
drawn for the whole global batch, so they do not depend on the number of replicas. `export_model` is
the same network as `model`, but in plain Keras. The latest weights, or their moving average, are
copied to `export_model`, which is then validated, tested and saved.
"""

from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from harness.compute.evaluator import Evaluator, wide
from harness.compute.execution_plan import ExecutionPlan
from harness.compute.loss import loss_of
from harness.compute.network import (
    KERAS_PRECISION,
    build_network,
    check_gradients,
    own_training,
    put_vectors,
    training_network,
)
from harness.compute.optimizer import build_optimizer, inner_optimizer
from harness.compute.recurrent import (
    block_lstm,
    compute_in_float32,
    replace_loops,
    turn_cudnn_off,
    use_cudnn_rnn,
)
from harness.compute.strategy import num_own_gpus, spans_processes
from harness.data.input_pipeline import Batch, in_parts
from harness.data.vocabulary import WordVectors
from harness.job.keys import Job
from harness.layers import global_batch, look_up_by_gather

# A tuple: the gradients of the trained weights; and a tensor `[2] float64` with the sum of the
# losses and the number of correct predictions.
Gradients = tuple[list[tf.Tensor], tf.Tensor]


class TrainStep:
    """The training step, with its models and optimizer in the strategy's scope.

    Attributes:
        train_steps: the function `steps`, traced as a graph.
    """

    def __init__(
        self,
        job: Job,
        strategy: tf.distribute.Strategy,
        plan: ExecutionPlan,
        *,
        num_outputs: int = 1,
        vectors: WordVectors | None = None,
        steps_per_epoch: int = 1,
        class_weights: Sequence[float] = (),
    ) -> None:
        """Build the job's models and optimizer in the strategy's scope.

        Args:
            job: the job.
            strategy: the strategy of the run.
            plan: how the step is computed.
            num_outputs: the network's number of outputs, see `Dataset.num_outputs`.
            vectors: pretrained word vectors, if the job has any.
            steps_per_epoch: the number of steps of an epoch, for a learning-rate schedule.
            class_weights: the weight of each class, as `loss.class_weights` returns it; empty if
                the loss has no class weights.
        """
        self.job, self.strategy, self.is_compiled = job, strategy, plan.way == "xla"
        self.class_weights, self.losses = class_weights, loss_of(job)
        self.num_examples = -(-job.train.batch_size // strategy.num_replicas_in_sync)
        self.examples_per_part = -(-job.train.batch_size // plan.parts)
        keras.utils.set_random_seed(job.train.seed)
        keras.config.set_dtype_policy(KERAS_PRECISION[job.train.precision])
        with strategy.scope():
            self.export_model = build_network(job, num_outputs)
            put_vectors(self.export_model, job, vectors)
            self.model = training_network(job, self.export_model, num_outputs)
            # Without vectors, `put_vectors` only sets `trainable` of the embedding layer.
            put_vectors(self.model, job, None)
            if self.is_compiled:
                turn_cudnn_off(self.model)
            if plan.way == "block":
                replace_loops(self.model, block_lstm)
            # The names of the layers that compute in float32 although the job sets bfloat16.
            self.in_float32: list[str] = []
            if num_own_gpus():
                look_up_by_gather(self.model)
                self.in_float32 = compute_in_float32(self.model)
                if plan.way == "cudnn":
                    use_cudnn_rnn(self.model)
            self.optimizer = build_optimizer(job.train, steps_per_epoch, code=job.code)
            self.model.compile(self.optimizer)
            self.optimizer.build(self.model.trainable_variables)
        # AutoGraph is off in all graphs: AutoGraph would also rewrite Keras's functions, so tracing
        # would take 1.5 times as long.
        self.train_steps = tf.function(self.steps, autograph=False, reduce_retracing=False)
        self.evaluator = Evaluator(self.export_model, strategy, job, plan)

    def steps(
        self, batches: Iterator[Batch], num_steps: int, vote: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Run `num_steps` training steps; the result stays on the device.

        Args:
            batches: the batches, one per step.
            num_steps: the number of steps.
            vote: 1 if this worker asks all workers to stop, else 0, `[] float64`; None in a single
                process.

        Returns:
            For each step, the sum of the losses and the number of correct predictions in the global
            batch, `[num_steps, 2] float64`. With several workers, a third column contains the sum
            of `vote` over all replicas.
        """
        if num_steps == 1:
            of_replicas = self.strategy.run(self.replica_step, args=(next(batches), vote))
            return self._over_replicas(of_replicas)[None]
        shape = [2 if vote is None else 3]
        sums = tf.TensorArray(tf.float64, num_steps, element_shape=shape)

        def step(i: tf.Tensor, sums: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            return i + 1, sums.write(i, self.steps(batches, 1, vote)[0])

        return tf.while_loop(lambda i, _: i < num_steps, step, (0, sums))[1].stack()

    def replica_step(self, batch: Batch, vote: tf.Tensor | None) -> tf.Tensor:
        """Compute one replica's part of a step, and update the weights.

        Returns:
            The replica's sum of losses and its number of correct predictions, followed by `vote` if
            it is not None, `[2] float64` or `[3] float64`.
        """
        # The parts are independent operations, so several threads compute them in parallel.
        parts = in_parts(batch, self.num_examples, self.examples_per_part)
        of_parts, sums = zip(*map(self.compiled(), parts), strict=True)
        gradients = [*map(tf.add_n, zip(*of_parts, strict=True))]
        if self.job.train.clipnorm > 0 or self.job.train.precision == "float16":
            gradients = self._global_gradients(gradients)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        sums = tf.add_n(sums)
        return sums if vote is None else tf.concat([sums, vote[None]], axis=0)

    def compiled(self) -> Callable[[Batch], Gradients]:
        """Return the function `gradients` as a graph, which XLA compiles if the plan says so.

        XLA can't compile the update of the weights: XLA does not support the optimizer's variables,
        because these variables have copies on other devices.
        """
        compiled: Callable[[Batch], Gradients]
        compiled = tf.function(self.gradients, jit_compile=self.is_compiled, autograph=False)
        return compiled

    def gradients(self, batch: Batch) -> Gradients:
        """Compute `Gradients` for a part of a batch."""
        trained = [each.value for each in self.model.trainable_variables]
        with tf.GradientTape() as tape, global_batch(batch.step, batch.positions):
            with own_training(self.job, self.model):
                probabilities = wide(self.model(batch.inputs, training=True))
            target, sums = self._loss(batch, probabilities)
        gradients = tape.gradient(target, trained)
        check_gradients(self.job, self.model, gradients)
        return [tf.convert_to_tensor(each) for each in gradients], sums

    def _loss(self, batch: Batch, probabilities: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute the loss of a part of a batch.

        Returns:
            The loss to minimize, `[]`; the sum of the losses and the number of correct predictions,
            `[2] float64`.
        """
        losses = self.losses(batch.labels, probabilities)
        weights = tf.cast(batch.weights, losses.dtype)
        if self.class_weights:
            by_class = tf.constant(self.class_weights, tf.float32)
            of_labels = tf.gather(by_class, tf.cast(batch.labels, tf.int32))
            losses *= tf.cast(of_labels, losses.dtype)
        loss = tf.reduce_sum(losses * weights)
        correct = tf.cast(is_correct(batch.labels, probabilities), losses.dtype)
        sums = tf.stack([loss, tf.reduce_sum(correct * weights)])
        # Divide by the number of reviews in the global batch, not in this replica's part, because
        # the replicas' gradients are added up, and parts of the last batch may differ in size.
        target = self.optimizer.scale_loss(loss / tf.cast(batch.count, losses.dtype))
        return target, tf.cast(sums, tf.float64)

    def _global_gradients(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        # Keras clips each replica's gradients, and checks them for overflow of float16, before it
        # adds up the replicas' gradients. So add the gradients up here first, and clip the sum.
        # Finally divide the sum by the number of replicas, because Keras will add up the equal
        # results of all replicas.
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        if self.job.train.clipnorm > 0:
            one = tf.constant(1.0, gradients[0].dtype)
            limit = self.job.train.clipnorm * self.optimizer.scale_loss(one)
            gradients, _ = tf.clip_by_global_norm(gradients, limit)
        return [gradient / context.num_replicas_in_sync for gradient in gradients]

    def _over_replicas(self, sums: tf.Tensor) -> tf.Tensor:
        if spans_processes(self.strategy):
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)
        # `reduce` is not used here, because it would copy the sums to the host in each step.
        of_replicas = self.strategy.experimental_local_results(sums)
        with tf.device(of_replicas[0].device):
            return tf.add_n(of_replicas)

    def export_weights(self) -> None:
        """Copy the latest weights, or their moving average if there is one, to `export_model`."""
        self.export_model.set_weights(self.model.get_weights())
        optimizer = inner_optimizer(self.optimizer)
        optimizer.finalize_variable_values(self.export_model.trainable_variables)


def is_correct(labels: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Whether the most probable class is the label, `[examples] bool`.

    Args:
        labels: the examples' labels, `[examples] float32`.
        probabilities: the probability of label 1 if there is one output, else the probability of
            each class, `[examples, num_outputs]`.
    """
    if probabilities.shape[1] == 1:
        return tf.equal(probabilities[:, 0] > 0.5, labels > 0.5)
    predicted = tf.argmax(probabilities, axis=1, output_type=tf.int32)
    return tf.equal(predicted, tf.cast(labels, tf.int32))
