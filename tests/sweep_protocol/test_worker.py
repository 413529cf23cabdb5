"""A worker without a trial, and the steps that it counts in one."""

from pathlib import Path

import pytest

from harness.files.shared_disk import SharedDisk
from harness.sweep_protocol.mailbox import BEAT, Beat, SharedFolder
from harness.sweep_protocol.worker import Alone, Worker
from tests.sweep_protocol.test_safeguards import TERMS, A, NoRunner, PlannedClock


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    """One that has a folder, in a sweep with a supervisor."""
    (tmp_path / "workers" / A).mkdir(parents=True)
    (tmp_path / "journal" / "1").mkdir(parents=True)
    shared = SharedFolder(tmp_path, SharedDisk(), PlannedClock(), TERMS)
    return Worker(shared, A, NoRunner())  # type: ignore[arg-type]


def idle(worker: Worker, *, beats: bool, time_s: float = 2 * TERMS.patience_s) -> None:
    """Wait for tasks, by default for twice as long as a worker waits for a supervisor."""
    shared, began_s = worker.shared, worker.shared.clock.now()
    while shared.clock.now() - began_s < time_s:
        if beats:
            shared.write(Beat(count=int(shared.clock.now()) + 1), "journal", "1", BEAT)
        assert worker._idle() is None


def test_a_worker_waits_as_long_as_a_supervisor_beats(worker: Worker) -> None:
    """Without a supervisor it gives up."""
    idle(worker, beats=True)
    with pytest.raises(Alone, match=f"none for {TERMS.patience_s:.0f} s"):
        idle(worker, beats=False)


def test_a_new_supervisor_is_heard(worker: Worker) -> None:
    """Its first beat counts like that of the one before."""
    idle(worker, beats=True)
    idle(worker, beats=False, time_s=TERMS.patience_s - 2 * TERMS.idle_s)
    worker.shared.path("journal", "2").mkdir()
    worker.shared.write(Beat(count=1), "journal", "2", BEAT)
    idle(worker, beats=False, time_s=TERMS.patience_s - 2 * TERMS.idle_s)


def test_a_worker_that_was_stopped_with_its_supervisor_waits_for_it(worker: Worker) -> None:
    """A suspended job: time in which it could hear nobody is no silence."""
    idle(worker, beats=True)
    for _ in range(2):
        worker.shared.clock.sleep(2 * TERMS.patience_s)
        assert worker._idle() is None
    idle(worker, beats=True)


def test_steps_are_counted(worker: Worker) -> None:
    """One more with each look between two of them."""
    for _ in range(3):
        worker.check()
    assert worker._state.step == 3
