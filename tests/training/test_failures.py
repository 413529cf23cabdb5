"""Errors of devices and of lost workers, by TensorFlow's messages."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from harness.errors import Interrupted, RunError, TakenOver
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import RunDirectory
from harness.training.failures import explained_losses, recorded_failures


def test_a_worker_that_nccl_lost_is_an_interruption() -> None:
    """The other workers have saved, and the run can be resumed."""
    group: Any = SimpleNamespace(explain=lambda: None, lost=lambda message: "n2")
    text = "NCCL: ncclRemoteError: remote process exited or there was a network error"
    with pytest.raises(Interrupted, match="a lost worker on n2"), explained_losses(group):
        raise tf.errors.InternalError(None, None, text)


def test_a_failure_after_a_takeover_is_reported_as_the_takeover(tmp_path: Path) -> None:
    """The older process fails because the newer process removes its files."""
    older, newer = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    older.take_lease()
    with (
        pytest.raises(RunError, match="can't be written"),
        recorded_failures(Heartbeat(older, None)),
    ):
        raise RunError("log: can't be written: No such file or directory")
    newer.take_lease()
    with pytest.raises(TakenOver, match="took over"), recorded_failures(Heartbeat(older, None)):
        raise RunError("log: can't be written: No such file or directory")
