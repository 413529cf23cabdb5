"""What every architecture shares: dropout over the global batch, the recurrent layers."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf
from keras.layers import RNN, Bidirectional, Dropout, Embedding, SpatialDropout1D


class GlobalBatchDropout(keras.Layer):  # type: ignore[misc]  # Keras ships no types
    """Dropout whose mask depends only on (seed, step, the example's position in the global batch).

    Keras's own layer draws the same mask on every replica, and its generator's state is in no
    saved file. This one has no state, and drops the same numbers on one replica or on several.

    `step` is the number of the training step and `positions`, `[examples] int32`, where this
    replica's examples are in the global batch; both reach the layer through the model's call.
    """

    def __init__(
        self, rate: float, seed: int, batch_size: int, *, over_time: bool, name: str
    ) -> None:
        super().__init__(name=name)
        self.rate, self.seed, self.batch_size, self.over_time = rate, seed, batch_size, over_time
        self._register_call_context_args("step", "positions")

    def call(
        self,
        inputs: tf.Tensor,
        training: bool = False,
        step: tf.Tensor | None = None,
        positions: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Drop in training; `[examples, …]`, `[examples, time, channels]` over time."""
        if not training or self.rate == 0:
            return inputs
        assert step is not None, "training needs the step"  # noqa: S101 - a bug of ours, no input
        # [batch, …] like the inputs, but one draw for all times where whole channels drop.
        rest = (1, inputs.shape[2]) if self.over_time else tuple(inputs.shape[1:])
        # Every replica draws the mask of the whole global batch, [batch, units], a few thousand
        # numbers, and takes its own rows.
        drawn = uniform((self.batch_size, *rest), tf.stack([self.seed, step]))
        kept = tf.gather(drawn, positions) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))


@tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
def uniform(shape: tuple[int, ...], seed: tf.Tensor) -> tf.Tensor:
    """Numbers from 0 up to 1 that depend only on the seed, `[2] int64`.

    Compiled in every plan: XLA draws other numbers from a seed than TensorFlow's own kernel. The
    algorithm is named because the default differs by device.
    """
    return tf.random.stateless_uniform(shape, seed, alg="philox")


class OuterEmbedding(Embedding):  # type: ignore[misc]  # Keras ships no types
    """An embedding that can be given its output, looked up by the caller."""

    _given: tf.Tensor | None = None

    @contextlib.contextmanager
    def given(self, embedded: tf.Tensor | None) -> Iterator[None]:
        """Have calls return `embedded`, `[examples, time, channels]`; None changes nothing.

        Not an argument of the model's call, which would turn it into integers like its tokens.
        """
        self._given = embedded
        try:
            yield
        finally:
            self._given = None

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Look up, unless that is done; in the layer's precision."""
        if self._given is None:
            return super().call(inputs)
        return tf.cast(self._given, self.compute_dtype)


def for_training(model: keras.Model, seed: int, batch_size: int) -> keras.Model:
    """Copy a model and its weights, with layers of this module for dropout and embedding."""
    num_dropouts = 0

    def replace(layer: keras.Layer) -> keras.Layer:
        nonlocal num_dropouts
        if type(layer) is Embedding:
            return OuterEmbedding.from_config(layer.get_config())
        if not isinstance(layer, Dropout | SpatialDropout1D):
            return layer.__class__.from_config(layer.get_config())
        num_dropouts += 1
        # A seed of its own for each layer: the job's seed in the high bits, the layer in the low.
        return GlobalBatchDropout(
            layer.rate,
            (seed << 16) + num_dropouts,
            batch_size,
            over_time=isinstance(layer, SpatialDropout1D),
            name=layer.name,
        )

    copy = keras.models.clone_model(model, clone_function=replace)
    copy.set_weights(model.get_weights())
    return copy


def outer_embedding(model: keras.Model) -> OuterEmbedding | None:
    """The model's embedding, if it has one, which is trained and takes the model's input."""
    found = [layer for layer in model.layers if isinstance(layer, Embedding)]
    if len(found) != 1 or not isinstance(found[0], OuterEmbedding) or not found[0].trainable:
        return None
    return found[0] if found[0].input is model.inputs[0] else None


def recurrent_layers(model: keras.Model) -> list[keras.Layer]:
    """The model's recurrent layers, in order."""
    return [layer for layer in model.layers if isinstance(layer, RNN | Bidirectional)]


def turn_cudnn_off(model: keras.Model) -> None:
    """Let recurrent layers use plain TensorFlow on a GPU too, where Keras would put in cuDNN.

    XLA can't compile cuDNN, and a CPU can't run it.
    """
    for layer in recurrent_layers(model):
        directions = ("forward_layer", "backward_layer")  # of a Bidirectional layer
        for inner in (layer, *(getattr(layer, name, layer) for name in directions)):
            if hasattr(inner, "use_cudnn"):
                inner.use_cudnn = False


def count_parameters(model: keras.Model) -> dict[str, int]:
    """How many parameters the model has, in all and in its recurrent layers."""
    recurrent = sum(layer.count_params() for layer in recurrent_layers(model))
    return {"parameters": model.count_params(), "recurrent_parameters": recurrent}
