"""Steps that are used again: of one graph, and as a new one in a new process."""

import numpy as np
import pytest
import tensorflow as tf

from harness.compute.execution_plan import ExecutionPlan
from harness.compute.reused_steps import MAX_STEPS, ReusedSteps, is_reusable
from harness.compute.train_step import TrainStep
from harness.inputs.epoch_order import BatchShape
from harness.inputs.input_pipeline import batches
from harness.job_file import load_job
from tests.compute.test_train_step import LENGTH, NUM_REVIEWS, SETTINGS, reviews
from tests.conftest import JOBS

STRATEGY = tf.distribute.get_strategy()
VALUES = ("train.seed=2", "train.learning_rate=0.01", "model.dropout=0.2", "train.epochs=9")


def step(reused: ReusedSteps | None, *settings: str, xla: bool = False) -> TrainStep:
    job = load_job(JOBS / "lstm.toml", [*SETTINGS, "train.ema_momentum=0.9", *settings])
    plan = ExecutionPlan("xla" if xla else "keras", 1)
    return (reused.get if reused else TrainStep)(job, STRATEGY, plan)


def trained(train_step: TrainStep) -> list[bytes]:
    """Three steps and an evaluation, to all that they leave."""
    order = np.arange(NUM_REVIEWS, dtype=np.int32)[None]
    opened = batches(STRATEGY, reviews(), order, shape=BatchShape(20, LENGTH))
    sums = train_step.train_steps(iter(opened), 3).numpy()
    train_step.export_weights()
    probabilities = train_step.evaluator.probabilities(reviews())
    weights = [*train_step.export_model.get_weights(), *train_step.model.get_weights()]
    weights += [variable.numpy() for variable in train_step.optimizer.variables]
    return [sums.tobytes(), probabilities.tobytes(), *(each.tobytes() for each in weights)]


@pytest.mark.full
@pytest.mark.parametrize("xla", [False, True])
def test_a_step_that_is_used_again_is_a_new_one(xla: bool) -> None:
    """Other values, the same graph: traced once, and to the bytes of a step that nobody used."""
    reused = ReusedSteps()
    first = step(reused, xla=xla)
    before = trained(first)
    first.model.stop_training = True
    again = step(reused, *VALUES, xla=xla)
    assert again is first
    assert not again.model.stop_training
    found = trained(again)
    assert again._run_steps.experimental_get_tracing_count() == 1
    assert found == trained(step(None, *VALUES, xla=xla))
    assert trained(step(reused, xla=xla)) == before
    assert before != found


def test_another_graph_is_another_step() -> None:
    """Sizes, the optimizer, a dropout that is off, and the names of layers are of the graph."""
    reused = ReusedSteps()
    first = step(reused)
    names = [layer.name for layer in first.export_model.layers]
    others = ("model.units=5", "model.dropout=0", "train.optimizer=sgd", "train.clipnorm=1")
    made = [step(reused, each) for each in others]
    assert len({id(each) for each in (first, *made)}) == 5
    half = step(reused, "train.precision=bfloat16")
    assert step(reused, "train.precision=bfloat16", "model.dropout=0.1") is not half
    for value in ("train.learning_rate=0.1", "train.keep=last", "data.limit=50"):
        assert step(reused, value) is first
    assert [layer.name for layer in made[0].export_model.layers] == names


REUSED = (
    *("train.seed=2", "train.learning_rate=0.1", "train.epochs=9", "train.batch_size=7"),
    *("train.optimizer=adam", "train.clipnorm=1", "train.precision=bfloat16", "train.keep=last"),
    *("model.architecture=gru", "model.units=5", "model.dropout=0", "model.spatial_dropout=0.1"),
    *("model.pooling=max", "data.maxlen=9", "data.limit=50"),
)
NOT_REUSED = (
    *("train.schedule=cosine", "train.warmup_epochs=1", "train.class_weights=balanced"),
    *("train.label_smoothing=0.1", "data.bucket=true"),
    *("model.word_dropout=0.1", "model.ngram_ratios=1", "model.pooling=max model.recurrent=false"),
    *("model.embeddings=vectors.txt", "model.train_embeddings=false"),
)


@pytest.mark.parametrize("setting", REUSED)
def test_what_is_used_again(setting: str) -> None:
    """A step whose graph is known by the settings of its job."""
    assert is_reusable(load_job(JOBS / "lstm.toml", [setting]))


@pytest.mark.parametrize("setting", NOT_REUSED)
def test_what_is_made_for_each_trial(setting: str) -> None:
    """A graph of more than its settings, or of which no bytes were compared."""
    settings = setting.split()
    assert not is_reusable(load_job(JOBS / "lstm.toml", settings))
    if setting != "model.embeddings=vectors.txt":  # which nobody has read here
        reused = ReusedSteps()
        assert step(reused, *settings) is not step(reused, *settings)


def test_steps_of_own_code_are_made_for_each_trial() -> None:
    """A network, an optimizer or a callback of the user's: what it depends on is not known."""
    own = sorted((JOBS / "own").glob("*.toml"))
    assert own
    assert not [path.name for path in own if is_reusable(load_job(path))]


@pytest.mark.full
def test_only_the_steps_used_last_are_kept() -> None:
    """Each holds a model and its optimizer."""
    reused = ReusedSteps()
    first, second = step(reused), step(reused, "model.units=30")
    for units in range(5, 4 + MAX_STEPS):
        assert step(reused) is first
        step(reused, f"model.units={units}")
    assert step(reused, "model.units=30") is not second
