"""Pretrained word vectors are part of a run's identity, and trained or constant."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from harness.compute.execution_plan import ExecutionPlan
from harness.compute.network import build_network
from harness.compute.train_step import TrainStep
from harness.data.input_pipeline import BatchShape, Reviews, batches
from harness.data.sources import open_sample
from harness.errors import InputError
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.job.own_code import trusting
from harness.tracking.run_dir import RunDirectory, stamped
from harness.training.context import RunContext
from harness.training.parent import Parent, begin_with, find_parent
from tests.conftest import JOBS


def job_with(path: Path, *settings: str) -> Job:
    small = ("data.vocab_size=100", "data.maxlen=6", "train.batch_size=20", "model.units=4")
    vectors = ("model.embedding_dim=3", f"model.embeddings={path}")
    return load_job(JOBS / "rnn.toml", [*small, *vectors, *settings])


@pytest.mark.parametrize("trained", [True, False])
def test_words_begin_with_their_vectors(tmp_path: Path, trained: bool) -> None:
    """A step changes the vectors of the exported model only with `model.train_embeddings`."""
    (tmp_path / "vectors.txt").write_text("the 1 2 3\nzzz 1 1 1\nand 4 5 6\n")
    job = job_with(tmp_path / "vectors.txt", f"model.train_embeddings={str(trained).lower()}")
    context = RunContext.open(RunDirectory(tmp_path / "run"), job, open_sample())
    plan = ExecutionPlan("keras", 1)
    strategy = tf.distribute.get_strategy()
    step = TrainStep(job, strategy, plan, vectors=context.vectors)
    before = step.export_model.layers[0].get_weights()[0]
    words = [*open_sample().vocab[:96]]
    rows = [words.index("the") + 4, words.index("and") + 4]
    np.testing.assert_array_equal(before[rows], [[1, 2, 3], [4, 5, 6]])
    assert np.abs(np.delete(before, rows, axis=0)).max() < 0.1
    tokens = np.resize(np.array(rows, np.int32), 120)
    reviews = Reviews(tokens, np.arange(0, 121, 6), (np.arange(20) % 2).astype(np.int32))
    order = np.arange(20, dtype=np.int32)[None]
    step.train_steps(iter(batches(strategy, reviews, order, shape=BatchShape(20, 6))), 1)
    step.export_weights()
    after = step.export_model.layers[0].get_weights()[0]
    assert np.array_equal(before, after) != trained


@pytest.mark.parametrize("parent_has", [None, "others", "the same"])
def test_a_run_with_a_parent_keeps_vectors_that_the_parent_lacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parent_has: str | None
) -> None:
    """If the parent began with the same vectors, the run uses the parent's trained embedding."""
    (tmp_path / "vectors.txt").write_text("the 1 2 3\n")
    job, plan = job_with(tmp_path / "vectors.txt"), ExecutionPlan("keras", 1)
    parent = RunDirectory(tmp_path / "parent")
    context = RunContext.open(RunDirectory(tmp_path / "run"), job, open_sample())
    assert context.vectors
    checksum = context.vectors.checksum if parent_has == "the same" else parent_has
    parent.take_lease()
    parent.write_json("provenance.json", {"starts": [{"embeddings": checksum}]})
    context.run.take_lease()
    for run in (parent, context.run):
        run.write("vocabulary.txt", "the\n")
    strategy = tf.distribute.get_strategy()
    theirs = TrainStep(job, strategy, plan).export_model
    theirs.set_weights([np.full_like(each, 7) for each in theirs.get_weights()])
    monkeypatch.setattr("harness.inference.model_file.load_model", lambda run: theirs)
    step = TrainStep(job, strategy, plan, vectors=context.vectors)
    lines = begin_with(Parent(parent, continues=False), context, step)
    row = [*open_sample().vocab].index("the") + 4
    for model in (step.export_model, step.model):
        assert np.all(model.layers[-1].get_weights()[0] == 7)
        begins = model.get_weights()[0][row]
        assert begins.tolist() == ([7, 7, 7] if parent_has == "the same" else [1, 2, 3])
    kept = "Embedding 1: starts with the vectors of model.embeddings"
    assert [line.partition(",")[0] for line in lines] == (
        [] if parent_has == "the same" else [kept]
    )


NESTED = """
import keras
from keras import layers
def net(vocab_size, config, *, num_outputs, options):
    words = keras.Sequential([layers.Embedding(vocab_size, 3), layers.GlobalMaxPooling1D()])
    return keras.Sequential([words, layers.Dense(num_outputs, activation="sigmoid")])
"""


def test_a_nested_embedding_of_another_vocabulary_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A custom network may contain its embedding in another layer."""
    (tmp_path / "nested.py").write_text(NESTED)
    network = f"model.architecture={tmp_path}/nested.py:net"
    with trusting(True):
        job = load_job(JOBS / "rnn.toml", [network, "data.vocab_size=100"])
    parent, run = RunDirectory(tmp_path / "parent"), RunDirectory(tmp_path / "run")
    for each, word in ((parent, "the"), (run, "and")):
        each.take_lease()
        each.write("vocabulary.txt", f"{word}\n")
    step = TrainStep(job, tf.distribute.get_strategy(), ExecutionPlan("keras", 1))
    theirs = build_network(job)
    monkeypatch.setattr("harness.inference.model_file.load_model", lambda run: theirs)
    (line,) = begin_with(Parent(parent, False), RunContext(run, job, open_sample()), step)
    assert line.startswith("Sequential 1: starts from random weights, because run ")


def test_the_content_of_the_file_counts_and_not_its_path(tmp_path: Path) -> None:
    """A run can be resumed or be a parent if the file has moved, but not if it has changed."""
    (tmp_path / "a.txt").write_text("the 1 2 3\n")
    before, dataset = job_with(tmp_path / "a.txt", "train.epochs=1"), open_sample()
    run = RunDirectory.new(tmp_path / "runs", before, "x")
    began = RunContext.open(run, before, dataset)
    assert began.vectors
    run.take_lease()
    run.write("job.toml", before.to_toml())
    start = {"starts": [{"embeddings": began.vectors.checksum}]}
    record = stamped(start | {"dataset": {"checksum": dataset.checksum}})
    run.write_json("provenance.json", record)
    run.write("checkpoints/step-000000009.npz", "")
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    after = job_with(tmp_path / "b.txt", "train.epochs=1")
    assert RunDirectory.new(tmp_path / "runs", after, "x").folder == run.folder
    assert RunContext.open(run, after, dataset).identity == began.identity
    longer = job_with(tmp_path / "b.txt", "train.epochs=2")
    child = RunContext.open(RunDirectory(tmp_path / "child"), longer, dataset)
    parent = find_parent(child, named=run.folder)
    assert parent
    assert parent.continues
    with pytest.raises(InputError, match="contains another job"):
        RunDirectory.new(tmp_path / "runs", longer, "x")
    (tmp_path / "b.txt").write_text("the 1 2 4\n")
    new = RunContext.open(RunDirectory(tmp_path / "new"), after, dataset)
    assert new.identity != began.identity
    with pytest.raises(InputError, match=r"model\.embeddings .* has changed since the run began"):
        RunContext.open(run, after, dataset)
    run.write("result.json", "{}")
    run.write("model.keras", "")
    parent = find_parent(new, named=run.folder)
    assert parent
    assert parent.differences == ("the vectors of model.embeddings",)
