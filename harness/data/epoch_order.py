"""The order of the training reviews in each epoch, and the number of time steps of each batch.

The seed, the epoch, the lengths of the reviews and the `BatchShape` decide the order and the number
of time steps.
"""

from typing import NamedTuple

import numpy as np

# If all padded reviews together need at most this many bytes, they are padded in advance.
LARGEST_PADDED = 1_000_000_000
# The largest number of review indices (4 bytes each) in a tf.data dataset of more than one epoch.
MAX_PERMUTED = 5_000_000

# With data.bucket, the reviews of this many batches (a pool) are sorted by length and then cut into
# batches. The batches of a larger pool contain less padding, but are less random.
BATCHES_IN_POOL = 50
# With data.bucket, the number of allowed batch lengths between a length and its double, for example
# from 100 to 199. With four allowed lengths, about a tenth of the tokens in a batch are padding.
LENGTHS_PER_OCTAVE = 4
SHORTEST = 8  # the smallest allowed batch length, unless `maxlen` is smaller


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

    The result covers the first epochs of `epochs`: as many as fit into `MAX_PERMUTED` indices, but
    at least one.

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

    Call this function only for a job with `data.bucket`. In any other job, all batches have the
    length `maxlen`.

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
