"""An evaluation returns probabilities in the order of the reviews, for any kind of batches."""

import itertools
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from harness.architectures import sentiment
from harness.compute import evaluator as evaluator_module
from harness.compute.evaluator import Evaluator
from harness.compute.execution_plan import ExecutionPlan
from harness.data.input_pipeline import Reviews
from harness.errors import Interrupted
from harness.job.job_file import load_job
from harness.system.processes import StopRequest
from tests.conftest import JOBS, PROJECT
from tests.training.test_trainer import LENGTH, SETTINGS, TEST, VOCAB_SIZE, encoded


def plan(compiled: bool) -> ExecutionPlan:
    """Return a plan with Keras's layers, and with or without compiled evaluations."""
    return ExecutionPlan("keras", 1, compiles_evaluation=compiled)


class StopAtSecondBatch(StopRequest):
    """Raises Interrupted at the second batch, like a signal during an evaluation."""

    num_checks = 0

    def check(self) -> None:
        self.num_checks += 1
        if self.num_checks == 2:
            raise Interrupted("SIGTERM")


@pytest.mark.parametrize("compiled", [True, False])
def test_every_review_gets_its_probability(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """Padding gets no probability; repeated evaluations agree, also after an interruption."""
    monkeypatch.setitem(evaluator_module.EVALUATION_BATCH, "cpu", 8)
    job = load_job(JOBS / "lstm.toml", SETTINGS)
    keras.utils.set_random_seed(1)
    model = sentiment(VOCAB_SIZE, job.model)
    rows = encoded(TEST)
    expected = model.predict_on_batch(rows)[:, 0]
    evaluator = Evaluator(model, tf.distribute.get_strategy(), job, plan(compiled))
    for num_reviews in (1, 7, 8, 9, 21):
        offsets = np.arange(num_reviews + 1) * LENGTH
        reviews = Reviews(rows[:num_reviews].ravel(), offsets, TEST.labels[:num_reviews])
        for _ in range(2):
            probabilities = evaluator.probabilities(reviews)
            np.testing.assert_allclose(probabilities, expected[:num_reviews], rtol=1e-6)
    with pytest.raises(Interrupted):
        evaluator.probabilities(reviews, StopAtSecondBatch())
    np.testing.assert_allclose(evaluator.probabilities(reviews), expected, rtol=1e-6)
    (concrete,) = evaluator._run_forward._list_all_concrete_functions()
    assert ("_XlaMustCompile" in str(concrete.graph.as_graph_def())) == compiled


@pytest.mark.full
def test_batches_by_length_keep_the_order_of_the_probabilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each review gets the probability that an evaluation of this review alone gives."""
    monkeypatch.setitem(evaluator_module.EVALUATION_BATCH, "cpu", 8)
    settings = [*SETTINGS, "data.bucket=true", "data.maxlen=20"]
    job = load_job(JOBS / "bilstm.toml", settings)
    keras.utils.set_random_seed(1)
    model = sentiment(VOCAB_SIZE, job.network())
    lengths = np.random.default_rng(1).integers(1, 25, 21)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.random.default_rng(2).integers(4, VOCAB_SIZE, offsets[-1]).astype(np.int32)
    reviews = Reviews(tokens, offsets, np.zeros(21, np.int32))
    alone = [model(tokens[None, a:b][:, -20:]) for a, b in itertools.pairwise(offsets)]
    evaluator = Evaluator(model, tf.distribute.get_strategy(), job, plan(compiled=False))
    probabilities = evaluator.probabilities(reviews)
    np.testing.assert_allclose(probabilities, np.concatenate(alone)[:, 0], atol=1e-6)


TWO_REPLICAS = """
import numpy as np
from harness.compute.strategy import import_tensorflow, make_strategy, parse_devices
import_tensorflow(None, 1)
from harness.compute.evaluator import Evaluator
from harness.compute.execution_plan import ExecutionPlan
from harness.compute.network import build_network
from harness.data.input_pipeline import Reviews
from harness.job.job_file import load_job
from tests.conftest import JOBS, PROJECT
job = load_job(JOBS / "lstm.toml", ["data.vocab_size=100", "data.maxlen=6", "model.units=4"])
strategy = make_strategy(parse_devices("cpu:2"))
with strategy.scope():
    model = build_network(job)
tokens = np.arange(420, dtype=np.int32) % 96 + 4
reviews = Reviews(tokens, np.arange(0, 421, 6), np.zeros(70, np.int32))
plans = [ExecutionPlan("block", 1, compiles_evaluation=each) for each in (False, True)]
plain, compiled = (
    Evaluator(model, strategy, job, plan).probabilities(reviews) for plan in plans
)
np.testing.assert_allclose(compiled, plain, atol=1e-6)
"""


@pytest.mark.full
def test_two_replicas_evaluate_compiled_networks() -> None:
    """The test needs a separate process, because a process chooses its devices only once."""
    command = [sys.executable, "-c", TWO_REPLICAS]
    done = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
