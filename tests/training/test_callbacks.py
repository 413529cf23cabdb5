"""Callbacks in a run: checks, calls at epochs, and states over a restart."""

from pathlib import Path
from typing import Any

import keras
import pytest

from harness.compute.optimizer import build_optimizer, schedule_of
from harness.errors import InputError, RunError
from harness.job.job_file import check_job, load_job
from harness.job.keys import Job, TrainConfig
from harness.training.callbacks import RunCallbacks, own_callbacks
from harness.training.checkpoint import Progress
from tests.conftest import JOBS

COUNTS = """
import keras
class Counts(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.calls = []
    def on_train_begin(self, logs=None): self.calls.append(f"begin {self.params['epochs']}")
    def on_epoch_begin(self, epoch, logs=None): self.calls.append(f"epoch {epoch}")
    def on_epoch_end(self, epoch, logs=None): self.calls.append([epoch, sorted(logs)])
    def on_train_end(self, logs=None): self.calls.append("end")
    def save_state(self): return self.calls
    def load_state(self, state): self.calls = list(state)
def make(): return Counts()
"""
LINE = {"epoch": 1, "loss": 0.5, "val_loss": 0.6, "learning_rate": 0.1, "epoch_s": 3.2}


def job_of(source: str, **train: Any) -> Job:
    return check_job(
        {
            "name": "mine",
            "model": {"architecture": "gru"},
            "train": {"callbacks": ["cb.py:make"], **train},
            "code": {"cb.py": source},
        },
        Path("mine.toml"),
    )


def model_of(train: TrainConfig) -> keras.Model:
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile(build_optimizer(train, 10))
    model.optimizer.build(model.trainable_variables)
    return model


def test_own_callbacks_are_called_at_epochs_and_get_their_state() -> None:
    """A resumed run restores callbacks' states after `on_train_begin`; `logs` contains no times."""
    job = job_of(COUNTS, epochs=3)
    first = RunCallbacks(job.train, model_of(job.train), own_callbacks(job, print))
    first.begin(Progress())
    first.on_epoch_begin(0)
    first.on_epoch_end(LINE)
    names = ["epoch", "learning_rate", "loss", "val_loss"]
    assert first.states() == [["begin 3", "epoch 0", [0, names]]]
    again = RunCallbacks(job.train, model_of(job.train), own_callbacks(job, print))
    again.begin(Progress(history=[LINE], callback_states=first.states()))
    again.on_train_end()
    assert again.states() == [["begin 3", "epoch 0", [0, names], "end"]]


def test_a_stop_that_a_callback_undid_stays_undone() -> None:
    """A resumed run stops only if the interrupted run had stopped, not if a replay would stop."""
    job = job_of(COUNTS, early_stopping_patience=1)
    history = [{**LINE, "epoch": epoch} for epoch in (1, 2, 3)]
    for stopped in (False, True):
        callbacks = RunCallbacks(job.train, model_of(job.train), own_callbacks(job, print))
        callbacks.begin(Progress(history=history, callback_states=[[]], stopped=stopped))
        assert callbacks.model.stop_training is stopped


def test_changes_of_on_train_begin_happen_once() -> None:
    """A new run uses the callback's rate and weights; a resumed run uses the checkpoint."""
    source = COUNTS.replace(
        "self.calls.append(f\"begin {self.params['epochs']}\")",
        "self.model.optimizer.learning_rate *= 0.5; self.model.variables[1].assign([7.0])",
    )
    job = job_of(source, learning_rate=0.5)
    first = RunCallbacks(job.train, model_of(job.train), own_callbacks(job, print))
    first.begin(Progress())
    assert float(first.model.optimizer.learning_rate.numpy()) == 0.25
    assert first.model.get_weights()[1] == [7.0]
    first.model.variables[1].assign([3.0])
    again = RunCallbacks(job.train, first.model, own_callbacks(job, print))
    again.begin(Progress(callback_states=first.states()))
    assert float(again.model.optimizer.learning_rate.numpy()) == 0.25
    assert again.model.get_weights()[1] == [3.0]


@pytest.mark.parametrize(("monitor", "sign"), [("val_loss", 1), ("val_accuracy", -1)])
def test_the_smallest_improvement_keeps_the_training_going(monitor: str, sign: int) -> None:
    """Scores that are equal in float32 may differ in float64, in which the audit compares them."""
    train = TrainConfig(early_stopping_patience=1, monitor=monitor)
    callbacks = RunCallbacks(train, model_of(train))
    callbacks.begin(Progress())
    for epoch, stops in ((1, False), (2, False), (3, False), (3, True)):
        score = 0.68 - sign * 4e-9 * epoch
        callbacks.on_epoch_end({**LINE, "epoch": epoch, monitor: score})
        assert bool(callbacks.model.stop_training) is stops


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_a_plateau_cuts_the_rate_and_a_resumed_run_counts_on(warmup: float) -> None:
    """With and without a schedule, the rate is cut after epochs 3, 5 and 7, and not after epoch 8.

    The replay starts at the first rate, because cuts from the last rate would reach 0.
    """
    train = TrainConfig(reduce_lr_patience=2, reduce_lr_factor=1e-10, warmup_epochs=warmup)
    model = model_of(train)
    schedule = schedule_of(model.optimizer)
    assert (schedule is not None) == (warmup > 0)
    variable = schedule.cut if schedule else model.optimizer.learning_rate
    first = float(model.optimizer.learning_rate.numpy())
    calm = RunCallbacks(train, model)
    calm.begin(Progress())
    history = [{**LINE, "epoch": epoch} for epoch in range(1, 8)]
    for line in history:
        calm.on_epoch_end(line)
    cut = float(variable.numpy())
    ratio = float(model.optimizer.learning_rate.numpy()) / first
    assert ratio == pytest.approx(1e-30, rel=1e-6, abs=0)
    resumed = RunCallbacks(train, model)
    resumed.begin(Progress(history=history))
    assert float(variable.numpy()) == cut > 0
    for each in (calm, resumed):
        each.on_epoch_end({**LINE, "epoch": 8})
        assert float(variable.numpy()) == cut


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def make(): return 3\n", "returns a int, should return a keras.callbacks.Callback"),
        ("def make(): return 1 / 0\n", "cb.py, line 1: ZeroDivisionError"),
        (COUNTS.replace("on_epoch_end", "on_train_batch_end"), "has on_train_batch_end, which is"),
        (
            "import keras\n"
            "def make(): return keras.callbacks.LambdaCallback(on_train_batch_end=print)\n",
            "has on_train_batch_end, which is never called",
        ),
    ],
)
def test_a_bad_callback_is_refused(source: str, says: str) -> None:
    """One line names the key, the function and the rule."""
    with pytest.raises(InputError) as refused:
        own_callbacks(job_of(source), print)
    assert says in str(refused.value)
    assert "train.callbacks = 'cb.py:make'" in str(refused.value)


def test_an_error_of_a_callback_ends_the_run_in_one_line() -> None:
    """A state that JSON can't represent is also an error."""
    for source, says in (
        (COUNTS.replace("self.calls.append([epoch", "self.calls.no([epoch"), r"cb\.py, line 9"),
        (COUNTS.replace("self.calls.append([", "self.model.trainable = not (["), "on_epoch_end ch"),
        (COUNTS.replace("return self.calls", "return {1, 2}"), "save_state should return"),
        (
            COUNTS.replace("return self.calls", "return [{'a': {1: 2}}]"),
            "should return .*1: 2.* becomes",
        ),
    ):
        job = job_of(source)
        callbacks = RunCallbacks(job.train, model_of(job.train), own_callbacks(job, print))
        callbacks.begin(Progress())
        with pytest.raises(RunError, match=says):  # noqa: PT012 - either call may raise
            callbacks.on_epoch_end(LINE)
            callbacks.states()


def test_the_example_works_without_validation_reviews() -> None:
    """`harness sweep retrain` trains on all reviews, so `logs` contains no validation scores."""
    (callback,) = own_callbacks(load_job(JOBS / "own/parts.toml"), print)
    callback.on_epoch_end(0, {"epoch": 1, "loss": 0.5, "accuracy": 0.8})


def test_a_callback_without_state_is_named() -> None:
    """The run warns that a restart can't restore its state."""
    source = COUNTS.replace("load_state", "other")
    job = job_of(source)
    warnings: list[str] = []
    callbacks = RunCallbacks(job.train, model_of(job.train), own_callbacks(job, warnings.append))
    assert "'cb.py:make': has no save_state" in warnings[0]
    assert callbacks.states() == [None]
