"""What holds for every architecture: dropout over the global batch, the recurrent layers."""

import keras
import tensorflow as tf
from keras.layers import RNN, Bidirectional, Dropout, SpatialDropout1D


class GlobalBatchDropout(keras.Layer):  # type: ignore[misc]  # Keras ships no types
    """Dropout whose mask depends on (seed, step, the row's place in the global batch) alone.

    Keras's own draws the same mask on every replica, and keeps a generator that stands in no
    saved file. Here nothing is kept, and one or several replicas drop the same numbers.

    `step` is the number of the training step and `rows` `[rows] int32` the places of this
    replica's rows in the global batch; both reach the layer from the call of the model.
    """

    def __init__(self, rate: float, seed: int, batch_size: int, over_time: bool, name: str) -> None:
        super().__init__(name=name)
        self.rate, self.seed, self.batch_size, self.over_time = rate, seed, batch_size, over_time
        self._register_call_context_args("step", "rows")

    def call(
        self,
        inputs: tf.Tensor,
        training: bool = False,
        step: tf.Tensor | None = None,
        rows: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Drop in training, pass on otherwise; `[rows, …]`, over time `[rows, time, channels]`."""
        if not training or self.rate == 0:
            return inputs
        assert step is not None, "training needs the step"  # noqa: S101 - a bug of ours, no input
        # [batch, …] as the inputs, but one draw for all times where a channel drops over all.
        rest = (1, inputs.shape[2]) if self.over_time else tuple(inputs.shape[1:])
        # Every replica draws the whole global batch's mask, [batch, units], and takes its rows:
        # a few thousand numbers.
        drawn = uniform((self.batch_size, *rest), tf.stack([self.seed, step]))
        kept = tf.gather(drawn, rows) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))


@tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
def uniform(shape: tuple[int, ...], seed: tf.Tensor) -> tf.Tensor:
    """Numbers from 0 up to 1 that depend on the seed, `[2] int64`, alone.

    Compiled in every plan: from one seed XLA draws other numbers than TensorFlow's own kernel. The
    algorithm is named, since the default differs by device.
    """
    return tf.random.stateless_uniform(shape, seed, alg="philox")


def for_training(model: keras.Model, seed: int, batch_size: int) -> keras.Model:
    """Copy a model with its dropout layers exchanged for `GlobalBatchDropout`; equal weights."""
    num_dropouts = 0

    def exchange(layer: keras.Layer) -> keras.Layer:
        nonlocal num_dropouts
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

    copy = keras.models.clone_model(model, clone_function=exchange)
    copy.set_weights(model.get_weights())
    return copy


def recurrent_layers(model: keras.Model) -> list[keras.Layer]:
    """The model's recurrent layers, in order."""
    return [layer for layer in model.layers if isinstance(layer, RNN | Bidirectional)]


def count_parameters(model: keras.Model) -> dict[str, int]:
    """How many parameters the model has, in all and in its recurrent layers."""
    recurrent = sum(layer.count_params() for layer in recurrent_layers(model))
    return {"parameters": model.count_params(), "recurrent_parameters": recurrent}
