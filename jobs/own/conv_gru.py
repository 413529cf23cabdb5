"""A custom network: a convolution over neighbouring words before a GRU."""

import keras
from keras import layers

from harness.layers import GlobalBatchDropout


class Gate(keras.Layer):
    """Multiplies each channel by a learned factor between 0 and 1."""

    def __init__(self, rate, **options):
        """Set the dropout rate of the outputs."""
        super().__init__(**options)
        self.dropout = GlobalBatchDropout(rate)
        self.dense = None

    def build(self, shape):
        """Make the weights, once the number of channels is known."""
        self.dense = layers.Dense(shape[-1], activation="sigmoid")
        self.dense.build(shape)

    def call(self, inputs, training=False):
        """Gate the channels; input and output have the shape `[rows, time, channels]`."""
        return self.dropout(inputs * self.dense(inputs), training=training)


def conv_gru(vocab_size, config, *, num_outputs, options):
    """Return a model that maps word indices `[rows, time]` to probabilities `[rows, num_outputs]`.

    Args:
        vocab_size: number of word indices.
        config: `[model]` of the job, such as `config.units`.
        num_outputs: 1 for two classes, otherwise the number of classes.
        options: `[model.options]` of the job.
    """
    return keras.Sequential(
        [
            keras.Input([None], dtype="int32"),
            layers.Embedding(vocab_size, config.embedding_dim),
            layers.SpatialDropout1D(config.spatial_dropout),
            layers.Conv1D(options["filters"], options.get("width", 5), activation="relu"),
            Gate(options.get("gate_dropout", 0.0)),
            layers.GRU(config.units),
            layers.Dropout(config.dropout),
            layers.Dense(num_outputs, activation="sigmoid" if num_outputs == 1 else "softmax"),
        ]
    )
