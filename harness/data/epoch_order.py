"""The order of the training reviews in each epoch, and how long their batches are.

All of it is a function of the seed, the epoch and the lengths of the reviews. NumPy alone.
"""

from typing import NamedTuple

import numpy as np

MAX_PERMUTED = 5_000_000  # indices of the epochs that one dataset holds, 4 bytes each

# Of batches by length. A larger pool leaves less padding, and batches that are less random.
BATCHES_IN_POOL = 50
# Each length is about 2**(1/4) times the one below: about a tenth of such a batch is padding.
LENGTHS_PER_OCTAVE = 4
SHORTEST = 8  # tokens that a batch has room for, unless `maxlen` is less


class BatchShape(NamedTuple):
    """How reviews become batches."""

    batch_size: int  # reviews in a global batch
    maxlen: int  # tokens used of each review, its last ones, as `pad_sequences` does
    # By length: reviews of like lengths share a batch, which is only as long as they need.
    bucket: bool = False


def num_steps(num_reviews: int, batch_size: int) -> int:
    """How many global batches hold all reviews; the last one need not be full."""
    return -(-num_reviews // batch_size)


def epoch_permutation(seed: int, epoch: int, num_reviews: int) -> np.ndarray:
    """The order of the training reviews in an epoch, `[num_reviews] int64`."""
    return _generator(seed, epoch).permutation(num_reviews)


def epoch_by_length(seed: int, epoch: int, lengths: np.ndarray, *, batch_size: int) -> np.ndarray:
    """The order of an epoch whose full batches hold reviews of like lengths.

    The epoch's permutation is cut into pools, each pool is sorted by length, and the batches of
    all pools are shuffled. The reviews that fill no batch stay at the end, as they are.

    Args:
        epoch: from 0 on.
        lengths: `[num_reviews]`.
        batch_size: of a global batch.

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
    """The orders of the first of these epochs, `[n, num_reviews] int32`.

    As many as `MAX_PERMUTED` allows, but at least one.

    Args:
        epochs: from 0 on.
        lengths: `[num_reviews]`, the tokens used of each review.
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
    """The order in which reviews are evaluated, `[num_reviews] int64`; by length longest first."""
    return np.argsort(-lengths, kind="stable") if shape.bucket else np.arange(len(lengths))


def padded_lengths(maxlen: int) -> np.ndarray:
    """The lengths that batches by length may have, ascending int32; the last one is `maxlen`.

    They are few, because each is a shape to compile, and no data decide them.
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
        orders: `[num_epochs, num_reviews]`, the review at each position of each epoch.
        lengths: `[num_reviews]`, the tokens used of each review.
    """
    if not shape.bucket:
        return np.full(len(orders) * num_steps(len(lengths), shape.batch_size), shape.maxlen)
    firsts = np.arange(0, orders.shape[1], shape.batch_size)
    longest = np.maximum.reduceat(lengths[orders], firsts, axis=1)
    allowed = padded_lengths(shape.maxlen)
    return allowed[np.searchsorted(allowed, longest.ravel())]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch]))
