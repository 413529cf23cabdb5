"""The notebook's five recurrent sentiment models, each as one function over plain Keras layers.

A network of your own needs no edit here: a job names it by its file, see jobs/README.md.

Keras is imported inside the functions, since a job is checked against the names without it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from harness.config import ConfigSection, Options, Share
from harness.own_code import FORM, is_reference

if TYPE_CHECKING:
    import keras


def rnn(vocab_size: int, config: "ModelConfig", *, num_outputs: int = 1) -> "keras.Model":
    """Exercise 6.01, the plain RNN: 2,080 recurrent parameters at 32 units."""
    from keras.layers import SimpleRNN

    layer = SimpleRNN(config.units, return_sequences=over_time(config))
    return sentiment(vocab_size, config, layer, num_outputs=num_outputs)


def lstm(vocab_size: int, config: "ModelConfig", *, num_outputs: int = 1) -> "keras.Model":
    """Exercise 6.02: 8,320 recurrent parameters at 32 units."""
    from keras.layers import LSTM

    layer = LSTM(config.units, return_sequences=over_time(config))
    return sentiment(vocab_size, config, layer, num_outputs=num_outputs)


def gru(vocab_size: int, config: "ModelConfig", *, num_outputs: int = 1) -> "keras.Model":
    """Exercise 6.03: 6,240 recurrent parameters at 32 units and `reset_after = false`."""
    from keras.layers import GRU

    layer = GRU(config.units, reset_after=config.reset_after, return_sequences=over_time(config))
    return sentiment(vocab_size, config, layer, num_outputs=num_outputs)


def bilstm(vocab_size: int, config: "ModelConfig", *, num_outputs: int = 1) -> "keras.Model":
    """Exercise 6.04: 16,640 recurrent parameters at 32 units."""
    from keras.layers import LSTM, Bidirectional

    layer = Bidirectional(LSTM(config.units, return_sequences=over_time(config)))
    return sentiment(vocab_size, config, layer, num_outputs=num_outputs)


def stacked_lstm(vocab_size: int, config: "ModelConfig", *, num_outputs: int = 1) -> "keras.Model":
    """Exercise 6.05: 16,640 recurrent parameters at 32 units."""
    from keras.layers import LSTM

    second = LSTM(config.second_units or config.units, return_sequences=over_time(config))
    first = LSTM(config.units, return_sequences=True)
    return sentiment(vocab_size, config, first, second, num_outputs=num_outputs)


BUILDERS: dict[str, Callable[..., "keras.Model"]] = {
    "rnn": rnn,
    "lstm": lstm,
    "gru": gru,
    "bilstm": bilstm,
    "stacked_lstm": stacked_lstm,
}


def sentiment(
    vocab_size: int, config: "ModelConfig", *recurrent: "keras.Layer", num_outputs: int = 1
) -> "keras.Model":
    """The network that all five exercises share: embedding, recurrent layers, probabilities.

    Args:
        vocab_size: indices that a word may have.
        config: the job's settings of the model.
        recurrent: the layers between, `[batch, time, embedding_dim]` to `[batch, units]`, or
            `[batch, time, units]` if `over_time(config)`.
        num_outputs: 1 for two classes, the probability of label 1; else one for each class.
    """
    import keras
    from keras import layers

    # From the outputs over time to one vector; the notebook takes the last output.
    pooling = {
        "last": (),
        "max": (layers.GlobalMaxPooling1D,),
        "mean": (layers.GlobalAveragePooling1D,),
    }
    return keras.Sequential(
        [
            keras.Input([None], dtype="int32", name="tokens"),
            layers.Embedding(vocab_size, config.embedding_dim),
            layers.SpatialDropout1D(config.spatial_dropout),
            *recurrent,
            *(layer() for layer in pooling[config.pooling]),
            layers.Dropout(config.dropout),
            # In the precision of the weights: in half precision a probability could round to 0
            # or 1, and make the loss infinite.
            layers.Dense(
                num_outputs,
                activation="sigmoid" if num_outputs == 1 else "softmax",
                dtype=keras.config.dtype_policy().variable_dtype,
            ),
        ],
        name=config.architecture,
    )


def over_time(config: "ModelConfig") -> bool:
    """Whether the last recurrent layer returns its outputs of all times."""
    return config.pooling != "last"


def _known(name: str) -> str:
    if name not in BUILDERS and not is_reference(name):
        names = ", ".join(map(repr, BUILDERS))
        raise PydanticCustomError("literal_error", f"Input should be {names} or {FORM}")
    return name


class ModelConfig(ConfigSection):
    """`[model]`: the network."""

    architecture: Annotated[str, AfterValidator(_known)] = Field(
        description="name of the network; your own is `file.py:function` or "
        "`package.module:function`"
    )
    units: int = Field(32, ge=1, le=4096, description="units of each recurrent layer")
    embedding_dim: int = Field(32, ge=1, le=4096, description="length of a word's vector")
    embeddings: str = Field(
        "",
        max_length=4000,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="pretrained vectors of words, a text file or `.npy`; empty = none",
    )
    train_embeddings: bool = Field(
        True, description="train the vectors of words; false leaves them as they begin"
    )
    spatial_dropout: Share = Field(0.4, description="share of embedding channels dropped")
    dropout: Share = Field(0.4, description="share of the recurrent layers' outputs dropped")
    reset_after: bool = Field(False, description="gru only: the variant that cuDNN can run")
    second_units: int = Field(
        0, ge=0, le=4096, description="stacked_lstm only: units of the second layer; 0 = `units`"
    )
    pooling: Literal["last", "max", "mean"] = Field(
        "last", description="what the classifier gets of the outputs over time"
    )
    options: Options = Field({}, description="own networks only: their settings, of any name")

    @property
    def is_own(self) -> bool:
        """Whether the network is a user's function, and not one of the five."""
        return self.architecture not in BUILDERS
