"""What every architecture shares: dropout over the global batch, the embedding."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.layers import BatchNormalization, Dropout, Embedding, Masking, SpatialDropout1D


class _Place(threading.local):
    """Where the examples of the current call are; each replica is traced in a thread of its own."""

    step: tf.Tensor | None = None
    positions: tf.Tensor | None = None


_PLACE = _Place()


@contextlib.contextmanager
def global_batch(step: tf.Tensor, positions: tf.Tensor) -> Iterator[None]:
    """Tell the dropout layers of a call in training where its examples are.

    Args:
        step: `[] int64`, the number of the training step.
        positions: `[examples] int32`, where the examples are in the global batch.
    """
    before = _PLACE.step, _PLACE.positions
    _PLACE.step, _PLACE.positions = step, positions
    try:
        yield
    finally:
        _PLACE.step, _PLACE.positions = before


class GlobalBatchDropout(keras.Layer):  # type: ignore[misc]  # Keras ships no types
    """Dropout whose mask depends only on (seed, step, the example's position in the global batch).

    Keras's own layer draws the same mask on every replica, and its generator's state is in no
    saved file. This one has no state, and drops the same numbers on one replica or on several.

    In a custom network it takes the place of `keras.layers.Dropout`; with `over_time` it drops
    whole channels, as `SpatialDropout1D` does, and with `over_channels` whole words. It drops in
    the training of a run alone.
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
            over_time: whether a channel drops at all times at once.
            over_channels: whether a time drops with all its channels.
            seed: given by the run, as is the size of the global batch.
            batch_size: of the global batch.
            options: of every Keras layer, such as `name`.
        """
        super().__init__(**options)
        if not 0 <= rate < 1:
            raise ValueError(f"GlobalBatchDropout: rate = {rate}: should be 0 to below 1")
        self.rate, self.over_time, self.over_channels = rate, over_time, over_channels
        self.seed, self.batch_size = seed, batch_size
        self.supports_masking = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Drop in training; `[examples, …]`, `[examples, time, channels]` over one of them."""
        if not training or self.rate == 0:
            return inputs
        step, positions = _PLACE.step, _PLACE.positions
        if step is None or positions is None or self.seed is None:
            raise RuntimeError("GlobalBatchDropout drops in the training of a run alone")
        # [batch, …] like the inputs, but one draw for all times where whole channels drop, or for
        # all channels where words do. All replicas' batches are equally long.
        rest = tuple(inputs.shape[1:])
        if self.over_time:
            rest = (1, inputs.shape[2])
        elif self.over_channels:
            rest = (tf.shape(inputs)[1], 1)
        elif None in rest:  # the time, in batches by length
            rest = tuple(tf.shape(inputs)[i] if n is None else n for i, n in enumerate(rest, 1))
        # Every replica draws the mask of the whole global batch, [batch, units], a few thousand
        # numbers, and takes its own rows.
        drawn = uniform((self.batch_size, *rest), tf.stack([self.seed, step]))
        kept = tf.gather(drawn, positions) >= self.rate
        return tf.where(kept, inputs / (1 - self.rate), tf.zeros_like(inputs))

    def get_config(self) -> dict[str, Any]:
        """What the layer is made from; the run gives the rest."""
        names = ("rate", "over_time", "over_channels")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
def uniform(shape: tuple[int | tf.Tensor, ...], seed: tf.Tensor) -> tf.Tensor:
    """Numbers from 0 up to 1 that depend only on the seed, `[2] int64`.

    Compiled in every plan: XLA draws other numbers from a seed than TensorFlow's own kernel. The
    algorithm is named because the default differs by device.
    """
    return tf.random.stateless_uniform(shape, seed, alg="philox")


class OuterEmbedding(Embedding):  # type: ignore[misc]  # Keras ships no types
    """An embedding that can be given its output, looked up by the caller."""

    gathers = False  # see `look_up_by_gather`
    _given: tf.Tensor | None = None

    @contextlib.contextmanager
    def given(self, embedded: tf.Tensor) -> Iterator[None]:
        """Have calls return `embedded`, `[examples, time, channels]`.

        Not an argument of the model's call, which would turn it into integers like its tokens.
        """
        self._given = embedded
        try:
            yield
        finally:
            self._given = None

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Look up, unless that is done; in the layer's precision."""
        if self._given is not None:
            return tf.cast(self._given, self.compute_dtype)
        return _gathered(self, inputs) if self.gathers else super().call(inputs)


def look_up_by_gather(model: keras.Model) -> None:
    """Have the embeddings of a model take their words as they are.

    Keras adds the size of the table to negative words first. TensorFlow computes that on the host,
    so on a GPU each step would bring its words back there.
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
    """Copy a model and its weights, with layers of this module for dropout and embedding."""
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
    """A seed of its own for each layer: the job's seed in the high bits, the layer in the low."""
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
    """Make all dropout of any model that of `GlobalBatchDropout`, wherever in it the layers are.

    A layer of another layer, or of a model that is a class, can't be replaced by another object:
    such a layer keeps its place and gets another way to compute.

    Returns:
        The layers whose random numbers, or averages over the batch, do depend on the replicas.
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
    """Every layer once, also those inside of others, in the order of the model."""
    return list({id(each): each for each in model._flatten_layers(include_self=False)}.values())


def _depends_on_replicas(layer: keras.Layer) -> bool:
    if isinstance(layer, BatchNormalization):
        return not layer.synchronized
    if not layer._seed_generators:
        return False
    # A cell of a recurrent layer has a generator even if it drops nothing.
    rates = [
        getattr(layer, name)
        for name in ("rate", "dropout", "recurrent_dropout")
        if isinstance(getattr(layer, name, None), int | float)
    ]
    return any(rates) or not rates


def outer_embedding(model: keras.Model) -> OuterEmbedding | None:
    """The model's embedding, if it has one, which is trained and takes the model's input."""
    found = [layer for layer in model.layers if isinstance(layer, Embedding)]
    if len(found) != 1 or not isinstance(found[0], OuterEmbedding) or not found[0].trainable:
        return None
    return found[0] if found[0].input is model.inputs[0] else None


def takes_masks(model: keras.Model) -> bool:
    """Whether a layer of the model makes a mask."""
    return any(
        isinstance(layer, Masking) or getattr(layer, "mask_zero", False)
        for layer in all_layers(model)
    )


def needs_own_replica(model: keras.Model) -> list[str]:
    """The layers that add up numbers over replicas, which TensorFlow refuses inside of a step."""
    return [
        layer.name
        for layer in all_layers(model)
        if isinstance(layer, BatchNormalization) and layer.synchronized
    ]
