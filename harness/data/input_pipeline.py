"""Encoded reviews to batches of `[rows, maxlen] int32` for every replica, through tf.data.

Nothing here has a state: the batch of a step is a function of (order, step), and the order of an
epoch a function of (seed, epoch). A run that goes on in the middle of an epoch asks for the steps
that are left. To open a dataset takes as long as several steps, so it holds many epochs at once.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

TIMED_FETCHES = 100  # whose times tf.data keeps
ROWS_AT_ONCE = 1024  # put together: to start an operation takes as long as to do it for few
PREFETCHED = 2  # times as many rows
PLACES_AT_ONCE = 5_000_000  # of reviews in epochs that are opened together, 4 bytes each


class Batch(NamedTuple):
    """One replica's share of a global batch: `rows` is the same number on every replica.

    Where a global batch does not fill all rows, the rest stands with weight 0, so that no shape
    ever changes: a new shape would mean a new trace, and a replica without rows would hang.
    """

    tokens: tf.Tensor  # [rows, maxlen] int32, zeros first
    labels: tf.Tensor  # [rows] float32
    weights: tf.Tensor  # [rows] float32, 1 for a review, 0 for a filler
    rows: tf.Tensor  # [rows] int32, places in the global batch
    count: tf.Tensor  # [] float32, reviews in the global batch, of all replicas
    step: tf.Tensor  # [] int64, the number that the dropout masks are drawn for


def in_parts(batch: Batch, num_rows: int, rows_a_part: int) -> list[Batch]:
    """A batch of so many rows as several, in order; `count` stays the global batch's.

    Under several workers TensorFlow does not know the number of rows while it traces.
    """
    cuts = range(0, num_rows, rows_a_part)
    if len(cuts) == 1:
        return [batch]

    def part(at: int) -> Batch:
        rows = slice(at, at + rows_a_part)
        return Batch(
            tokens=batch.tokens[rows],
            labels=batch.labels[rows],
            weights=batch.weights[rows],
            rows=batch.rows[rows],
            count=batch.count,
            step=batch.step,
        )

    return [part(at) for at in cuts]


class Reviews(NamedTuple):
    """Encoded reviews, flat: review i is `tokens[offsets[i]:offsets[i + 1]]`."""

    tokens: np.ndarray  # [num_tokens] int32
    offsets: np.ndarray  # [num_reviews + 1] int64
    labels: np.ndarray  # [num_reviews] int32

    def between(self, first: int, last: int) -> "Reviews":
        """The reviews from `first` up to `last`, without a copy of their tokens."""
        return Reviews(self.tokens, self.offsets[first : last + 1], self.labels[first:last])


def epoch_order(seed: int, epoch: int, num_reviews: int) -> np.ndarray:
    """The order of the training reviews in an epoch, `[num_reviews] int64`."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_reviews)


def orders_ahead(seed: int, epochs: range, num_reviews: int) -> np.ndarray:
    """The orders of the first of these epochs, `[n, num_reviews] int32`, one at least.

    As many as `PLACES_AT_ONCE` allows.
    """
    num = min(len(epochs), PLACES_AT_ONCE // num_reviews)
    chosen = [epochs.start, *epochs[1:num]]
    return np.stack([epoch_order(seed, epoch, num_reviews) for epoch in chosen]).astype(np.int32)


def num_steps(num_reviews: int, batch_size: int) -> int:
    """How many global batches hold all reviews, the last one perhaps not full."""
    return -(-num_reviews // batch_size)


def batches(
    strategy: tf.distribute.Strategy,
    reviews: Reviews,
    orders: np.ndarray,
    *,
    batch_size: int,
    maxlen: int,
    first_step: int = 0,
    steps_before: int = 0,
    timed: bool = False,
) -> tf.distribute.DistributedDataset:
    """The batches of some passes from `first_step` on, one `Batch` for each replica and step.

    Args:
        strategy: whose replicas share each global batch, in the order of their numbers.
        reviews: the encoded reviews.
        orders: `[num_passes, num_reviews]`, which review stands where in each pass.
        batch_size: reviews in a global batch.
        maxlen: tokens kept of each review, its last ones, as `pad_sequences` does.
        first_step: the step of the first pass to start at.
        steps_before: the steps of all passes before, so that `Batch.step` counts through.
        timed: whether `waited_s` will be asked for.
    """
    num_passes, num_reviews = orders.shape
    steps_a_pass = num_steps(num_reviews, batch_size)

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        num_replicas = context.num_replicas_in_sync
        num_local = num_replicas // context.num_input_pipelines
        num_rows = -(-batch_size // num_replicas)
        # As tensors they are captured once; as arrays they would be written into the graph. On
        # the CPU, where tf.data works: by default they would lie on a GPU.
        with tf.device("/cpu:0"):
            # Padded once, not a batch at a time: then a batch is whole rows to copy. The last row
            # is empty, for the fillers.
            padded = tf.constant(_padded(reviews, maxlen))
            labels = tf.constant(reviews.labels.astype(np.float32))
            chosen_in_turn = tf.constant(orders.ravel())

        @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
        def shares(k: tf.Tensor) -> Batch:  # of some replicas and steps, each field [num, …]
            step, local = k[:, None] // num_local, k[:, None] % num_local
            place_in_pass = step % steps_a_pass * batch_size
            left = num_reviews - place_in_pass
            replica = context.input_pipeline_id * num_local + local
            rows = replica * num_rows + tf.range(num_rows, dtype=tf.int64)
            place = place_in_pass + rows
            real = (rows < batch_size) & (place < num_reviews)
            turn = step // steps_a_pass * num_reviews + tf.minimum(place, num_reviews - 1)
            chosen = tf.gather(chosen_in_turn, turn)
            return Batch(
                tokens=tf.gather(padded, tf.where(real, chosen, num_reviews)),
                labels=tf.gather(labels, chosen),
                weights=tf.cast(real, tf.float32),
                rows=tf.cast(tf.minimum(rows, batch_size - 1), tf.int32),
                count=tf.cast(tf.minimum(left, batch_size), tf.float32)[:, 0],
                step=(steps_before + step)[:, 0],
            )

        options = tf.data.Options()
        # Off, for the thread that it starts may not notice its end before its next turn, seconds
        # later; but it is the one that notes the times of fetches.
        options.autotune.enabled = timed
        last_step = num_passes * steps_a_pass
        return (
            tf.data.Dataset.range(first_step * num_local, last_step * num_local)
            .batch(-(-ROWS_AT_ONCE // num_rows))
            # Not in parallel: with deterministic operations TensorFlow undoes that, and says so.
            .map(shares)
            # Before they are taken apart: one hand-over between threads for all of them.
            .prefetch(PREFETCHED)
            .unbatch()
            .with_options(options)
        )

    # Not `experimental_distribute_dataset`: it would split the rows in its own way, and under
    # several workers read the whole set once a worker.
    return strategy.distribute_datasets_from_function(dataset)


def _padded(reviews: Reviews, maxlen: int) -> np.ndarray:
    """`[num_reviews + 1, maxlen] int32`: the reviews as `pad_sequences` has them, then an empty."""
    rows = np.zeros((len(reviews.labels) + 1, maxlen), np.int32)
    ends = reviews.offsets.tolist()
    for row, first, end in zip(rows, ends, ends[1:], strict=False):
        if kept := min(end - first, maxlen):
            row[-kept:] = reviews.tokens[end - kept : end]
    return rows


def waited_s(iterator: Iterator[Batch], num_steps: int, took_s: float) -> float | None:
    """The seconds that the last steps waited for their batches, None where it is not known.

    tf.data notes, for its own tuning, the microseconds from giving a batch to being asked for the
    next, of the latest ones. What a step takes beyond that it waits. (`tf.timestamp` in the graph
    would tell as much, but is refused where operations are deterministic.) On a GPU the wait is the
    host's: as long as the GPU has work queued it loses nothing, so this is the most it can be.

    Args:
        iterator: over `batches`, from which the steps took theirs.
        num_steps: how many.
        took_s: how long they took together.
    """
    gaps = []
    for each in _local_iterators(iterator):
        try:
            latest = tf.data.experimental.get_model_proto(each).gap_times[-num_steps:]
        except tf.errors.OpError:  # nothing was asked of it yet
            return None
        if len(latest) < min(num_steps, TIMED_FETCHES):  # its first batch has no time before it
            return None
        gaps.append(sum(latest) / len(latest) / 1e6)
    # The replica that waits the longest holds up the others.
    return max(0.0, took_s - num_steps * min(gaps)) if gaps else None


def _local_iterators(iterator: Any) -> list[Any]:
    """tf.data's own iterators below one; a distributed one has no public way to them."""
    if isinstance(iterator, tf.data.Iterator):
        return [iterator]
    workers = [each._iterator for each in getattr(iterator, "_iterators", [])]
    return [
        device for worker in workers for device in getattr(worker, "_device_iterators", [worker])
    ]
