"""Errors of devices and of lost workers, by TensorFlow's messages."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from harness.errors import Interrupted, RunError, TakenOver
from harness.job.job_file import load_job
from harness.system import watchdog
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import RunDirectory
from harness.training.context import Compute, RunContext
from harness.training.failures import (
    explained_device_errors,
    explained_losses,
    recorded_failures,
    watching,
)
from tests.conftest import JOBS


def internal(text: str) -> tf.errors.OpError:
    return tf.errors.InternalError(None, None, text)


def test_only_errors_of_devices_are_explained() -> None:
    """Other errors keep their traceback."""
    with pytest.raises(tf.errors.InternalError), explained_device_errors():
        raise internal("Cannot convert a string to a number")
    with pytest.raises(RunError), explained_device_errors():
        raise internal("CUDA_ERROR_NO_BINARY_FOR_GPU")


def test_a_worker_that_nccl_lost_is_an_interruption() -> None:
    """The other workers have saved, and the run can be resumed."""
    group: Any = SimpleNamespace(explain=lambda: None, lost=lambda message: "n2")
    with pytest.raises(Interrupted, match="a lost worker on n2"), explained_losses(group):
        raise internal("NCCL: ncclRemoteError: remote process exited or there was a network error")


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


@pytest.mark.parametrize(("per_execution", "num_steps"), [(1, 1), (10_000, 157)])
def test_an_execution_has_at_most_the_steps_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_execution: int, num_steps: int
) -> None:
    """The watchdog waits no longer for a GPU that hangs."""
    unused: Any = None
    found: list[watchdog.Watched] = []
    monkeypatch.setattr(watchdog.current, "watching", found.append)
    job = load_job(JOBS / "lstm.toml", [f"train.steps_per_execution={per_execution}"])
    run, compute = RunDirectory(tmp_path), Compute(unused, unused, None)
    watching(RunContext(run, job, unused), compute, Heartbeat(run, None), 157)
    assert [watched.num_steps for watched in found] == [num_steps]
