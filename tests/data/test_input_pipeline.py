"""Batches: what is in them, and that they depend on nothing but seed, epoch and step."""

import time
from itertools import pairwise

import numpy as np
import pytest
import tensorflow as tf

from harness.data import input_pipeline as pipeline
from harness.data.dataset import Split
from harness.data.epoch_order import BatchShape, epoch_permutation, permutations_ahead
from harness.data.input_pipeline import Batch, Reviews, Start, batches, waited_s
from harness.data.vocabulary import encode_split

LENGTHS = [3, 9, 1, 5, 5, 2, 7, 4, 6, 8, 3]


def make_reviews() -> Reviews:
    """A handful of reviews of unequal lengths, every token another number."""
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    return Reviews(
        np.arange(1, offsets[-1] + 1, dtype=np.int32),
        offsets.astype(np.int64),
        (np.arange(len(LENGTHS)) % 2).astype(np.int32),
    )


def collect(order: np.ndarray, reviews: Reviews | None = None, **settings: int) -> list[Batch]:
    """All batches of one or more epochs, as arrays."""
    strategy = tf.distribute.get_strategy()
    start = Start(settings.pop("first_step", 0), settings.pop("steps_before", 0))
    sizes = {"batch_size": 4, "maxlen": 5} | settings
    shape = BatchShape(sizes["batch_size"], sizes["maxlen"], bool(sizes.get("bucket")))
    orders, given = np.atleast_2d(order), reviews or make_reviews()
    made = batches(strategy, given, orders, shape=shape, start=start)
    return [Batch(*(np.asarray(part) for part in batch)) for batch in made]


@pytest.mark.parametrize(("first", "last"), [(0, len(LENGTHS)), (3, 8)])
@pytest.mark.parametrize("maxlen", [1, 5, 12])
def test_padding_is_kerass_own(first: int, last: int, maxlen: int) -> None:
    """Examples are padded as by Keras's pad_sequences: zeros first, the last words kept, int32."""
    from keras.utils import pad_sequences

    reviews = make_reviews().between(first, last)
    ragged = [
        reviews.tokens[a:b] for a, b in zip(reviews.offsets, reviews.offsets[1:], strict=False)
    ]
    made = collect(np.arange(last - first), reviews, maxlen=maxlen)
    tokens = np.concatenate([batch.tokens[batch.weights > 0] for batch in made])
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, pad_sequences(ragged, maxlen=maxlen))


@pytest.mark.parametrize("maxlen", [1, 5, 12])
def test_ranks_are_encoded_as_they_are_padded(maxlen: int) -> None:
    """A start, then each rank + 3 or the unknown word, as the whole split is encoded at once."""
    from keras.utils import pad_sequences

    ranks = make_reviews()._replace(vocab_size=30)
    tokens, offsets = encode_split(Split(*ranks[:3]), 30)
    ragged = [tokens[a:b] for a, b in pairwise(offsets)]
    assert {1, 2} < {*tokens.tolist()}
    rows = ranks.padded(np.arange(len(LENGTHS) + 1), BatchShape(4, maxlen))
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, pad_sequences([*ragged, []], maxlen=maxlen))


@pytest.mark.parametrize(("num_replicas", "bucket"), [(1, False), (2, False), (2, True)])
def test_a_set_that_is_too_large_is_padded_as_it_comes(
    monkeypatch: pytest.MonkeyPatch, num_replicas: int, bucket: bool
) -> None:
    """The batches are the same, on several replicas too, and no copy of the set is made."""
    cpus = [f"cpu:{i}" for i in range(num_replicas)]
    strategy = tf.distribute.MirroredStrategy(cpus)
    reviews, shape = make_reviews()._replace(vocab_size=30), BatchShape(4, 5, bucket)
    orders = permutations_ahead(7, range(2), reviews.lengths(5), shape=shape)

    def all_batches() -> list[Batch]:
        made = batches(strategy, reviews, orders, shape=shape, start=Start(1))
        local = [strategy.experimental_local_results(batch) for batch in made]
        return [Batch(*map(np.asarray, one)) for parts in local for one in parts]

    calls: list[object] = []

    def call(*args: object) -> tf.Tensor:
        calls.append(args)
        return numpy_function(*args)

    numpy_function = tf.numpy_function
    monkeypatch.setattr(tf, "numpy_function", call)
    usual = all_batches()
    assert calls == []
    monkeypatch.setattr(pipeline, "LARGEST_PADDED", 100)
    for one, other in zip(usual, all_batches(), strict=True):
        for field, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(field, wanted)
    assert calls


def test_every_batch_has_one_shape_and_the_true_count() -> None:
    """The last batch is padded with examples of weight 0, and says how many are real."""
    made = collect(np.arange(len(LENGTHS)))
    assert [batch.tokens.shape for batch in made] == [(4, 5)] * 3
    assert [float(batch.count) for batch in made] == [4, 4, 3]
    assert made[-1].weights.tolist() == [1, 1, 1, 0]
    assert made[-1].tokens[-1].tolist() == [0] * 5
    assert [int(batch.step) for batch in made] == [0, 1, 2]


def test_an_epoch_can_be_entered_at_any_step() -> None:
    """The steps from the second on are the same whether or not the first was taken."""
    order = epoch_permutation(7, 2, len(LENGTHS))
    whole = collect(order, steps_before=6)
    rest = collect(order, first_step=1, steps_before=6)
    assert len(rest) == len(whole) - 1
    for a, b in zip(whole[1:], rest, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)
    assert [int(batch.step) for batch in rest] == [7, 8]


def test_epochs_that_are_opened_together_are_those_opened_one_by_one() -> None:
    """Each with its own last batch, entered at any step of the first one."""
    num = len(LENGTHS)
    permutations = permutations_ahead(7, range(2, 5), np.array(LENGTHS), shape=BatchShape(4, 5))
    expected = [epoch_permutation(7, epoch, num) for epoch in (2, 3, 4)]
    np.testing.assert_array_equal(permutations, expected)
    single = [
        batch
        for index, order in enumerate(permutations)
        for batch in collect(order, steps_before=6 + 3 * index)
    ]
    together = collect(permutations, first_step=2, steps_before=6)
    assert len(together) == len(single) - 2
    for a, b in zip(single[2:], together, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("maxlen", [1, 5, 30])
def test_by_length_padding_comes_last_and_a_batch_is_no_longer_than_it_must(maxlen: int) -> None:
    """The last words are kept as ever; a padding example has one token, for cuDNN's sake."""
    reviews = make_reviews()
    made = collect(np.arange(len(LENGTHS)), maxlen=maxlen, bucket=1)
    longest = {1: [1, 1, 1], 5: [5, 5, 5], 30: [9, 8, 8]}[maxlen]
    assert [batch.tokens.shape for batch in made] == [(4, length) for length in longest]
    rows = [row for batch in made for row in batch.tokens]
    for row, first, end in zip(rows, reviews.offsets, reviews.offsets[1:], strict=False):
        kept = reviews.tokens[max(first, end - maxlen) : end].tolist()
        assert row.tolist() == kept + [0] * (len(row) - len(kept))
    assert made[-1].weights.tolist() == [1, 1, 1, 0]
    assert rows[-1].tolist() == [1] + [0] * (len(rows[-1]) - 1)


@pytest.mark.parametrize("vocab_size", [None, 100])
@pytest.mark.parametrize("maxlen", [1, 6])
def test_by_length_ranks_are_encoded_too(vocab_size: int | None, maxlen: int) -> None:
    """The same tokens as with the padding in front, zeros aside."""
    reviews = make_reviews()._replace(vocab_size=vocab_size)
    chosen = np.arange(len(LENGTHS))
    front = reviews.padded(chosen, BatchShape(4, maxlen))
    behind = reviews.padded(chosen, BatchShape(4, maxlen, bucket=True))
    for one, other in zip(front, behind, strict=True):
        words = one[one > 0].tolist()
        assert other.tolist() == words + [0] * (maxlen - len(words))
    assert reviews.lengths(maxlen).tolist() == (front > 0).sum(axis=1).tolist()
    empty = reviews.padded(np.array([len(LENGTHS)]), BatchShape(4, maxlen, bucket=True))
    assert empty.tolist() == [[1] + [0] * (maxlen - 1)]


@pytest.mark.parametrize("bucket", [0, 1])
@pytest.mark.parametrize("vocab_size", [None, 100])
@pytest.mark.parametrize(("first", "last"), [(0, len(LENGTHS)), (3, 8)])
def test_every_word_comes_with_its_own_ratios(
    first: int, last: int, vocab_size: int | None, bucket: int
) -> None:
    """Whichever side the padding is on; its ratios are zeros, and those of a start."""
    whole = make_reviews()._replace(vocab_size=vocab_size)
    encoded = whole.tokens + (3 if vocab_size else 0)
    ratios = np.stack([encoded, -encoded], axis=1).astype(np.float32)
    reviews = whole._replace(ratios=ratios).between(first, last)
    made = collect(np.arange(last - first), reviews, maxlen=6, bucket=bucket)
    for batch in made:
        tokens = batch.tokens * batch.weights[:, None]
        if vocab_size:
            tokens[tokens == 1] = 0  # the start, which is in no n-gram
        np.testing.assert_array_equal(batch.ratios, np.stack([tokens, -tokens], axis=2))
        assert tokens.any()


def test_a_part_of_a_set_holds_no_ratios_of_the_others() -> None:
    """Validation reviews are few, and the ratios of a whole set large."""
    whole = make_reviews()
    reviews = whole._replace(ratios=np.ones((len(whole.tokens), 2), np.float32)).between(3, 8)
    source = pipeline._to_tensors(reviews, np.arange(5)[None], BatchShape(4, 6))
    assert source.ratios is not None
    assert source.ratios.shape == (sum(LENGTHS[3:8]) + 1, 2)


def test_by_length_an_epoch_can_be_entered_at_any_step() -> None:
    """The steps from the second on are the same whether or not the first was taken."""
    orders = np.stack([epoch_permutation(7, epoch, len(LENGTHS)) for epoch in (0, 1)])
    whole = collect(orders, maxlen=30, bucket=1)
    rest = collect(orders, maxlen=30, bucket=1, first_step=2)
    assert len({batch.tokens.shape for batch in whole}) > 1
    assert len(rest) == len(whole) - 2
    for a, b in zip(whole[2:], rest, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("input_s", "work_s"), [(0.03, 0.005), (0.0, 0.02)])
def test_the_wait_for_input_is_what_steps_take_beyond_their_work(
    mirrored: bool, input_s: float, work_s: float
) -> None:
    """A slow input is waited for, a quick one is not; before there is enough to tell it is None."""

    def slowly(k: int) -> int:
        time.sleep(input_s)
        return k

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        numbers = tf.data.Dataset.range(100)
        return numbers.map(lambda k: tf.numpy_function(slowly, [k], tf.int64)).prefetch(1)

    cpu = tf.distribute.MirroredStrategy(["cpu:0"])
    strategy = cpu if mirrored else tf.distribute.get_strategy()
    iterator = iter(strategy.distribute_datasets_from_function(dataset))
    worked_s = 0.0

    def work() -> None:
        nonlocal worked_s
        began = time.perf_counter()
        time.sleep(work_s)
        worked_s += time.perf_counter() - began

    def steps(num: tf.Tensor) -> None:
        for _ in tf.range(num):
            next(iterator)
            tf.numpy_function(work, [], [])

    graph = tf.function(steps)
    assert waited_s(iterator, 1, 1.0) is None
    graph(tf.constant(1))
    assert waited_s(iterator, 1, 1.0) is None
    num, began, worked_s = 20, time.perf_counter(), 0.0
    graph(tf.constant(num))
    took_s = time.perf_counter() - began
    found = waited_s(iterator, num, took_s)
    assert found is not None
    assert found == pytest.approx(took_s - worked_s, abs=0.25 * took_s)
    assert (found > 0.5 * took_s) == (input_s > 0)
    assert waited_s(iterator, num + 1, took_s) is None
