"""Layers and functions that all networks share: dropout over the global batch, the embedding."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.layers import BatchNormalization, Dropout, Embedding, Masking, SpatialDropout1D


class _Rows(threading.local):
    """The rows of the current call in training; TensorFlow traces each replica in its thread."""

    step: tf.Tensor | None = None
    positions: tf.Tensor | None = None


_ROWS = _Rows()


@contextlib.contextmanager
def global_batch(step: tf.Tensor, positions: tf.Tensor) -> Iterator[None]:
    """Give the dropout layers of a call in training the positions of its examples.

    Args:
        step: `[] int64`, the number of the training step.
        positions: `[examples] int32`, the examples' positions in the global batch.
    """
    before = _ROWS.step, _ROWS.positions
    _ROWS.step, _ROWS.positions = step, positions
    try:
        yield
    finally:
        _ROWS.step, _ROWS.positions = before


class GlobalBatchDropout(keras.Layer):  # type: ignore[misc]  # Keras ships no types
    """Dropout whose mask depends only on (seed, step, the example's position in the global batch).

    Keras's layer draws the same mask on all replicas, and no file saves its generator's state. This
    layer has no state, and drops the same numbers on one replica as on several.

    In a custom network it replaces `keras.layers.Dropout`; with `over_time` it drops whole
    channels, like `SpatialDropout1D`, and with `over_channels` whole words. It works only in the
    training of a run.
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
        """Drop a share `rate` of the inputs.

        Args:
            rate: 0 to below 1.
            over_time: drop a channel at all times.
            over_channels: drop a time with all its channels.
            seed: set by the run.
            batch_size: the size of the global batch, set by the run.
            options: of every Keras layer, such as `name`.
        """
        super().__init__(**options)
        if not 0 <= rate < 1:
            raise ValueError(f"GlobalBatchDropout: rate = {rate}: should be 0 to below 1")
        self.rate, self.over_time, self.over_channels = rate, over_time, over_channels
        self.seed, self.batch_size = seed, batch_size
        self.supports_masking = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Drop in training; inputs are `[examples, …]`, or `[examples, time, channels]`."""
        if not training or self.rate == 0:
            return inputs
        step, positions = _ROWS.step, _ROWS.positions
        if step is None or positions is None or self.seed is None:
            raise RuntimeError("GlobalBatchDropout works only in the training of a run")
        # The mask has the shape of the inputs, except for one draw for all times of a channel, or
        # for all channels of a word. All replicas have the same number of times.
        rest = tuple(inputs.shape[1:])
        if self.over_time:
            rest = (1, inputs.shape[2])
        elif self.over_channels:
            rest = (tf.shape(inputs)[1], 1)
        elif None in rest:  # the time, in batches by length
            rest = tuple(tf.shape(inputs)[i] if n is None else n for i, n in enumerate(rest, 1))
        # Every replica draws the mask of the whole global batch, [batch, units], a few thousand
        # numbers, and takes its rows.
        drawn = uniform((self.batch_size, *rest), tf.stack([self.seed, step]))
        kept = tf.gather(drawn, positions) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the layer, without those that a run sets."""
        names = ("rate", "over_time", "over_channels")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
def uniform(shape: tuple[int | tf.Tensor, ...], seed: tf.Tensor) -> tf.Tensor:
    """Numbers from 0 to below 1 that depend only on the seed, `[2] int64`.

    Compiled in every plan, because XLA draws other numbers from a seed than TensorFlow's kernel.
    The algorithm is named because the default depends on the device.
    """
    return tf.random.stateless_uniform(shape, seed, alg="philox")


class OuterEmbedding(Embedding):  # type: ignore[misc]  # Keras ships no types
    """An embedding that can return vectors which its caller has looked up."""

    gathers = False  # see `look_up_by_gather`
    _vectors: tf.Tensor | None = None

    @contextlib.contextmanager
    def returning(self, vectors: tf.Tensor) -> Iterator[None]:
        """Let calls return `vectors`, `[examples, time, channels]`.

        They are no argument of the model's call, which would convert them to integers like its
        tokens.
        """
        self._vectors = vectors
        try:
            yield
        finally:
            self._vectors = None

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The vectors of the words, in the layer's precision."""
        if self._vectors is not None:
            return tf.cast(self._vectors, self.compute_dtype)
        return _gathered(self, inputs) if self.gathers else super().call(inputs)


def look_up_by_gather(model: keras.Model) -> None:
    """Let the embeddings of a model look up words by a plain gather.

    Keras first adds the size of the table to negative words. TensorFlow computes this on the host,
    so each step on a GPU would copy its words to the host.
    """
    for layer in all_layers(model):
        if isinstance(layer, OuterEmbedding):
            layer.gathers = True
        elif type(layer) is Embedding:
            layer.call = functools.partial(_gathered, layer)


def _gathered(layer: Embedding, tokens: tf.Tensor) -> tf.Tensor:
    """The vectors of `[examples, time]` words from 0 on, `[examples, time, channels]`."""
    if tokens.dtype not in (tf.int32, tf.int64):
        tokens = tf.cast(tokens, tf.int32)
    table = keras.ops.convert_to_tensor(layer.embeddings)
    return tf.cast(tf.gather(table, tokens), layer.compute_dtype)


def for_training(model: keras.Model, seed: int, batch_size: int) -> keras.Model:
    """Copy a model and its weights, with this module's layers for dropout and embedding."""
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
    """The seed of a layer: the job's seed in the high bits, the layer's number in the low bits."""
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
    """Let all dropout layers of any model drop like `GlobalBatchDropout`, also nested ones.

    A layer inside another layer, or in a subclass of `keras.Model`, can't be replaced by another
    object: it stays and gets another `call`.

    Returns:
        The layers whose random numbers or batch averages depend on the number of replicas.
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
    """All layers, also nested ones, without duplicates, in the order of the model."""
    return list({id(each): each for each in model._flatten_layers(include_self=False)}.values())


def _depends_on_replicas(layer: keras.Layer) -> bool:
    if isinstance(layer, BatchNormalization):
        return True
    if not layer._seed_generators:
        return False
    # A cell of a recurrent layer has a generator even if it drops nothing.
    rates = [
        getattr(layer, name)
        for name in ("rate", "dropout", "recurrent_dropout")
        if isinstance(getattr(layer, name, None), int | float)
    ]
    return any(rates) or not rates


def makes_masks(model: keras.Model) -> bool:
    """Whether a layer of the model makes a mask."""
    return any(
        isinstance(layer, Masking) or getattr(layer, "mask_zero", False)
        for layer in all_layers(model)
    )
