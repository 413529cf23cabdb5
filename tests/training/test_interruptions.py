"""A signal at each kind of moment in which a run looks for one: the bytes of an undisturbed run."""

import sys
from pathlib import Path

import pytest
import tensorflow as tf

from harness.compute.execution_plan import ExecutionPlan
from harness.data.dataset import Dataset
from harness.errors import Interrupted
from harness.job.job_file import check_job
from harness.job.keys import Job
from harness.system.console import Console
from harness.system.processes import StopRequest
from harness.system.resource_monitor import ResourceMonitor
from harness.tracking.run_dir import RunDirectory
from harness.training.context import Compute, Observers, RunContext
from harness.training.train import train
from tests.conftest import results
from tests.training.test_trainer import TEST, TRAIN

pytestmark = pytest.mark.full

# Whatever of it is called twice changes the bytes.
CALLBACK = """
import keras
class Cuts(keras.callbacks.Callback):
    num = 0
    def on_epoch_begin(self, epoch, logs=None):
        self.num += 1
        self.model.optimizer.learning_rate = 0.05 / self.num
    def on_train_end(self, logs=None):
        self.num += 1
        for variable in self.model.trainable_variables:
            variable.assign(variable * (1 + self.num / 10))
    def save_state(self): return self.num
    def load_state(self, state): self.num = state
def make(): return Cuts()
"""


def job_of() -> Job:
    """Three epochs of few steps, of which the last two are averaged."""
    return check_job(
        {
            "name": "mine",
            "model": {"architecture": "gru", "units": 4, "embedding_dim": 4},
            "data": {"vocab_size": 30, "maxlen": 6, "validation_split": 0.3},
            "train": {
                "epochs": 3,
                "batch_size": 16,
                "ema_momentum": 0.0,
                "xla": "off",
                "keep": "last",
                "callbacks": ["cb.py:make"],
                "checkpoint_every_s": 1000,
            },
            "code": {"cb.py": CALLBACK},
        },
        Path("mine.toml"),
    )


class StopAt(StopRequest):
    """A signal when the run looks for one for the n-th time; remembers from where it looked."""

    def __init__(self, n: int = 0) -> None:
        super().__init__()
        self.n = n
        self.looked_from: list[str] = []

    def check(self) -> None:
        self.looked_from.append(sys._getframe(1).f_code.co_name)
        if len(self.looked_from) == self.n:
            raise Interrupted("SIGTERM")


def run_to(folder: Path, stop: StopAt) -> RunDirectory:
    """Train, or go on, to the end or the signal."""
    tf.keras.utils.clear_session()  # layers are named as in a new process
    console = Console()
    console.silent = True
    vocab = [f"word{i}" for i in range(40)]
    dataset = Dataset(TRAIN, TEST, vocab, checksum="made up")
    run = RunDirectory(folder)
    train(
        RunContext(run, job_of(), dataset),
        Compute(tf.distribute.get_strategy(), ExecutionPlan("keras", 1)),
        Observers(console, ResourceMonitor(0, 1), stop),
    )
    return run


def moments(looked_from: list[str]) -> dict[str, int]:
    """The number of the look at each kind of moment."""
    epochs = [n for n, name in enumerate(looked_from, 1) if name == "fit"]
    scoring = [n for n, name in enumerate(looked_from, 1) if name == "probabilities"]
    return {
        "before the first epoch": epochs[0],
        "between epochs": epochs[1],
        "in the middle of an epoch": epochs[1] + 1,
        "while the second epoch is validated": next(n for n in scoring if n > epochs[1]),
        "while the last epoch is validated": next(n for n in scoring if n > epochs[2]),
        "while the test set is scored": scoring[-1],
    }


def test_a_signal_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Callbacks are called once at each epoch."""
    stop = StopAt()
    calm = run_to(tmp_path / "calm", stop)
    for when, n in moments(stop.looked_from).items():
        folder = tmp_path / when.replace(" ", "-")
        with pytest.raises(Interrupted):
            run_to(folder, StopAt(n))
        assert results(run_to(folder, StopAt()).folder) == results(calm.folder), when
