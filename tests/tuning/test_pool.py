"""The worker processes of a command, without processes: their clocks, and what their ends mean."""

import time
from pathlib import Path

import pytest

from harness.errors import InputError, Interrupted, NodeFault, RunError
from harness.slurm.placement import Slot
from harness.system.console import Console
from harness.tuning.course import Heard
from harness.tuning.pool import (
    MAX_FAILURES,
    MAX_IN_OUTAGE,
    MAX_KILLS,
    NODE_FAULT_CODE,
    RESTART_CODE,
    START_STALL_S,
    STOPPED_CODE,
    WorkerPool,
    WorkerProcess,
    WorkerRequest,
)
from harness.tuning.records import Attempt, Beat


class Process:
    """A process that runs, or has ended with a code."""

    def __init__(self, code: int | None = None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code


class Pool(WorkerPool):
    """One worker, whose starts and ends are only noted."""

    def __init__(self, folder: Path, gpu: int | None = None) -> None:
        slots = [Slot(None, gpu, 1, 1)]
        given = {"name": "a", "allocation": None, "console": Console()}
        super().__init__(folder, WorkerRequest(), slots, **given)  # type: ignore[arg-type]
        self.killed: list[object] = []
        self.num_starts = 0
        (self.worker,) = self.workers
        self.start_all()
        self.num_starts = 1  # of the worker, not of the proposer

    def _start(self, worker: WorkerProcess) -> None:
        self.num_starts += 1
        worker.uuid, worker.failure_noted = f"{self.num_starts:032x}", False
        worker.popen = Process()  # type: ignore[assignment]

    def kill(self, processes: object) -> None:
        self.killed.append(processes)

    def see(self, step: int, *, n: int = 3, has_gpu: bool = False, num_done: int = 0) -> None:
        """Look after the worker, which was seen with a trial at a step."""
        attempt = Attempt(worker=self.worker.uuid, has_gpu=has_gpu)
        self.tend(num_done, {n: Heard(1, attempt, 0.0, Beat(count=1, step=step))})

    def end(self, code: int, num_done: int = 0, *, has_begun: bool = False) -> None:
        """The worker, which has had a trial or not, ends with a code and is looked after."""
        if has_begun:
            self.see(1, num_done=num_done)
        self.worker.popen = Process(code)  # type: ignore[assignment]
        self.tend(num_done, {})
        self.worker.not_before_s = 0  # the pause before the next start is over
        self.tend(num_done, {})


@pytest.mark.parametrize(
    ("gpu", "step", "limit_s"),
    [(None, 1, 900), (None, 9, 900), (0, 1, START_STALL_S), (0, 2, 900)],
)
def test_a_gpu_may_compile_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: int | None, step: int, limit_s: float
) -> None:
    """From the first step on, and on CPUs, a worker is stalled after 15 minutes."""
    pool, now = Pool(tmp_path, gpu), [1e6]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for after_s in range(0, int(limit_s), 5):
        now[0] = 1e6 + after_s
        pool.see(step, has_gpu=gpu is not None)
    assert pool.killed == []
    for now[0] in (1e6 + limit_s, 1e6 + limit_s + 1):
        pool.see(step, has_gpu=gpu is not None)
    assert pool.killed == [[pool.worker]]


def test_a_worker_that_was_stopped_with_its_pool_is_not_stalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suspended job: at its return the pool may look before the worker has taken a step."""
    pool, now = Pool(tmp_path), [1e6]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for now[0] in (1e6, 1e6 + 10_000, 1e6 + 20_000):
        pool.see(9)
    assert pool.killed == []


def test_a_worker_without_a_trial_never_stalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a trial, which may take as long as another worker's."""
    pool, now = Pool(tmp_path), [1e6]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for now[0] in (1e6, 2e6):
        pool.tend(0, {})
    assert pool.killed == []


@pytest.mark.parametrize("code", [-9, Interrupted.exit_code, RESTART_CODE])
def test_a_worker_that_was_ended_is_started_again(tmp_path: Path, code: int) -> None:
    """As another process, however often; the one before counts as ended from then on."""
    pool = Pool(tmp_path)
    for n in range(2 * MAX_FAILURES):
        before = pool.worker.uuid
        assert before not in pool.ended
        pool.end(code, has_begun=code < 0)
        assert (pool.num_starts, before in pool.ended) == (n + 2, True)
        assert pool.worker.uuid not in pool.ended


@pytest.mark.parametrize("code", [-9, 137])
def test_a_worker_that_is_ended_before_its_first_trial_has_failed(
    tmp_path: Path, code: int
) -> None:
    """It may lack memory to start at all; that a process before it had a trial is no matter."""
    pool = Pool(tmp_path)
    pool.end(code, has_begun=True)
    for _ in range(MAX_KILLS - 1):
        pool.end(code)
    with pytest.raises(RunError, match=f"failed 25 times: exit code {code} before its first trial"):
        pool.end(code)


@pytest.mark.parametrize(
    ("code", "error"), [(RunError.exit_code, RunError), (NODE_FAULT_CODE, NodeFault)]
)
def test_three_failures_in_a_row_end_the_sweep(
    tmp_path: Path, code: int, error: type[RunError]
) -> None:
    """A trial that ended in between, whoever trained it, begins the count anew."""
    pool = Pool(tmp_path)
    for num_done in range(2 * MAX_FAILURES):
        pool.end(code, num_done)
    for _ in range(MAX_FAILURES - 2):
        pool.end(code, num_done)
    with pytest.raises(error, match="failed 3 times: it ended with exit code"):
        pool.end(code, num_done)


def test_a_disk_that_fails_while_workers_start_is_waited_for(tmp_path: Path) -> None:
    """As Slurm's controller is; what is no word of a disk ends the sweep after three."""
    pool = Pool(tmp_path)
    pool.worker.log.parent.mkdir()
    pool.worker.log.write_text("OSError: [Errno 5] Input/output error: '/home/me/x.py'\n")
    for _ in range(MAX_IN_OUTAGE - 1):
        pool.end(RunError.exit_code)
    with pytest.raises(RunError, match="failed 30 times: OSError"):
        pool.end(RunError.exit_code)


def test_what_ends_a_command_at_once(tmp_path: Path) -> None:
    """A refused input."""
    with pytest.raises(InputError, match="worker a-w0"):
        Pool(tmp_path).end(InputError.exit_code)


@pytest.mark.parametrize("code", [0, STOPPED_CODE])
def test_a_worker_that_is_done_is_not_started_again(tmp_path: Path, code: int) -> None:
    """It has seen that the search is over, or stopped; then it may go on."""
    pool = Pool(tmp_path)
    pool.end(code)
    pool.tend(0, {})
    assert (pool.num_starts, pool.num_stopped) == (1, code == STOPPED_CODE)
    pool.start_all()
    assert (pool.num_starts, pool.num_stopped) == (2, 0)


def test_a_worker_is_told_its_gpu_or_that_it_has_none(tmp_path: Path) -> None:
    """The first one has the index 0."""
    for gpu, words in ((None, ["--devices", "cpu"]), (0, ["--gpu", "0"])):
        pool = Pool(tmp_path, gpu)
        assert pool._args(pool.worker)[-2:] == words
