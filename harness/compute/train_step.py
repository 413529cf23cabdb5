"""What runs on the devices in training: a step.

Two models share the strategy's scope. `model` is trained, with dropout over the global batch.
`export_model` is the notebook's own network in plain Keras: it gets the weights that the run would
export (the latest ones, or the optimizer's moving average), and is validated, tested and saved.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import keras
import tensorflow as tf
from keras.layers import Bidirectional, SimpleRNN

from harness.compute.evaluator import Evaluator, uses_gpu, wide
from harness.compute.execution_plan import ExecutionPlan
from harness.compute.loss import loss_of, perturbation, weights_of
from harness.compute.network import KERAS_PRECISION, build_network, put_vectors, training_network
from harness.compute.optimizer import build_optimizer
from harness.compute.recurrent import (
    compute_in_float32,
    count_kernels,
    recurrent_layers,
    turn_cudnn_off,
    use_block_kernel,
    use_cudnn_rnn,
    why_not_cudnn,
)
from harness.compute.strategy import spans_processes
from harness.inputs.input_pipeline import Batch, in_parts
from harness.job import Job
from harness.layers import (
    DropoutValues,
    OuterEmbedding,
    dropout_values,
    global_batch,
    look_up_by_gather,
    outer_embedding,
    takes_masks,
)
from harness.texts.word_vectors import WordVectors


@dataclass(frozen=True)
class TrainingFacts:
    """What the training reviews decide."""

    steps_per_epoch: int = 1  # which a schedule of the learning rate counts
    class_weights: Sequence[float] = ()  # by label, see `loss`; empty if all weigh the same


class StepValues(NamedTuple):
    """What steps get beside their batches."""

    vote: tf.Tensor | None  # [] float64, this worker's to stop; None in a single process
    dropout: DropoutValues


class TrainStep:
    """Models and optimizer in the strategy's scope, and the graph of a training step."""

    def __init__(
        self,
        job: Job,
        strategy: tf.distribute.Strategy,
        plan: ExecutionPlan,
        *,
        num_outputs: int = 1,
        vectors: WordVectors | None = None,
        facts: TrainingFacts = TrainingFacts(),
    ) -> None:
        """Build the job's models and optimizer in the strategy's scope.

        Args:
            num_outputs: of the network, see `Dataset.num_outputs`.
            vectors: that the words begin with, where there are any.
        """
        self.class_weights, self.losses = facts.class_weights, loss_of(job)
        self.job, self.strategy, self.xla = job, strategy, plan.way == "xla"
        self.votes = spans_processes(strategy)
        self.num_examples = -(-job.train.batch_size // strategy.num_replicas_in_sync)
        self.examples_per_part = -(-job.train.batch_size // plan.parts)
        keras.utils.set_random_seed(job.train.seed)
        keras.config.set_dtype_policy(KERAS_PRECISION[job.train.precision])
        with strategy.scope():
            self.export_model = build_network(job, num_outputs)
            put_vectors(self.export_model, job, vectors)
            self.model = training_network(job, self.export_model, num_outputs)
            put_vectors(self.model, job, None)  # a network of the user's is built again
            if self.xla:
                turn_cudnn_off(self.model)
            if plan.way == "block":
                use_block_kernel(self.model)
            self.in_float32: list[str] = []  # recurrent layers, in spite of the job's precision
            if uses_gpu():
                look_up_by_gather(self.model)
                self.in_float32 = compute_in_float32(self.model)
                if plan.way == "cudnn":
                    use_cudnn_rnn(self.model)
            self.embedding = outer_embedding(self.model)
            # On a GPU XLA turns the embedding's gradient, under deterministic operations, into a
            # loop over all words of a batch; TensorFlow's own kernel sorts them.
            self.looks_up_outside = self.xla and uses_gpu() and self.embedding is not None
            self.optimizer = build_optimizer(job.train, facts.steps_per_epoch, code=job.code)
            self.model.compile(self.optimizer)
            self.optimizer.build(self.model.trainable_variables)
        self.dropout = dropout_values(self.model, job.train.seed)
        self._begin_graph()
        self.evaluator = Evaluator(self.export_model, strategy, job, plan)

    def _begin_graph(self) -> None:
        # AutoGraph is off in all graphs: it would rewrite Keras's functions too, which makes
        # tracing take half as long again.
        self._run_steps = tf.function(self._steps, autograph=False, reduce_retracing=False)

    def train_steps(self, batches: Iterator[Batch], num_steps: int, vote: float = 0) -> tf.Tensor:
        """Take `num_steps` steps in one graph, leaving the result on the device.

        Returns:
            `[num_steps, 2] float64`: for each step the sums over the global batch of the losses
            and of the correct predictions. Of several workers `[num_steps, 3]`, with the sum of
            all replicas' votes to stop.
        """
        return self._run_steps(batches, num_steps, self._values(vote))

    def _values(self, vote: float) -> StepValues:
        return StepValues(tf.constant(vote, tf.float64) if self.votes else None, self.dropout)

    def _steps(self, batches: Iterator[Batch], num_steps: int, values: StepValues) -> tf.Tensor:
        if num_steps == 1:
            return self._step(next(batches), values)[None]

        def step(i: tf.Tensor, sums: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
            return i + 1, sums.write(i, self._step(next(batches), values))

        num_sums = 3 if self.votes else 2
        sums = tf.TensorArray(tf.float64, num_steps, element_shape=[num_sums])
        _, sums = tf.while_loop(lambda i, _: i < num_steps, step, (0, sums))
        return sums.stack()

    def _step(self, batch: Batch, values: StepValues) -> tf.Tensor:
        sums = self.strategy.run(self._replica_step, args=(batch, values))
        if self.votes:
            return self.strategy.reduce(tf.distribute.ReduceOp.SUM, sums, axis=None)
        # `reduce` would bring them to the host in each step.
        of_replicas = self.strategy.experimental_local_results(sums)
        with tf.device(of_replicas[0].device):
            return tf.add_n(of_replicas)

    def _replica_step(self, batch: Batch, values: StepValues) -> tf.Tensor:
        # XLA compiles only this part: it refuses the optimizer's variables, which have copies on
        # other devices.
        compiled = tf.function(self._gradients, jit_compile=self.xla, autograph=False)
        # Nothing orders the parts, so they run side by side where there are threads.
        parts = in_parts(batch, self.num_examples, self.examples_per_part)
        results = [self._with_lookup(compiled, part, values.dropout) for part in parts]
        gradients = [
            tf.add_n(list(of_parts))
            for of_parts in zip(*(gradients for gradients, _ in results), strict=True)
        ]
        sums = tf.add_n([sums for _, sums in results])
        if self.job.train.clipnorm > 0 or self.job.train.precision == "float16":
            gradients = self._global_gradients(gradients)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        return sums if values.vote is None else tf.concat([sums, values.vote[None]], axis=0)

    def _global_gradients(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        # Keras would clip, and look for float16's overflow, in each replica's gradients before
        # it adds them up. Divided at the end, because it adds them up in any case.
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        if self.job.train.clipnorm > 0:
            one = tf.constant(1.0, gradients[0].dtype)
            scale = self.optimizer.scale_loss(one)  # which the optimizer undoes
            limit = self.job.train.clipnorm * scale
            gradients, _ = tf.clip_by_global_norm(gradients, limit)
        return [gradient / context.num_replicas_in_sync for gradient in gradients]

    def _with_lookup(
        self,
        compiled: Callable[..., tuple[list[tf.Tensor], tf.Tensor]],
        part: Batch,
        dropout: DropoutValues,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """A part's gradients and sums, its embedding outside of what is compiled."""
        if not self.looks_up_outside:
            return compiled(part, dropout)
        table = self.words.embeddings
        gradients, sums = compiled(part, dropout, tf.gather(table.value, part.tokens))
        words, channels = table.shape
        index = _index(table, self.model.trainable_variables)
        gradients[index] = tf.math.unsorted_segment_sum(
            tf.reshape(gradients[index], [-1, channels]), tf.reshape(part.tokens, [-1]), words
        )
        return gradients, sums

    def _gradients(
        self, batch: Batch, dropout: DropoutValues, embedded: tf.Tensor | None = None
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """The gradients of the weights and the sums; of `embedded` in the embedding's place."""
        epsilon = self.job.train.adversarial
        if not epsilon:
            gradients, sums, _ = self._pass(batch, dropout, embedded)
            return gradients, sums
        # One pass gives the gradients of weights and words; the second sees the words moved.
        nowhere = tf.zeros([1, 1, 1], self.words.embeddings.dtype)
        gradients, sums, at_words = self._pass(batch, dropout, embedded, moved=nowhere)
        vectors = self._look_up(batch, embedded)
        moved = epsilon * perturbation(at_words, vectors, batch.tokens)
        others, _, _ = self._pass(batch, dropout, embedded, moved=moved)
        return [(one + other) / 2 for one, other in zip(gradients, others, strict=True)], sums

    def _pass(
        self,
        batch: Batch,
        dropout: DropoutValues,
        embedded: tf.Tensor | None,
        *,
        moved: tf.Tensor | None = None,
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor | None]:
        """Gradients of the weights, sums, and the gradient of the words if they are `moved`."""
        trained = self.model.trainable_variables
        variables = [v.value for v in trained]
        if embedded is not None:
            variables[_index(self.words.embeddings, trained)] = embedded
        place = global_batch(batch.step, batch.positions, dropout)
        with tf.GradientTape() as tape, place, contextlib.ExitStack() as given:
            if embedded is not None:
                tape.watch(embedded)  # no variable, which a tape watches by itself
            words = embedded
            if moved is not None:
                words = self._look_up(batch, embedded) + moved
                variables.append(words)
            if words is not None:
                given.enter_context(self.words.given(words))
            probabilities = wide(self.model(batch.inputs, training=True))
            losses = self.losses(batch.labels, probabilities)
            weights = tf.cast(batch.weights, losses.dtype)
            if self.class_weights:
                losses *= tf.cast(weights_of(batch.labels, self.class_weights), losses.dtype)
            loss = tf.reduce_sum(losses * weights)
            # Divided by the reviews of the global batch, not of this replica: the replicas'
            # gradients are added up, and a last batch need not fill them equally.
            target = self.optimizer.scale_loss(loss / tf.cast(batch.count, losses.dtype))
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(target, variables)]
        at_words = gradients.pop() if moved is not None else None
        correct = is_correct(batch.labels, probabilities)
        num_correct = tf.reduce_sum(tf.cast(correct, losses.dtype) * weights)
        return gradients, tf.cast(tf.stack([loss, num_correct]), tf.float64), at_words

    @property
    def words(self) -> OuterEmbedding:
        """The embedding, where the words' vectors are looked up outside of the model."""
        if self.embedding is None:  # which the check of the job excludes
            raise RuntimeError("the network has no embedding of its own input that is trained")
        return self.embedding

    def _look_up(self, batch: Batch, embedded: tf.Tensor | None) -> tf.Tensor:
        """The vectors of a batch's words, `[examples, time, channels]`."""
        if embedded is not None:
            return embedded
        return tf.gather(self.words.embeddings.value, batch.tokens)

    def become(self, other: "TrainStep") -> None:
        """Take up the job and the state of a new step with the same graph."""
        self.job, self.dropout = other.job, other.dropout
        self.model.stop_training = False
        for own, others in (
            (self.export_model, other.export_model),
            (self.model, other.model),
            (self.optimizer, other.optimizer),
        ):
            for variable, value in zip(own.variables, others.variables, strict=True):
                variable.assign(value)

    @property
    def _inner_optimizer(self) -> keras.optimizers.Optimizer:
        return getattr(self.optimizer, "inner_optimizer", self.optimizer)

    def export_weights(self) -> None:
        """Give `export_model` the latest weights, or their moving average if there is one."""
        self.export_model.set_weights(self.model.get_weights())
        self._inner_optimizer.finalize_variable_values(self.export_model.trainable_variables)

    def trace(self, batches: Iterator[Batch]) -> tf.Graph:
        """The graph that `train_steps` will use, traced without running it."""
        num_steps = self.job.train.steps_per_execution
        return self._run_steps.get_concrete_function(batches, num_steps, self._values(0)).graph

    def kernels(self, graph: tf.Graph) -> dict[str, str]:
        """The kernel of each recurrent layer, read from the traced graph.

        `cudnn`: NVIDIA's fused kernel; `block`: TensorFlow's on a CPU; `xla`: the compiled loop;
        `loop`: a loop of TensorFlow operations.
        """
        layers = recurrent_layers(self.model)
        kernels = dict.fromkeys((layer.name for layer in layers), "xla" if self.xla else "loop")
        for name, kernel in (("cudnn", "CudnnRNN"), ("block", "BlockLSTM")):
            counts = count_kernels(graph, layers, kernel)
            for layer in layers:
                directions = 2 if isinstance(layer, Bidirectional) else 1
                if counts[layer.name] >= directions:
                    kernels[layer.name] = name
        return kernels

    def why_slow(self, kernels: dict[str, str]) -> str:
        """Which layers cuDNN does not compute on a GPU, why, and what mends it; else empty.

        Args:
            kernels: as `kernels` gives them.
        """
        layers = [each for each in recurrent_layers(self.model) if kernels[each.name] != "cudnn"]
        if not layers or not uses_gpu():
            return ""
        names = ", ".join(each.name for each in layers)
        setting = next(filter(None, map(why_not_cudnn, layers)), "")
        if takes_masks(self.model):
            reason = "cuDNN takes no mask that begins with zeros, as padded reviews have"
            remedy = "leave mask_zero and Masking out, or use a CPU"
        elif setting:
            reason, remedy = f"cuDNN takes no layer with {setting}", "change that, or use a CPU"
            if not self.job.model.is_own:
                remedy = "set model.reset_after = true, or use a CPU"
        elif self.xla:
            reason, remedy = "XLA can't compile cuDNN", "set train.xla = auto"
        elif isinstance(layers[0], SimpleRNN):
            reason = "cuDNN's plain RNN computes other numbers on this GPU than Keras"
            remedy = "use a CPU, or another GPU"
        else:
            reason, remedy = "use_cudnn = False", "leave it out, or use a CPU"
        return (
            f"{names}: slow on a GPU, because a loop computes word after word: {reason}; {remedy}"
        )


def is_correct(labels: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
    """Whether the most probable class is the label, `[examples] bool`; as for `cross_entropy`."""
    if probabilities.shape[1] == 1:
        return tf.equal(probabilities[:, 0] > 0.5, labels > 0.5)
    predicted = tf.argmax(probabilities, axis=1, output_type=tf.int32)
    return tf.equal(predicted, tf.cast(labels, tf.int32))


def _index(variable: keras.Variable, variables: Sequence[keras.Variable]) -> int:
    return [each is variable for each in variables].index(True)
