"""The five recurrent sentiment models of a teaching notebook, built from plain Keras layers.

A custom network needs no change here: the job contains its path, see jobs/README.md.

Keras is imported inside the functions, because the check of a job does not need Keras.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from harness.config import FORM, ConfigSection, Facts, Options, Share

if TYPE_CHECKING:
    import keras

# LOWEST replaces the outputs at padded positions before a maximum is computed. In float16 a number
# below -65504 would be infinite.
LOWEST = -6e4


ARCHITECTURES = ("rnn", "lstm", "gru", "bilstm", "stacked_lstm")


def recurrent_layers(config: "ModelConfig") -> Sequence["keras.Layer"]:
    """Return the recurrent layers of one of the notebook's networks, in the network's order.

    The layers map `[batch, time, embedding_dim]` to `[batch, units]`, or to `[batch, time, units]`
    if `over_time(config)`.
    """
    from keras.layers import GRU, LSTM, Bidirectional, SimpleRNN

    units, over = config.units, over_time(config)
    match config.architecture:
        case "rnn":
            return [SimpleRNN(units, return_sequences=over)]
        case "lstm":
            return [LSTM(units, return_sequences=over)]
        case "gru":  # the notebook's GRU has `reset_after` off
            return [GRU(units, reset_after=config.reset_after, return_sequences=over)]
        case "bilstm":
            return [Bidirectional(LSTM(units, return_sequences=over))]
        case _:
            # Make the second layer first: the order in which layers are made determines their
            # initial weights.
            second = LSTM(config.second_units or units, return_sequences=over)
            return [LSTM(units, return_sequences=True), second]


def sentiment(vocab_size: int, config: "ModelConfig", *, num_outputs: int = 1) -> "keras.Model":
    """Build a network that classifies texts: embedding, recurrent layers, probabilities.

    Args:
        vocab_size: the number of word indices.
        config: the job's `[model]` table.
        num_outputs: 1 for two classes (the probability of label 1), else the number of classes.
    """
    import keras
    from keras import layers

    recurrent = recurrent_layers(config)  # first, because the order determines initial weights
    tokens = keras.Input([None], dtype="int32", name="tokens")
    in_words: tuple[keras.Layer, ...] = ()
    if config.word_dropout:  # even with rate 0, the layer would change later seeds
        in_words = (layers.Dropout(config.word_dropout, noise_shape=(None, None, 1)),)
    first = (
        layers.Embedding(vocab_size, config.embedding_dim),
        layers.SpatialDropout1D(config.spatial_dropout),
    )
    last = (
        layers.Dropout(config.dropout),
        # The layer has the precision of the weights: in half precision a probability could be
        # rounded to 0 or 1, and the loss would be infinite.
        layers.Dense(
            num_outputs,
            activation="sigmoid" if num_outputs == 1 else "softmax",
            dtype=keras.config.dtype_policy().variable_dtype,
        ),
    )
    recurrent = recurrent if config.recurrent else ()
    kinds = config.pooling.split("+")
    if len(kinds) == 1 and not config.ngram_ratios and not config.right_padded:
        pooling = _pooling(kinds[0])
        return keras.Sequential(
            [tokens, *first, *in_words, *recurrent, *pooling, *last], name=config.architecture
        )
    inputs, x = [tokens], _chained(tokens, first)
    if config.ngram_ratios:
        channels = config.ngram_ratios * num_outputs
        inputs += [keras.Input([None, channels], dtype="float32", name="ngram_ratios")]
        x = layers.Concatenate()([x, inputs[1]])
    x = _chained(x, in_words)
    padding = Padding(tokens) if config.right_padded else None
    x = _pooled(x, recurrent, kinds, padding=padding)
    return keras.Model(inputs, _chained(x, last), name=config.architecture)


def _chained(x: "keras.KerasTensor", layers: Sequence["keras.Layer"]) -> "keras.KerasTensor":
    for layer in layers:
        x = layer(x)
    return x


def _pooling(kind: str) -> Sequence["keras.Layer"]:
    """Return the layers that pool outputs over time.

    The pooling `last` needs no layer: with it, recurrent layers return only their last output.
    """
    from keras import layers

    if kind == "last":
        return []
    return [{"max": layers.GlobalMaxPooling1D, "mean": layers.GlobalAveragePooling1D}[kind]()]


class Padding:
    """Operations on reviews that are padded at their ends; the operations ignore the padding.

    The operations are plain Keras, so a saved model does not need this package. Layers need no
    mask, because a recurrent layer's outputs at the words do not depend on the padding after the
    words. On a CPU, a mask would make a recurrent layer's loop over time slower.

    Args:
        tokens: the network's input, `[batch, time] int32`.
    """

    def __init__(self, tokens: "keras.KerasTensor") -> None:
        from keras import ops

        # TensorFlow computes with int32 on the CPU, even in a network on a GPU. With int64, the
        # tokens stay on the GPU.
        tokens = ops.cast(tokens, "int64")
        self.is_word = ops.not_equal(tokens, 0)  # [batch, time]
        ones = ops.ones_like(tokens)
        place = ops.cumsum(ones, axis=1) - 1
        num_places = ops.sum(ones, axis=1, keepdims=True)  # [batch, 1], the length of the time axis
        last = ops.sum(ops.cast(self.is_word, "int64"), axis=1, keepdims=True) - 1
        self.is_last = ops.equal(place, last)  # [batch, time]
        # For each position in the reversed reviews, the index of its word in the flattened batch.
        before = ops.cumsum(num_places, axis=0) - num_places
        self._reversed = before + ops.where(self.is_word, last - place, place)

    def reverse(self, x: "keras.KerasTensor") -> "keras.KerasTensor":
        """Reverse each review of `[batch, time, channels]`, but leave its padding at the end."""
        from keras import ops

        return ops.take(ops.reshape(x, [-1, x.shape[-1]]), self._reversed, axis=0)

    def last(self, x: "keras.KerasTensor") -> "keras.KerasTensor":
        """Select each review's last output: `[batch, time, channels]` to `[batch, channels]`."""
        from keras import ops

        return _squeezed(ops.sum(ops.where(self.is_last[..., None], x, 0.0), axis=1, keepdims=True))

    def max(self, x: "keras.KerasTensor") -> "keras.KerasTensor":
        """Find each channel's largest output: `[batch, time, channels]` to `[batch, channels]`."""
        from keras import layers, ops

        words = ops.where(self.is_word[..., None], x, LOWEST)
        return _squeezed(layers.GlobalMaxPooling1D(keepdims=True)(words))

    def mean(self, x: "keras.KerasTensor") -> "keras.KerasTensor":
        """Average each channel's outputs: `[batch, time, channels]` to `[batch, channels]`."""
        from keras import layers

        return _squeezed(layers.GlobalAveragePooling1D(keepdims=True)(x, mask=self.is_word))


def _squeezed(x: "keras.KerasTensor") -> "keras.KerasTensor":
    """Remove the time axis that a reduction has kept, `[batch, 1, channels]`.

    The reductions in `Padding` keep the time axis (`keepdims=True`). Without `keepdims`,
    TensorFlow would compute the gradient's shape on the GPU, and each training step would wait for
    this shape.
    """
    from keras import ops

    return ops.squeeze(x, 1)


def _pooled(
    x: "keras.KerasTensor",
    recurrent: Sequence["keras.Layer"],
    kinds: Sequence[str],
    *,
    padding: Padding | None,
) -> "keras.KerasTensor":
    """Apply recurrent layers, then pool over time.

    The input has the shape `[batch, time, channels]`; the result has `[batch, features]`.
    """
    from keras import layers

    directions = [x]
    for layer in recurrent:
        if padding and isinstance(layer, layers.Bidirectional):
            forward = layer.forward_layer
            settings = forward.get_config() | {"name": layer.backward_layer.name}
            backward = type(forward).from_config(settings)
            # Reverse the reviews: Keras's backward layer would start in the padding.
            directions = [forward(x), backward(padding.reverse(x))]
        else:
            x = layer(x)
            directions = [x]

    def pool(x: "keras.KerasTensor", kind: str) -> "keras.KerasTensor":
        if not padding:
            return _chained(x, _pooling(kind))
        return {"last": padding.last, "max": padding.max, "mean": padding.mean}[kind](x)

    parts = [pool(outputs, kind) for outputs in directions for kind in kinds]
    return layers.Concatenate()(parts) if len(parts) > 1 else parts[0]


def over_time(config: "ModelConfig") -> bool:
    """Whether the last recurrent layer returns an output for every word."""
    return config.pooling != "last" or config.right_padded


def _belongs_to_an_own_network(job: Any) -> str:
    """Options are allowed only with a custom network."""
    if job.model.options and not job.model.is_own:
        name = job.model.architecture
        return f"{name} takes no options, only a custom network ({FORM}) does; remove model.options"
    return ""


def _is_read_by_the_network(job: Any) -> str:
    """`ngram_ratios` must be 0 with a custom network."""
    if job.model.ngram_ratios and job.model.is_own:
        return "a custom network reads only words, no n-gram ratios; set model.ngram_ratios to 0"
    return ""


def _leaves_something_to_classify(job: Any) -> str:
    """If `recurrent` is false, `pooling` must not be `last`."""
    if not job.model.recurrent and job.model.pooling == "last":
        return (
            "needs a pooling of the words' vectors, but model.pooling is 'last'; set model.pooling "
            "to 'max', 'mean' or 'max+mean'"
        )
    return ""


class ModelConfig(ConfigSection):
    """`[model]`: the network."""

    # Whether reviews are padded at their ends, so that the network must ignore the padding.
    right_padded: ClassVar[bool] = False

    architecture: Annotated[str, Facts(choices=ARCHITECTURES, is_function=True)] = Field(
        description="network; a custom network is `file.py:function` or `package.module:function`"
    )
    units: int = Field(32, ge=1, le=4096, description="units of a recurrent layer")
    embedding_dim: int = Field(32, ge=1, le=4096, description="dimension of the word vectors")
    embeddings: Annotated[
        str,
        Facts(
            is_path=True,
            changes="nothing",
            not_searched="all trials of a sweep read the same file of word vectors",
        ),
    ] = Field(
        "",
        description="file of pretrained word vectors; empty = none",
    )
    train_embeddings: bool = Field(
        True, description="train the word vectors; false keeps their initial values"
    )
    spatial_dropout: Share = Field(0.4, description="dropout rate of whole embedding channels")
    dropout: Share = Field(0.4, description="dropout rate of the output layer's inputs")
    reset_after: Annotated[bool, Facts(only_with={"model.architecture": ("gru",)})] = Field(
        False, description="true selects the variant of the GRU that cuDNN supports"
    )
    second_units: Annotated[int, Facts(only_with={"model.architecture": ("stacked_lstm",)})] = (
        Field(0, ge=0, le=4096, description="units of the second layer; 0 = as many as `units`")
    )
    pooling: Literal["last", "max", "mean", "max+mean"] = Field(
        "last", description="pooling of the outputs over time"
    )
    options: Annotated[Options, Facts(check=_belongs_to_an_own_network)] = Field(
        {}, description="settings that the function of your network reads; you choose their names"
    )

    word_dropout: Share = Field(
        0.0,
        description="dropout rate of whole words; a dropped word also loses the log-count ratios "
        "of its n-grams",
    )
    ngram_ratios: Annotated[int, Facts(check=_is_read_by_the_network)] = Field(
        0,
        ge=0,
        le=3,
        description="the network also reads the log-count ratios of n-grams of up to this many "
        "words; 0 = off",
    )
    recurrent: Annotated[bool, Facts(check=_leaves_something_to_classify)] = Field(
        True, description="false removes the recurrent layers, for an ablation"
    )

    @property
    def is_own(self) -> bool:
        """Whether the network is custom, not one of the five built-in ones."""
        return self.architecture not in ARCHITECTURES


class RightPaddedModel(ModelConfig):
    """The `[model]` table of a job with `data.bucket`, which pads reviews at their ends."""

    right_padded: ClassVar[bool] = True
