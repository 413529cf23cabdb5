"""The order of the training reviews in each epoch, and the lengths of their batches.

Both are functions of the seed, the epoch and the lengths of the reviews.
"""

from typing import NamedTuple

import numpy as np

MAX_PERMUTED = 5_000_000  # indices of 4 bytes in one dataset, of all its epochs

# With data.bucket. A larger pool leaves less padding but makes batches less random.
BATCHES_IN_POOL = 50
# A length of batches is about 2**(1/4) times the next shorter one, for about a tenth of padding.
LENGTHS_PER_OCTAVE = 4
SHORTEST = 8  # tokens in the shortest batch, unless `maxlen` is less


class BatchShape(NamedTuple):
    """How reviews become batches."""

    batch_size: int  # reviews in a global batch
    maxlen: int  # a review keeps its last `maxlen` tokens
    bucket: bool = False  # group reviews by length, in batches of several lengths


def num_steps(num_reviews: int, batch_size: int) -> int:
    """The number of global batches for all reviews; the last batch may be smaller."""
    return -(-num_reviews // batch_size)


def epoch_permutation(seed: int, epoch: int, num_reviews: int) -> np.ndarray:
    """The order of the training reviews in an epoch, `[num_reviews] int64`."""
    return _generator(seed, epoch).permutation(num_reviews)


def epoch_by_length(seed: int, epoch: int, lengths: np.ndarray, *, batch_size: int) -> np.ndarray:
    """The order of an epoch whose batches hold reviews of similar lengths.

    The function cuts the permutation of the epoch into pools, sorts every pool by length, and
    shuffles the batches of all pools. Reviews that fill no batch stay at the end.

    Args:
        epoch: from 0.
        lengths: `[num_reviews]`.
        batch_size: reviews in a global batch.

    Returns:
        `[num_reviews] int64`.
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
    """The orders of the first epochs, as many as `MAX_PERMUTED` allows, but at least one.

    Args:
        epochs: from 0.
        lengths: `[num_reviews]`, as in `Reviews.lengths`.

    Returns:
        `[num_epochs, num_reviews] int32`.
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
    """The order of reviews in evaluation, `[num_reviews] int64`; with `bucket` longest first."""
    return np.argsort(-lengths, kind="stable") if shape.bucket else np.arange(len(lengths))


def padded_lengths(maxlen: int) -> np.ndarray:
    """The lengths of batches with `bucket`, ascending int32; the last one is `maxlen`.

    They are few, since TensorFlow compiles a graph for each, and do not depend on the data.
    """
    lengths, length = [maxlen], maxlen
    for step in range(1, 1000):
        length = int(np.ceil(maxlen / 2 ** (step / LENGTHS_PER_OCTAVE)))
        if length < SHORTEST:
            break
        lengths.append(length)
    return np.unique(lengths).astype(np.int32)


def time_steps(orders: np.ndarray, lengths: np.ndarray, shape: BatchShape) -> np.ndarray:
    """The length of each global batch, `[num_epochs * steps_per_epoch] int32`.

    Args:
        orders: `[num_epochs, num_reviews]`, the order of the reviews in each epoch.
        lengths: `[num_reviews]`, as in `Reviews.lengths`.
    """
    if not shape.bucket:
        return np.full(len(orders) * num_steps(len(lengths), shape.batch_size), shape.maxlen)
    firsts = np.arange(0, orders.shape[1], shape.batch_size)
    longest = np.maximum.reduceat(lengths[orders], firsts, axis=1)
    allowed = padded_lengths(shape.maxlen)
    return allowed[np.searchsorted(allowed, longest.ravel())]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))
