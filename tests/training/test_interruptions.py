"""A run that is interrupted and resumed ends with the bytes of an undisturbed run."""

import sys
from pathlib import Path

import pytest

from harness.errors import Interrupted
from harness.job.job_file import check_job
from harness.job.keys import Job
from harness.system.processes import StopRequest
from tests.conftest import results
from tests.training.test_trainer import train_in

pytestmark = pytest.mark.full

# A hook that is called once too often changes the bytes.
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
    """Return a job of three short epochs."""
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
    """Interrupts the n-th check for a signal; records which function makes each check."""

    def __init__(self, n: int = 0) -> None:
        super().__init__()
        self.n = n
        self.checked_from: list[str] = []

    def check(self) -> None:
        self.checked_from.append(sys._getframe(1).f_code.co_name)
        if len(self.checked_from) == self.n:
            raise Interrupted("SIGTERM")


def moments(checked_from: list[str]) -> dict[str, int]:
    """Return the number of one check for each kind of moment."""
    epochs = [n for n, name in enumerate(checked_from, 1) if name == "fit"]
    scoring = [n for n, name in enumerate(checked_from, 1) if name == "probabilities"]
    return {
        "before the first epoch": epochs[0],
        "between epochs": epochs[1],
        "in the middle of an epoch": epochs[1] + 1,
        "while the second epoch is validated": next(n for n in scoring if n > epochs[1]),
        "while the last epoch is validated": next(n for n in scoring if n > epochs[2]),
        "while the test set is scored": scoring[-1],
    }


def test_a_signal_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Equal bytes also show that callbacks are called once per epoch."""
    stop = StopAt()
    calm = train_in(tmp_path / "calm", job_of(), stop=stop)
    for when, n in moments(stop.checked_from).items():
        folder = tmp_path / when.replace(" ", "-")
        with pytest.raises(Interrupted):
            train_in(folder, job_of(), stop=StopAt(n))
        resumed = train_in(folder, job_of())
        assert results(resumed.folder) == results(calm.folder), when
