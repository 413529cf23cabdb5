"""The inner loop: models, optimizer and the two graphs that run on the devices.

Two models stand in the strategy's scope. `model` is trained; its dropout is the global batch's.
`export_model` is the notebook's own, plain Keras: it takes the weights that a run would keep (the
last ones or the optimizer's moving average), and is what is validated, tested and saved.
"""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from harness.architectures import BUILDERS
from harness.compute.execution_plan import ExecutionPlan
from harness.data.input_pipeline import Batch, Reviews, batches, in_parts
from harness.job import Job, TrainConfig
from harness.layers import for_training, recurrent_layers
from harness.system.signals import StopRequest

WAYS = ("forward", "backward")  # of a Bidirectional layer

KERAS_PRECISION = {
    "float32": "float32",
    "float64": "float64",  # to tell what is rounding and what is not
    "float16": "mixed_float16",
    "bfloat16": "mixed_bfloat16",
}


def build_optimizer(train: TrainConfig) -> keras.optimizers.Optimizer:
    """The job's optimizer with its moving average, inside a loss scale for float16."""
    optimizer = keras.optimizers.get(
        {
            "class_name": train.optimizer,
            "config": {
                "learning_rate": train.learning_rate,
                "use_ema": train.ema_momentum > 0,
                "ema_momentum": train.ema_momentum or 0.99,
            },
        }
    )
    if train.precision == "float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _keep_from_cudnn(model: keras.Model) -> None:
    # On a GPU Keras would take cuDNN inside of what XLA compiles, and XLA can't.
    for layer in recurrent_layers(model):
        for inner in (layer, *(getattr(layer, f"{way}_layer", layer) for way in WAYS)):
            if hasattr(inner, "use_cudnn"):
                inner.use_cudnn = False


class TrainStep:
    """Models and optimizer in the strategy's scope, and the graphs over them."""

    def __init__(self, job: Job, strategy: tf.distribute.Strategy, plan: ExecutionPlan) -> None:
        self.job, self.strategy, self.xla = job, strategy, plan.xla
        self.num_examples = -(-job.train.batch_size // strategy.num_replicas_in_sync)
        self.examples_per_part = -(-job.train.batch_size // plan.parts)
        keras.utils.set_random_seed(job.train.seed)
        keras.config.set_dtype_policy(KERAS_PRECISION[job.train.precision])
        with strategy.scope():
            self.export_model = BUILDERS[job.model.architecture](job.data.vocab_size, job.model)
            self.model = for_training(self.export_model, job.train.seed, job.train.batch_size)
            if self.xla:
                _keep_from_cudnn(self.model)
            self.optimizer = build_optimizer(job.train)
            self.model.compile(self.optimizer, loss="binary_crossentropy", metrics=["accuracy"])
            self.optimizer.build(self.model.trainable_variables)
        # Without AutoGraph, here and below: it would rewrite Keras's functions too, and tracing
        # take half as long again.
        self._run_steps = tf.function(self._steps, autograph=False, reduce_retracing=False)
        self.evaluator = Evaluator(self.export_model, strategy, job.data.maxlen)

    # Training

    def train_steps(self, batches: Iterator[Batch], num_steps: int, vote: float = 0) -> tf.Tensor:
        """Take `num_steps` steps in one graph, leaving the result on the device.

        Returns:
            `[num_steps, 3] float64`: of each step the sums over the global batch of the loss and
            of the reviews told right, and the sum of all replicas' votes to stop.
        """
        return self._run_steps(batches, num_steps, tf.constant(vote, tf.float64))

    def _steps(self, batches: Iterator[Batch], num_steps: int, vote: tf.Tensor) -> tf.Tensor:
        if num_steps == 1:
            return self._step(next(batches), vote)[None]

        def step(i: tf.Tensor, sums: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            return i + 1, sums.write(i, self._step(next(batches), vote))

        sums = tf.TensorArray(tf.float64, num_steps, element_shape=[3])
        _, sums = tf.while_loop(lambda i, _: i < num_steps, step, (0, sums))
        return sums.stack()

    def _step(self, batch: Batch, vote: tf.Tensor) -> tf.Tensor:
        sums = self.strategy.run(self._replica_step, args=(batch, vote))
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)

    def _replica_step(self, batch: Batch, vote: tf.Tensor) -> tf.Tensor:
        # Only this part is compiled: the optimizer's variables have copies on other devices,
        # which XLA refuses to touch.
        compiled = tf.function(self._gradients, jit_compile=self.xla, autograph=False)
        # Nothing orders the parts, so that they are computed side by side where there are threads.
        parts = in_parts(batch, self.num_examples, self.examples_per_part)
        found = [compiled(part) for part in parts]
        gradients = [
            tf.add_n(list(each))
            for each in zip(*(gradients for gradients, _ in found), strict=True)
        ]
        sums = tf.add_n([sums for _, sums in found])
        if self.job.train.clipnorm > 0 or self.job.train.precision == "float16":
            gradients = self._whole_gradients(gradients)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return tf.concat([sums, vote[None]], axis=0)

    def _whole_gradients(self, parts: list[tf.Tensor]) -> list[tf.Tensor]:
        # Keras would clip, and look for the overflow of float16, in each replica's part before
        # they are added up. Divided, for it will add them up all the same.
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, parts)
        if self.job.train.clipnorm > 0:
            scale = self.optimizer.scale_loss(tf.constant(1.0))  # which the optimizer undoes
            limit = self.job.train.clipnorm * scale
            gradients, _ = tf.clip_by_global_norm(gradients, limit)
        return [gradient / context.num_replicas_in_sync for gradient in gradients]

    def _gradients(self, batch: Batch) -> tuple[list[tf.Tensor], tf.Tensor]:
        variables = [v.value for v in self.model.trainable_variables]
        with tf.GradientTape() as tape:
            probabilities = self.model(
                batch.tokens, training=True, step=batch.step, positions=batch.positions
            )
            losses = keras.losses.binary_crossentropy(batch.labels[:, None], probabilities)
            weights, count = (
                tf.cast(batch.weights, losses.dtype),
                tf.cast(batch.count, losses.dtype),
            )
            loss = tf.reduce_sum(losses * weights)
            # Over the global batch's reviews, not this replica's: replicas' parts are added up,
            # and a last batch need not fill them equally.
            target = self.optimizer.scale_loss(loss / count)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(target, variables)]
        correct = tf.equal(probabilities[:, 0] > 0.5, batch.labels > 0.5)
        num_correct = tf.reduce_sum(tf.cast(correct, losses.dtype) * weights)
        return gradients, tf.cast(tf.stack([loss, num_correct]), tf.float64)

    # The weights that would be kept

    def take_weights(self) -> None:
        """Give `export_model` the weights as they stand now: the moving average if there is one."""
        self.export_model.set_weights(self.model.get_weights())
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        optimizer.finalize_variable_values(self.export_model.trainable_variables)

    # What the record says

    def trace(self, batches: Iterator[Batch]) -> tf.Graph:
        """The graph of a training call, traced as `train_steps` will find it; nothing is run."""
        vote = tf.TensorSpec([], tf.float64)
        num_steps = self.job.train.steps_per_execution
        return self._run_steps.get_concrete_function(batches, num_steps, vote).graph

    def kernels(self, graph: tf.Graph) -> dict[str, str]:
        """The kernel that each recurrent layer takes, read from the traced graph, not guessed.

        `cudnn`: NVIDIA's fused kernel; `xla`: the compiled loop; `loop`: a loop of TensorFlow
        operations. A Bidirectional layer holds two of the kind.
        """
        functions = graph.as_graph_def().library.function
        nodes = [node for function in functions for node in function.node_def]
        kernels = {}
        for layer in recurrent_layers(self.model):
            mine = [node.op for node in nodes if f"/{layer.name}/" in f"/{node.name}/"]
            fused = any(op.startswith("CudnnRNN") for op in mine)
            kernels[layer.name] = "cudnn" if fused else "xla" if self.xla else "loop"
        return kernels


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
