"""Turns reviews into a batch for every replica and training step, with tf.data.

A batch depends only on its step and on its epoch's permutation of the reviews. The seed, the epoch,
the lengths of the reviews and the `BatchShape` determine the permutation. A checkpoint contains no
state of the pipeline, because a resumed run can start the pipeline at any step. Opening a tf.data
dataset takes as long as several training steps, so one dataset contains many epochs.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import tensorflow as tf

from harness.data.dataset import LARGEST_PADDED, Dataset, Split
from harness.data.ngrams import NgramRatios, fit_ratios
from harness.data.vocabulary import SHIFT, START, encode_split
from harness.job.keys import Job

# TensorFlow gathers this many examples in one call, because starting a call takes as long as
# gathering a few examples.
EXAMPLES_AT_ONCE = 1024
PREFETCHED = 2  # the number of prefetched groups of EXAMPLES_AT_ONCE examples
PREFETCHED_BY_LENGTH = 8  # with data.bucket: the number of prefetched batches
# The largest number of review indices (4 bytes each) in a tf.data dataset of more than one epoch.
MAX_PERMUTED = 5_000_000

# With data.bucket, the reviews of this many batches (a pool) are sorted by length and then cut into
# batches. The batches of a larger pool contain less padding, but are less random.
BATCHES_IN_POOL = 50
# With data.bucket, the number of allowed batch lengths between a length and its double, for example
# from 100 to 199. With four allowed lengths, about a tenth of the tokens in a batch are padding.
LENGTHS_PER_OCTAVE = 4
SHORTEST = 8  # the smallest allowed batch length, unless `maxlen` is smaller


# The order of the reviews


class BatchShape(NamedTuple):
    """The settings that decide how reviews become batches."""

    batch_size: int  # the number of reviews in a global batch
    maxlen: int  # longer reviews are cut to their last `maxlen` tokens
    bucket: bool = False  # whether the reviews of a batch have similar lengths


def num_steps(num_reviews: int, batch_size: int) -> int:
    """Return the number of global batches in an epoch; the last batch may be smaller."""
    return -(-num_reviews // batch_size)


def epoch_permutation(seed: int, epoch: int, num_reviews: int) -> np.ndarray:
    """Return the order of the training reviews in an epoch, `[num_reviews] int64`."""
    return _generator(seed, epoch).permutation(num_reviews)


def epoch_by_length(seed: int, epoch: int, lengths: np.ndarray, *, batch_size: int) -> np.ndarray:
    """Return the order of the reviews in an epoch whose batches contain reviews of similar length.

    The function cuts the permutation of the epoch into pools of several batches, sorts the reviews
    of each pool by length, cuts the pools into batches, and shuffles the batches of all pools
    together. An incomplete batch stays at the end.

    Args:
        epoch: the index of the epoch, counted from 0.
        lengths: the length of each review, `[num_reviews]`.
        batch_size: the number of reviews in a global batch.

    Returns:
        Indices of reviews, `[num_reviews] int64`.
    """
    generator = _generator(seed, epoch)
    permuted = generator.permutation(len(lengths))
    num_full = len(lengths) // batch_size * batch_size
    pools = np.split(permuted[:num_full], range(0, num_full, BATCHES_IN_POOL * batch_size)[1:])
    ordered = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
    shuffled = generator.permutation(np.concatenate(ordered).reshape(-1, batch_size))
    return np.concatenate([shuffled.ravel(), permuted[num_full:]])


def permutations_ahead(
    seed: int, epochs: range, lengths: np.ndarray, *, shape: BatchShape
) -> np.ndarray:
    """Return the order of the reviews in the next epochs.

    The result covers the first epoch of `epochs`, and as many of the next epochs as fit into
    `MAX_PERMUTED` indices.

    Args:
        epochs: the indices of the remaining epochs; the first epoch of a run has index 0.
        lengths: the result of `Reviews.lengths`, `[num_reviews]`.

    Returns:
        Indices of reviews, `[num_epochs, num_reviews] int32`.
    """
    num = min(len(epochs), MAX_PERMUTED // len(lengths))
    chosen = [epochs.start, *epochs[1:num]]
    if shape.bucket:
        orders = [
            epoch_by_length(seed, epoch, lengths, batch_size=shape.batch_size) for epoch in chosen
        ]
    else:
        orders = [epoch_permutation(seed, epoch, len(lengths)) for epoch in chosen]
    return np.stack(orders).astype(np.int32)


def evaluation_order(lengths: np.ndarray, shape: BatchShape) -> np.ndarray:
    """Return the order of reviews in evaluation, `[num_reviews]`; with `bucket`, longest first."""
    return np.argsort(-lengths, kind="stable") if shape.bucket else np.arange(len(lengths))


def padded_lengths(maxlen: int) -> np.ndarray:
    """Return the batch lengths that `bucket` allows, in ascending order; the last is `maxlen`.

    Only a few lengths are allowed, because TensorFlow compiles a graph for each length. The lengths
    do not depend on the data.
    """
    octaves = np.arange(LENGTHS_PER_OCTAVE * maxlen.bit_length()) / LENGTHS_PER_OCTAVE
    lengths = np.ceil(maxlen / 2**octaves)
    return np.unique(lengths[lengths >= min(SHORTEST, maxlen)]).astype(np.int32)


def time_steps(orders: np.ndarray, lengths: np.ndarray, shape: BatchShape) -> np.ndarray:
    """Return the padded length of each global batch, `[num_epochs * steps_per_epoch] int32`.

    Call this function only for a job with `data.bucket`. In a job without `data.bucket`, all
    batches have the length `maxlen`.

    Args:
        orders: the order of the reviews in each epoch, `[num_epochs, num_reviews]`.
        lengths: the result of `Reviews.lengths`, `[num_reviews]`.
    """
    firsts = np.arange(0, orders.shape[1], shape.batch_size)
    longest = np.maximum.reduceat(lengths[orders], firsts, axis=1)
    allowed = padded_lengths(shape.maxlen)
    return allowed[np.searchsorted(allowed, longest.ravel())]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))


# Batches


class Batch(NamedTuple):
    """One replica's part of a global batch, with the same number of examples on every replica.

    Empty reviews of weight 0 fill up the last batch of an epoch: for a smaller batch TensorFlow
    would trace the graph again, and a replica without examples would hang.

    The length `time` of a row is the job's `maxlen`, or with `data.bucket` one of `padded_lengths`.
    """

    # [examples, time] int32; the padding is at the start of each row or, if data.bucket is set, at
    # the end.
    tokens: tf.Tensor
    labels: tf.Tensor  # [examples] float32, the label of the class: 0, 1, …
    weights: tf.Tensor  # [examples] float32, 1 for a review, 0 for an empty review
    positions: tf.Tensor  # [examples] int32, the position of each example in the global batch
    count: tf.Tensor  # [] float32, the number of reviews in the global batch
    step: tf.Tensor  # [] int64, the run's step, from which the dropout masks are computed
    ratios: tf.Tensor | tuple[()] = ()  # [examples, time, channels] float32; () without ratios

    @property
    def inputs(self) -> tf.Tensor | list[tf.Tensor]:
        """The input of the network: the tokens, or the tokens and their n-gram ratios."""
        return self.tokens if isinstance(self.ratios, tuple) else [self.tokens, self.ratios]


# The fields of `Batch` that contain a row for each example.
PER_EXAMPLE = ("tokens", "labels", "weights", "positions", "ratios")


def in_parts(batch: Batch, num_examples: int, examples_per_part: int) -> list[Batch]:
    """Split a batch into parts of up to `examples_per_part` examples.

    In every part, `count` is still the number of reviews in the whole global batch.

    Args:
        num_examples: the number of examples in the batch. With several workers, TensorFlow does not
            know the length of the batch while it traces the graph.
    """
    if num_examples <= examples_per_part:
        return [batch]
    parts = []
    for start in range(0, num_examples, examples_per_part):
        examples = slice(start, start + examples_per_part)
        parts.append(
            batch._replace(**{name: getattr(batch, name)[examples] for name in PER_EXAMPLE})
        )
    return parts


@dataclass(frozen=True)
class Reviews(Split):
    """Reviews whose tokens are the word indices that `encode_split` returns."""

    ratios: np.ndarray | None = None  # [num_tokens, channels] float32, see `NgramRatios`

    def between(self, first: int, end: int) -> Self:
        """Return the reviews from index `first` to index `end - 1`."""
        tokens = slice(self.offsets[first], self.offsets[end])
        ratios = None if self.ratios is None else self.ratios[tokens]
        return replace(super().between(first, end), ratios=ratios)

    def words(self) -> Split:
        """Return the reviews as ranks of words; START and unknown words get negative ranks."""
        return Split(self.tokens - SHIFT, self.offsets, self.labels)

    def lengths(self, maxlen: int) -> np.ndarray:
        """Return the number of tokens in each review, at most `maxlen`, `[num_reviews] int64`."""
        lengths: np.ndarray = np.minimum(np.diff(self.offsets), maxlen)
        return lengths


def batches(
    strategy: tf.distribute.Strategy,
    reviews: Reviews,
    permutations: np.ndarray,
    *,
    shape: BatchShape,
    first_step: int = 0,
    steps_before: int = 0,
) -> tf.distribute.DistributedDataset:
    """Return a `Batch` for each replica and step of the epochs in `permutations`.

    The batches are repeated without end.

    Args:
        strategy: the strategy whose replicas share a global batch; replica 0 gets the first part.
        permutations: the order of the reviews in each epoch, `[num_epochs, num_reviews]`.
        first_step: the step of the first batch, counted from the start of the permutations.
        steps_before: the number of steps that the run takes before the first epoch in
            `permutations`. `Batch.step` counts these steps too.
    """
    batch_size = shape.batch_size
    num_epochs, num_reviews = permutations.shape
    steps_per_epoch = num_steps(num_reviews, batch_size)

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        num_replicas = context.num_replicas_in_sync
        num_local = num_replicas // context.num_input_pipelines
        num_examples = -(-batch_size // num_replicas)  # per replica
        source = BatchSource(reviews, permutations, shape)
        at_once = 1 if shape.bucket else -(-EXAMPLES_AT_ONCE // num_examples)

        @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
        def per_replica_batches(k: tf.Tensor) -> Batch:
            # k, [num]: the index of each batch among this worker's batches. k is
            # step * num_local + local, where `local` is the replica's index among this worker's
            # replicas.
            step, local = k[:, None] // num_local, k[:, None] % num_local
            replica = context.input_pipeline_id * num_local + local
            position = replica * num_examples + tf.range(num_examples, dtype=tf.int64)
            return source.batches(step, position, steps_before)

        options = tf.data.Options()
        # Switch off the tuning: its thread may take seconds to stop, and nothing here can be tuned.
        options.autotune.enabled = False
        last_step = num_epochs * steps_per_epoch
        return (
            tf.data.Dataset.range(first_step * num_local, last_step * num_local)
            .repeat()
            .batch(at_once)
            # Parallel calls are not requested: with deterministic operations, TensorFlow would
            # print a warning and make the calls one after another.
            .map(per_replica_batches)
            # Prefetch before `unbatch`, so that threads exchange many batches at once.
            .prefetch(PREFETCHED_BY_LENGTH if shape.bucket else PREFETCHED)
            .unbatch()
            .with_options(options)
        )

    # `experimental_distribute_dataset` is not used: it splits the examples in another way, and
    # makes every worker read all reviews. The batches stay in the host's memory: TensorFlow
    # computes with integers on the CPU, so it would copy tokens on a GPU back in every step.
    on_host = tf.distribute.InputOptions(experimental_fetch_to_device=False)
    return strategy.distribute_datasets_from_function(dataset, on_host)


def batches_of_few(reviews: Reviews, order: np.ndarray, shape: BatchShape) -> Iterator[Batch]:
    """Yield the batches of a single replica as `batches` does, but without tf.data.

    To open a tf.data pipeline takes longer than to classify a few texts.
    """
    source = BatchSource(reviews, order[None], shape)
    position = tf.range(shape.batch_size, dtype=tf.int64)[None]
    for step in itertools.cycle(range(num_steps(len(reviews), shape.batch_size))):
        batch = source.batches(tf.constant([[step]], tf.int64), position, 0)
        yield tf.nest.map_structure(lambda field: field[0], batch)


class BatchSource:
    """The data for all batches, as tensors on the CPU."""

    def __init__(self, reviews: Reviews, permutations: np.ndarray, shape: BatchShape) -> None:
        """Copy the NumPy arrays into tensors.

        TensorFlow copies a NumPy array, but not a tensor, into each graph that uses it.

        An empty review contains the token START, because cuDNN does not accept an empty row, and a
        network's mean over the words of an empty row is not finite. After the tokens of all
        reviews, the tensor `tokens` contains a padding token and START. The review with the
        index `num_reviews` is the empty review, whose only token is START.
        """
        self.shape, self.num_reviews = shape, len(reviews)
        self.num_tokens = int(reviews.offsets[-1])
        empty, ends = self.num_tokens + 1, reviews.offsets[1:]
        lengths = reviews.lengths(shape.maxlen)
        self.times = self.ratios = self.rows = None
        with tf.device("/cpu:0"):
            self.tokens = tf.constant(np.append(reviews.tokens, [0, START]).astype(np.int32))
            self.starts = tf.constant(np.append(ends - lengths, empty))
            self.ends = tf.constant(np.append(ends, empty + 1))
            self.labels = tf.constant(reviews.labels.astype(np.float32))
            self.permuted = tf.constant(permutations.ravel())
            if reviews.ratios is not None:
                self.ratios = tf.constant(np.pad(reviews.ratios, ((0, 2), (0, 0))))
            if shape.bucket:
                self.times = tf.constant(time_steps(permutations, lengths, shape))
            if (num_rows := len(reviews) + 1) * shape.maxlen * 4 <= LARGEST_PADDED:
                # Pad all reviews in advance: copying rows takes a fifth of the time of padding.
                parts = np.array_split(np.arange(num_rows), -(-num_rows // EXAMPLES_AT_ONCE))
                rows = [tf.gather(self.tokens, self.places(part)) for part in parts]
                self.rows = tf.concat(rows, axis=0)
                del self.tokens

    def padded(
        self, rows: tf.Tensor, time: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | tuple[()]]:
        """Return the tokens of reviews, `[…, time] int32`, and their n-gram ratios, as in `Batch`.

        Without `data.bucket`, each row consists of zeros and then the last tokens of a review, as
        in Keras's `pad_sequences`. With `data.bucket`, each row consists of the last tokens of a
        review and then zeros.

        Args:
            rows: indices of reviews, `[…]`; the index `num_reviews` means an empty review.
            time: the length of the returned rows, by default `maxlen`. With `data.bucket` a smaller
                length is allowed, if no review in `rows` is longer.
        """
        at = self.places(rows)[..., :time]
        ratios = () if self.ratios is None else tf.gather(self.ratios, at)
        if self.rows is None:
            return tf.gather(self.tokens, at), ratios
        return tf.gather(self.rows, rows)[..., :time], ratios

    def places(self, rows: tf.Tensor) -> tf.Tensor:
        """Return the indices in `tokens` of each review's tokens; the shape is `[…, maxlen]`.

        Args:
            rows: the indices of the reviews, `[…]`.
        """
        starts, ends = (tf.gather(each, rows)[..., None] for each in (self.starts, self.ends))
        places = tf.range(self.shape.maxlen, dtype=tf.int64)
        at = (starts if self.shape.bucket else ends - self.shape.maxlen) + places
        return tf.where((at >= starts) & (at < ends), at, self.num_tokens)

    def batches(self, step: tf.Tensor, position: tf.Tensor, before: int) -> Batch:
        """Return `num` batches as one `Batch` whose fields have the shape `[num, …]`.

        Args:
            step: the step of each batch, `[num, 1] int64`.
            position: the positions of the examples in the global batch, `[num, examples] int64`.
            before: the number of steps that the run takes before the first epoch in `permutations`.
        """
        batch_size = self.shape.batch_size
        steps_per_epoch = num_steps(self.num_reviews, batch_size)
        first_in_epoch = step % steps_per_epoch * batch_size
        left = self.num_reviews - first_in_epoch
        in_epoch = first_in_epoch + position
        real = (position < batch_size) & (in_epoch < self.num_reviews)
        in_epoch = tf.minimum(in_epoch, self.num_reviews - 1)
        chosen = tf.gather(self.permuted, step // steps_per_epoch * self.num_reviews + in_epoch)
        # With data.bucket, `num` is 1, because batches differ in length.
        time = None if self.times is None else self.times[step[0, 0]]
        rows = tf.where(real, chosen, self.num_reviews)
        tokens, ratios = self.padded(rows, time)
        return Batch(
            tokens=tokens,
            labels=tf.gather(self.labels, chosen),
            weights=tf.cast(real, tf.float32),
            positions=tf.cast(tf.minimum(position, batch_size - 1), tf.int32),
            count=tf.cast(tf.minimum(left, batch_size), tf.float32)[:, 0],
            step=(before + step)[:, 0],
            ratios=ratios,
        )


# The reviews of a job


def training_reviews(job: Job, dataset: Dataset) -> tuple[Reviews, Reviews, NgramRatios | None]:
    """Return a job's training reviews, validation reviews and n-gram ratios (None if not used)."""
    train, cut = dataset.used(job.data.limit, job.data.validation_split)
    train_set = _encoded(train, job)
    ratios = None
    if job.model.ngram_ratios:
        ratios, at_words = fit_ratios(
            train_set.between(0, cut).words(), job.model.ngram_ratios, len(dataset.classes)
        )
        others = ratios.at_words(train_set.between(cut, len(train_set.labels)).words())
        train_set = replace(train_set, ratios=np.concatenate([at_words, others]))
    training = train_set.between(0, cut)
    validation = train_set.between(cut, len(train_set.labels))
    return training, validation, ratios


def test_reviews(job: Job, dataset: Dataset, ratios: NgramRatios | None) -> Reviews:
    """Return the test reviews; `ratios` are the n-gram ratios that `training_reviews` returned."""
    test = dataset.test.take(job.data.limit) if job.data.limit else dataset.test
    reviews = _encoded(test, job)
    return replace(reviews, ratios=ratios.at_words(reviews.words())) if ratios else reviews


def _encoded(split: Split, job: Job) -> Reviews:
    return Reviews(*encode_split(split, job.data.vocab_size), split.labels)
