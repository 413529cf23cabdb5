"""The notebook's five recurrent sentiment models, each as one function over plain Keras layers.

Your own architecture is one more function here and its name in `BUILDERS`. Write it with
`keras.layers.Dropout` and `SpatialDropout1D`: `for_training` gives the training its own copy, whose
masks do not depend on how many replicas share a batch.
"""

from collections.abc import Callable

import keras
import tensorflow as tf
from keras.layers import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    Dense,
    Dropout,
    Embedding,
    GlobalAveragePooling1D,
    GlobalMaxPooling1D,
    SimpleRNN,
    SpatialDropout1D,
)

from harness.job import ModelTable

# The recurrent layers' outputs over time to one vector; the notebook takes the last as it is.
POOLINGS: dict[str, tuple[type[keras.Layer], ...]] = {
    "last": (),
    "max": (GlobalMaxPooling1D,),
    "mean": (GlobalAveragePooling1D,),
}


def _sentiment(vocab_size: int, table: ModelTable, *recurrent: keras.Layer) -> keras.Model:
    """Embedding, the recurrent layers, one probability: what all five exercises share.

    The last of the recurrent layers must return sequences unless `table.pooling` is `last`.
    """
    return keras.Sequential(
        [
            keras.Input([None], dtype="int32", name="tokens"),
            Embedding(vocab_size, table.embedding_dim),
            SpatialDropout1D(table.spatial_dropout),
            *recurrent,
            *(pooling() for pooling in POOLINGS[table.pooling]),
            Dropout(table.dropout),
            # In the precision of the weights: a probability in half of it would round to 0 or 1,
            # and make the loss infinite.
            Dense(1, activation="sigmoid", dtype=keras.config.dtype_policy().variable_dtype),
        ],
        name=table.architecture,
    )


def _over_time(table: ModelTable) -> bool:
    """Whether the last recurrent layer gives its outputs of all times."""
    return table.pooling != "last"


def rnn(vocab_size: int, table: ModelTable) -> keras.Model:
    """Exercise 6.01, the plain RNN: 2,080 recurrent parameters at 32 units."""
    return _sentiment(vocab_size, table, SimpleRNN(table.units, return_sequences=_over_time(table)))


def lstm(vocab_size: int, table: ModelTable) -> keras.Model:
    """Exercise 6.02: 8,320 recurrent parameters at 32 units."""
    return _sentiment(vocab_size, table, LSTM(table.units, return_sequences=_over_time(table)))


def gru(vocab_size: int, table: ModelTable) -> keras.Model:
    """Exercise 6.03: 6,240 recurrent parameters at 32 units and `reset_after = false`."""
    layer = GRU(table.units, reset_after=table.reset_after, return_sequences=_over_time(table))
    return _sentiment(vocab_size, table, layer)


def bilstm(vocab_size: int, table: ModelTable) -> keras.Model:
    """Exercise 6.04: 16,640 recurrent parameters at 32 units."""
    return _sentiment(
        vocab_size, table, Bidirectional(LSTM(table.units, return_sequences=_over_time(table)))
    )


def stacked_lstm(vocab_size: int, table: ModelTable) -> keras.Model:
    """Exercise 6.05: 16,640 recurrent parameters at 32 units."""
    second = LSTM(table.second_units or table.units, return_sequences=_over_time(table))
    return _sentiment(vocab_size, table, LSTM(table.units, return_sequences=True), second)


BUILDERS: dict[str, Callable[[int, ModelTable], keras.Model]] = {
    "rnn": rnn,
    "lstm": lstm,
    "gru": gru,
    "bilstm": bilstm,
    "stacked_lstm": stacked_lstm,
}


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
        rest = tf.shape(inputs)[1:]
        rest = tf.stack([1, rest[1]]) if self.over_time else rest
        # Every replica draws the whole global batch's mask, [batch, units], and takes its rows:
        # a few thousand numbers. The algorithm is named, since the default differs by device.
        drawn = tf.random.stateless_uniform(
            tf.concat([[self.batch_size], rest], 0), tf.stack([self.seed, step]), alg="philox"
        )
        kept = tf.gather(drawn, rows) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))


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
