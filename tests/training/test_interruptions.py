"""A run that is interrupted and resumed ends with the bytes of an undisturbed run."""

import sys
from pathlib import Path

import numpy as np
import pytest

from harness.errors import Interrupted
from harness.job.job_file import load_job
from harness.system.processes import StopRequest
from harness.training.metrics import loss_and_accuracy
from tests.conftest import JOBS, metrics, results
from tests.training.test_trainer import SETTINGS, train_in

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("default_precision")]

# A hook that is called once too often changes the bytes.
CALLBACK = """
import keras
class Cuts(keras.callbacks.Callback):
    num = 0
    def on_epoch_begin(self, epoch, logs=None):
        self.num += 1
        self.model.optimizer.learning_rate = 0.05 / self.num
    def on_epoch_end(self, epoch, logs=None):
        self.on_train_end()
    def on_train_end(self, logs=None):
        self.num += 1
        for variable in self.model.trainable_variables:
            variable.assign(variable * (1 + self.num / 10))
    def save_state(self): return self.num
    def load_state(self, state): self.num = state
def make(): return Cuts()
"""


class StopAt(StopRequest):
    """Interrupts the run after the functions `names` have checked for a signal, in this order."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = [*names]

    def check(self) -> None:
        frame = sys._getframe(1)
        if frame.f_code.co_name == "probabilities" and frame.f_back:
            frame = frame.f_back  # `_validate` or `_scored`
        if [frame.f_code.co_name] == self.names[:1]:
            del self.names[0]
            if not self.names:
                raise Interrupted("SIGTERM")


def test_signals_at_any_moment_end_with_the_same_bytes(tmp_path: Path) -> None:
    """Each process resumes the run where a signal ended the process before it.

    Equal bytes also show that callbacks are called once per epoch.
    """
    (tmp_path / "cb.py").write_text(CALLBACK)
    callback = f'train.callbacks=["{tmp_path}/cb.py:make"]'
    others = ("train.epochs=3", "train.keep=last", "train.checkpoint_every_s=1000")
    job = load_job(JOBS / "rnn.toml", [*SETTINGS, callback, *others, "model.dropout=0.4"])
    calm, run = train_in(tmp_path / "calm", job), tmp_path / "run"
    for moment in (
        ("fit",),  # before the first epoch
        ("fit", "fit"),  # between epochs
        ("_train_epoch",),  # in the middle of the second epoch
        ("_validate",),  # while the second epoch is validated
        ("fit", "_validate"),  # while the last epoch is validated
        ("_scored",),  # while the test set is scored
    ):
        with pytest.raises(Interrupted):
            train_in(run, job, stop=StopAt(*moment))
    assert results(train_in(run, job).folder) == results(calm.folder)
    # The callback changes the weights after the last validation, but not the saved model.
    with np.load(calm.path("validation_predictions.npz")) as predictions:
        loss, _ = loss_and_accuracy(predictions["labels"], predictions["probabilities"])
    assert loss == metrics(calm.folder)[-1]["val_loss"]
