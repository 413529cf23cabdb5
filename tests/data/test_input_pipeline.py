"""Batches depend on seed, epoch and step alone."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import tensorflow as tf

from harness.data import input_pipeline as pipeline
from harness.data.input_pipeline import (
    Batch,
    BatchShape,
    Reviews,
    batches,
    epoch_permutation,
    num_steps,
    permutations_ahead,
)
from harness.data.vocabulary import START

LENGTHS = [3, 9, 1, 5, 5, 2, 7, 4, 6, 8, 3]


def make_reviews() -> Reviews:
    """Return reviews of several lengths; no two tokens are equal."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return Reviews(
        np.arange(1, offsets[-1] + 1, dtype=np.int32),
        offsets.astype(np.int64),
        (np.arange(len(LENGTHS)) % 2).astype(np.int32),
    )


def collect(order: np.ndarray, reviews: Reviews | None = None, **settings: int) -> list[Batch]:
    """Return all batches of one or more epochs as arrays."""
    strategy = tf.distribute.get_strategy()
    first, before = settings.pop("first_step", 0), settings.pop("steps_before", 0)
    sizes = {"batch_size": 4, "maxlen": 5} | settings
    shape = BatchShape(sizes["batch_size"], sizes["maxlen"], bool(sizes.get("bucket")))
    orders, given = np.atleast_2d(order), reviews or make_reviews()
    made = batches(strategy, given, orders, shape=shape, first_step=first, steps_before=before)
    num = len(orders) * num_steps(orders.shape[1], shape.batch_size) - first
    return [Batch(*(np.asarray(part) for part in batch)) for batch in islice(made, num)]


@pytest.mark.parametrize("bucket", [0, 1])
@pytest.mark.parametrize("maxlen", [1, 5, 30])
def test_rows_are_padded_and_batches_filled(maxlen: int, bucket: int) -> None:
    """As in Keras's pad_sequences, zeros come first and a long review keeps its last words.

    By length, zeros come last and batches are short. Rows of weight 0 with only START fill the last
    batch, because cuDNN needs a token in every example; `count` is the number of reviews.
    """
    from keras.utils import pad_sequences

    whole = make_reviews()
    rows = [whole.tokens[a:b].tolist() for a, b in pairwise(whole.offsets)][1:10] + [[START]] * 3
    made = collect(np.arange(9), whole.between(1, 10), maxlen=maxlen, bucket=bucket)
    lengths = {1: [1, 1, 1], 5: [5, 5, 5], 30: [9, 8, 8] if bucket else [30, 30, 30]}[maxlen]
    padding = "post" if bucket else "pre"
    for batch, first, length in zip(made, (0, 4, 8), lengths, strict=True):
        assert batch.tokens.dtype == np.int32
        padded = pad_sequences(rows[first : first + 4], maxlen=length, padding=padding)
        np.testing.assert_array_equal(batch.tokens, padded)
    assert [batch.weights.tolist() for batch in made] == [[1] * 4, [1] * 4, [1, 0, 0, 0]]
    assert [float(batch.count) for batch in made] == [4, 4, 1]
    assert [int(batch.step) for batch in made] == [0, 1, 2]


@pytest.mark.parametrize("bucket", [False, True])
def test_a_large_set_is_padded_batch_by_batch(
    monkeypatch: pytest.MonkeyPatch, bucket: bool
) -> None:
    """Reviews padded in advance and reviews padded per batch give equal batches on two replicas."""
    strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])
    reviews, shape = make_reviews(), BatchShape(4, 5, bucket)
    orders = permutations_ahead(7, range(2), reviews.lengths(5), shape=shape)

    def all_batches() -> list[Batch]:
        made = batches(strategy, reviews, orders, shape=shape, first_step=1)
        local = [strategy.experimental_local_results(batch) for batch in islice(made, 5)]
        return [Batch(*map(np.asarray, one)) for parts in local for one in parts]

    usual = all_batches()
    assert [*usual[0].positions, *usual[1].positions] == [0, 1, 2, 3]
    monkeypatch.setattr(pipeline, "LARGEST_PADDED", 100)
    for one, other in zip(usual, all_batches(), strict=True):
        for field, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, wanted)


@pytest.mark.parametrize("bucket", [0, 1])
def test_one_dataset_of_several_epochs_has_their_steps(bucket: int) -> None:
    """The dataset may begin at any step of the first epoch."""
    permutations = np.stack([epoch_permutation(7, epoch, len(LENGTHS)) for epoch in (2, 3, 4)])
    single = [
        batch
        for index, order in enumerate(permutations)
        for batch in collect(order, maxlen=30, bucket=bucket, steps_before=6 + 3 * index)
    ]
    together = collect(permutations, maxlen=30, bucket=bucket, first_step=2, steps_before=6)
    assert len(together) == len(single) - 2
    for a, b in zip(single[2:], together, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("bucket", [0, 1])
def test_batches_have_the_ratios_of_their_words(bucket: int) -> None:
    """The ratios of padding are zeros."""
    whole = make_reviews()
    ratios = np.stack([whole.tokens, -whole.tokens], axis=1).astype(np.float32)
    reviews = replace(whole, ratios=ratios).between(3, 8)
    made = collect(np.arange(5), reviews, maxlen=6, bucket=bucket)
    for batch in made:
        tokens = batch.tokens * batch.weights[:, None]
        np.testing.assert_array_equal(batch.ratios, np.stack([tokens, -tokens], axis=2))
        assert tokens.any()
