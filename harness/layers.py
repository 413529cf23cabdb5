"""Layers that replace Keras's dropout and embedding layers during training.

The dropout layer draws its mask for the global batch. The embedding layer can return word vectors
that were looked up outside of the network.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.layers import BatchNormalization, Dropout, Embedding, Masking, SpatialDropout1D


class _Rows(threading.local):
    """The arguments of `global_batch`. Dropout layers in the same thread read them.

    If there are several replicas, TensorFlow traces each replica in a thread of its own.
    """

    step: tf.Tensor | None = None
    positions: tf.Tensor | None = None


_ROWS = _Rows()


@contextlib.contextmanager
def global_batch(step: tf.Tensor, positions: tf.Tensor) -> Iterator[None]:
    """Set the step and the positions of the examples for dropout layers in the `with` block.

    Args:
        step: the number of the training step, `[] int64`.
        positions: the examples' positions in the global batch, `[examples] int32`.
    """
    before = _ROWS.step, _ROWS.positions
    _ROWS.step, _ROWS.positions = step, positions
    try:
        yield
    finally:
        _ROWS.step, _ROWS.positions = before


class GlobalBatchDropout(keras.Layer):  # type: ignore[misc]  # Keras ships no types
    """Dropout whose mask depends only on (seed, step, the example's position in the global batch).

    Keras's `Dropout` draws the same mask on all replicas, and has a random generator whose state
    no checkpoint contains. This layer has no state, and its results do not depend on the number of
    replicas.

    With `over_time` the layer drops whole channels, like `SpatialDropout1D`; with `over_channels`
    it drops whole words. Only the harness can train a network with this layer.
    """

    def __init__(
        self,
        rate: float,
        *,
        over_time: bool = False,
        over_channels: bool = False,
        seed: int | None = None,
        batch_size: int = 0,
        **options: Any,
    ) -> None:
        """Create a layer that drops the fraction `rate` of its inputs.

        Args:
            rate: the fraction of inputs to drop, at least 0 and less than 1.
            over_time: if True, a channel is either dropped for all words of a review or kept for
                all of them.
            over_channels: if True, the channels of a word are either all dropped or all kept.
            seed: the seed of the masks; the run sets it.
            batch_size: the size of the global batch; the run sets it.
            options: arguments of `keras.Layer`, such as `name`.
        """
        if not 0 <= rate < 1:
            raise ValueError(f"rate = {rate}: should be at least 0 and below 1")
        super().__init__(**options)
        self.rate, self.over_time, self.over_channels = rate, over_time, over_channels
        self.seed, self.batch_size = seed, batch_size
        self.supports_masking = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Drop inputs during training.

        Whole channels or words can be dropped only from inputs `[examples, time, channels]`.
        """
        if not training or self.rate == 0:
            return inputs
        step, positions = _ROWS.step, _ROWS.positions
        if step is None or positions is None or self.seed is None:
            raise RuntimeError("GlobalBatchDropout works only in the training of a run")
        # The mask has the shape of the inputs, but its time axis or channel axis may have length 1.
        # The inputs' time axis has the same length on all replicas.
        rest = tuple(inputs.shape[1:])
        if self.over_time:
            rest = (1, inputs.shape[2])
        elif self.over_channels:
            rest = (tf.shape(inputs)[1], 1)
        elif None in rest:  # with `data.bucket` the time axis has no fixed length
            rest = tuple(tf.shape(inputs)[i] if n is None else n for i, n in enumerate(rest, 1))
        # Every replica draws the mask of the whole global batch, and uses the rows of its own
        # examples.
        drawn = uniform((self.batch_size, *rest), tf.stack([self.seed, step]))
        kept = tf.gather(drawn, positions) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))

    def get_config(self) -> dict[str, Any]:
        """Return the layer's arguments, without `seed` and `batch_size`, which the run sets."""
        names = ("rate", "over_time", "over_channels")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
def uniform(shape: tuple[int | tf.Tensor, ...], seed: tf.Tensor) -> tf.Tensor:
    """Draw numbers from [0, 1) that depend only on `seed`, whose type is `[2] int64`.

    The function is always compiled, because XLA and TensorFlow's kernel draw different numbers from
    the same seed. The argument `alg` is set because TensorFlow's default algorithm depends on the
    device.
    """
    return tf.random.stateless_uniform(shape, seed, alg="philox")


class OuterEmbedding(Embedding):  # type: ignore[misc]  # Keras ships no types
    """An embedding that can return word vectors that were looked up outside of the network."""

    gathers = False  # see `look_up_by_gather`
    _vectors: tf.Tensor | None = None

    @contextlib.contextmanager
    def returning(self, vectors: tf.Tensor) -> Iterator[None]:
        """Make the layer return `vectors`, `[examples, time, channels]`, during the `with` block.

        The vectors are not passed as an argument of the model, because Keras would convert
        them to the integer type of the tokens.
        """
        self._vectors = vectors
        try:
            yield
        finally:
            self._vectors = None

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Return the vectors of the words, in the layer's precision."""
        if self._vectors is not None:
            return tf.cast(self._vectors, self.compute_dtype)
        return _gathered(self, inputs) if self.gathers else super().call(inputs)


def look_up_by_gather(model: keras.Model) -> None:
    """Let the embeddings of a model look up words with `tf.gather`.

    Keras's `Embedding` supports negative indices: before the lookup it adds the table's number of
    rows to each negative index. TensorFlow computes this addition on the host, so each step on a
    GPU copies its word indices to the host. `tf.gather` looks up without such an addition.
    """
    for layer in all_layers(model):
        if isinstance(layer, OuterEmbedding):
            layer.gathers = True
        elif type(layer) is Embedding:
            layer.call = functools.partial(_gathered, layer)


def _gathered(layer: Embedding, tokens: tf.Tensor) -> tf.Tensor:
    """Return the vectors `[examples, time, channels]` of words `[examples, time]`.

    The indices of the words must not be negative.
    """
    if tokens.dtype not in (tf.int32, tf.int64):
        tokens = tf.cast(tokens, tf.int32)
    table = keras.ops.convert_to_tensor(layer.embeddings)
    return tf.cast(tf.gather(table, tokens), layer.compute_dtype)


def for_training(model: keras.Model, seed: int, batch_size: int) -> keras.Model:
    """Copy a model with its weights; the copy has this module's dropout and embedding layers."""
    num_dropouts = 0

    def replace(layer: keras.Layer) -> keras.Layer:
        nonlocal num_dropouts
        if type(layer) is Embedding:
            return OuterEmbedding.from_config(layer.get_config())
        if not isinstance(layer, Dropout | SpatialDropout1D):
            return layer.__class__.from_config(layer.get_config())
        num_dropouts += 1
        return _global(layer, layer_seed(seed, num_dropouts), batch_size)

    copy = keras.models.clone_model(model, clone_function=replace)
    copy.set_weights(model.get_weights())
    return copy


def layer_seed(seed: int, number: int) -> int:
    """Return a layer's seed: high bits from the job's seed, low bits from the layer's number."""
    return seed * 2**16 + number


def _global(layer: Dropout, seed: int, batch_size: int) -> GlobalBatchDropout:
    return GlobalBatchDropout(
        layer.rate,
        over_time=isinstance(layer, SpatialDropout1D),
        over_channels=_drops_words(layer),
        seed=seed,
        batch_size=batch_size,
        name=layer.name,
    )


def _drops_words(layer: Dropout) -> bool:
    return not isinstance(layer, SpatialDropout1D) and layer.noise_shape == (None, None, 1)


def place_dropouts(model: keras.Model, seed: int, batch_size: int) -> list[str]:
    """Let a model's dropout layers, also nested layers, draw masks as `GlobalBatchDropout` does.

    Each dropout layer stays in the model, and only its method `call` is replaced, because a layer
    inside another layer, or in a subclass of `keras.Model`, can't be replaced by another object.

    Returns:
        The names of the layers whose random numbers or batch statistics (as in batch normalization)
        still depend on the number of replicas.
    """
    others = []
    for number, layer in enumerate(all_layers(model), 1):
        if isinstance(layer, GlobalBatchDropout):
            layer.seed, layer.batch_size = layer_seed(seed, number), batch_size
        elif type(layer) in (Dropout, SpatialDropout1D) and (
            layer.noise_shape is None or _drops_words(layer)
        ):
            layer.call = _global(layer, layer_seed(seed, number), batch_size).call
        elif _depends_on_replicas(layer):
            others.append(f"{layer.name} ({type(layer).__name__})")
    return others


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Return each layer of a model once, including nested layers, in the order of the model."""
    return list({id(each): each for each in model._flatten_layers(include_self=False)}.values())


def _depends_on_replicas(layer: keras.Layer) -> bool:
    if isinstance(layer, BatchNormalization):
        return True
    if not layer._seed_generators:
        return False
    # A recurrent layer's cell has a random generator even if it drops nothing.
    rates = [
        getattr(layer, name)
        for name in ("rate", "dropout", "recurrent_dropout")
        if isinstance(getattr(layer, name, None), int | float)
    ]
    return any(rates) or not rates


def makes_masks(model: keras.Model) -> bool:
    """Whether a layer of the model creates a Keras mask."""
    return any(
        isinstance(layer, Masking) or getattr(layer, "mask_zero", False)
        for layer in all_layers(model)
    )
