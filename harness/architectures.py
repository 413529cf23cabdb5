"""The notebook's five recurrent sentiment models, each as one function over plain Keras layers.

Your own architecture is one more function here and its name in `BUILDERS`; job files then know it.
Write it with `keras.layers.Dropout` and `SpatialDropout1D`: `harness.layers.for_training` gives the
training its own copy, whose masks do not depend on how many replicas share a batch.

Keras is imported inside the functions, since a job is checked against the names without it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

    from harness.job import ModelTable


def rnn(vocab_size: int, table: "ModelTable") -> "keras.Model":
    """Exercise 6.01, the plain RNN: 2,080 recurrent parameters at 32 units."""
    from keras.layers import SimpleRNN

    layer = SimpleRNN(table.units, return_sequences=over_time(table))
    return sentiment(vocab_size, table, layer)


def lstm(vocab_size: int, table: "ModelTable") -> "keras.Model":
    """Exercise 6.02: 8,320 recurrent parameters at 32 units."""
    from keras.layers import LSTM

    return sentiment(vocab_size, table, LSTM(table.units, return_sequences=over_time(table)))


def gru(vocab_size: int, table: "ModelTable") -> "keras.Model":
    """Exercise 6.03: 6,240 recurrent parameters at 32 units and `reset_after = false`."""
    from keras.layers import GRU

    layer = GRU(table.units, reset_after=table.reset_after, return_sequences=over_time(table))
    return sentiment(vocab_size, table, layer)


def bilstm(vocab_size: int, table: "ModelTable") -> "keras.Model":
    """Exercise 6.04: 16,640 recurrent parameters at 32 units."""
    from keras.layers import LSTM, Bidirectional

    layer = Bidirectional(LSTM(table.units, return_sequences=over_time(table)))
    return sentiment(vocab_size, table, layer)


def stacked_lstm(vocab_size: int, table: "ModelTable") -> "keras.Model":
    """Exercise 6.05: 16,640 recurrent parameters at 32 units."""
    from keras.layers import LSTM

    second = LSTM(table.second_units or table.units, return_sequences=over_time(table))
    return sentiment(vocab_size, table, LSTM(table.units, return_sequences=True), second)


BUILDERS: dict[str, Callable[[int, "ModelTable"], "keras.Model"]] = {
    "rnn": rnn,
    "lstm": lstm,
    "gru": gru,
    "bilstm": bilstm,
    "stacked_lstm": stacked_lstm,
}


def sentiment(vocab_size: int, table: "ModelTable", *recurrent: "keras.Layer") -> "keras.Model":
    """Embedding, the recurrent layers, one probability: what all five exercises share.

    Args:
        vocab_size: indices that a word may have.
        table: the job's settings of the model.
        recurrent: the layers between, `[rows, time, embedding_dim]` to `[rows, units]`, or over
            time where `over_time(table)`.
    """
    import keras
    from keras import layers

    # The outputs over time to one vector; the notebook takes the last as it is.
    pooling = {
        "last": (),
        "max": (layers.GlobalMaxPooling1D,),
        "mean": (layers.GlobalAveragePooling1D,),
    }
    return keras.Sequential(
        [
            keras.Input([None], dtype="int32", name="tokens"),
            layers.Embedding(vocab_size, table.embedding_dim),
            layers.SpatialDropout1D(table.spatial_dropout),
            *recurrent,
            *(layer() for layer in pooling[table.pooling]),
            layers.Dropout(table.dropout),
            # In the precision of the weights: a probability in half of it would round to 0 or 1,
            # and make the loss infinite.
            layers.Dense(1, activation="sigmoid", dtype=keras.config.dtype_policy().variable_dtype),
        ],
        name=table.architecture,
    )


def over_time(table: "ModelTable") -> bool:
    """Whether the last recurrent layer should give its outputs of all times."""
    return table.pooling != "last"
