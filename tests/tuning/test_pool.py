"""The processes of a command, without processes: what their ends mean."""

from pathlib import Path

import pytest

from harness.errors import InputError, Interrupted, NodeFault, RunError
from harness.slurm.pool import Slot
from harness.system.console import Console
from harness.tuning.pool import (
    DISK_CODE,
    MAX_ERRORS,
    MAX_FAILURES,
    NODE_FAULT_CODE,
    WorkerPool,
    WorkerProcess,
    WorkerRequest,
)


class Process:
    """A process that runs, or has ended with a code."""

    def __init__(self, code: int | None = None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code


class Pool(WorkerPool):
    """One worker, whose starts are only noted."""

    def __init__(self, folder: Path, gpu: int | None = None) -> None:
        slots = [Slot(None, gpu, 1, 1)]
        given = {"name": "a", "allocation": None, "console": Console()}
        super().__init__(folder, WorkerRequest(), slots, **given)  # type: ignore[arg-type]
        self.starts: list[list[str]] = []
        (self.worker,) = self.workers
        self.start_one(self.worker)

    def start(self, process: object, args: object) -> None:
        assert isinstance(process, WorkerProcess)
        assert isinstance(args, list)
        self.starts.append(args)
        process.popen = Process()  # type: ignore[assignment]

    def end(self, code: int, num_done: int = 0, *, has_begun: bool = False) -> None:
        """The worker, which has had a trial or not, ends with a code and is looked after."""
        self.tend(num_done, {self.worker.uuid} if has_begun else set())
        self.worker.popen = Process(code)  # type: ignore[assignment]
        self.tend(num_done, set())
        if self.worker.not_before_s is not None:
            self.worker.not_before_s = 0  # the pause before the next start is over
        self.tend(num_done, set())


@pytest.mark.parametrize("code", [-9, Interrupted.exit_code, RunError.exit_code])
def test_a_worker_that_had_a_trial_is_started_again(tmp_path: Path, code: int) -> None:
    """As another process, however often; the one before counts as ended from then on."""
    pool = Pool(tmp_path)
    for n in range(2 * MAX_FAILURES):
        before = pool.worker.uuid
        assert before not in pool.ended
        pool.end(code, has_begun=True)
        assert (len(pool.starts), before in pool.ended) == (n + 2, True)
        assert pool.worker.uuid not in pool.ended


@pytest.mark.parametrize("code", [-9, 137, DISK_CODE])
def test_a_worker_that_is_ended_before_its_first_trial_has_failed(
    tmp_path: Path, code: int
) -> None:
    """It may lack memory to start at all, or the disk; a process before it had a trial."""
    pool = Pool(tmp_path)
    pool.end(code, has_begun=True)
    for _ in range(MAX_FAILURES - 1):
        pool.end(code)
    with pytest.raises(RunError, match=f"failed 25 times: exit code {code}; last line: it ended"):
        pool.end(code)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (RunError.exit_code, RunError),
        (NODE_FAULT_CODE, NodeFault),
        (InputError.exit_code, InputError),
    ],
)
def test_three_errors_in_a_row_end_the_sweep(
    tmp_path: Path, code: int, error: type[Exception]
) -> None:
    """A trial that ended in between, whoever trained it, begins the count anew."""
    pool = Pool(tmp_path)
    for num_done in range(2 * MAX_ERRORS):
        pool.end(code, num_done)
    for _ in range(MAX_ERRORS - 2):
        pool.end(code, num_done)
    with pytest.raises(error, match="worker a-w0 failed 3 times: it ended with exit code"):
        pool.end(code, num_done)


@pytest.mark.parametrize(
    "line", ["OSError: [Errno 5] Input/output error: '/home/me/x.py'", "srun: error: no controller"]
)
def test_what_fails_around_workers_is_waited_for(tmp_path: Path, line: str) -> None:
    """The disk with the environment, Slurm's controller: ten minutes of pauses."""
    pool = Pool(tmp_path)
    pool.worker.log.parent.mkdir()
    pool.worker.log.write_text(f"{line}\n")
    for _ in range(MAX_FAILURES - 1):
        pool.end(RunError.exit_code)
    with pytest.raises(RunError, match=f"failed 25 times: {line[:7]}"):
        pool.end(RunError.exit_code)


def test_a_failed_worker_is_started_after_a_pause(tmp_path: Path) -> None:
    """A longer one each time."""
    pool = Pool(tmp_path)
    for n in range(1, 3):
        pool.worker.popen = Process(RunError.exit_code)  # type: ignore[assignment]
        pool.tend(0, set())
        assert len(pool.starts) == n
        assert pool.worker.not_before_s
        pool.worker.not_before_s -= 2 * n
        pool.tend(0, set())
        assert len(pool.starts) == n + 1


def test_a_worker_that_is_done_is_not_started_again(tmp_path: Path) -> None:
    """It has seen that the search is over, or stopped; a command that sees otherwise starts it."""
    pool = Pool(tmp_path)
    assert [each.is_done for each in pool.everybody] == [False, True]  # the proposer: never begun
    pool.end(0)
    assert ([each.is_done for each in pool.everybody], len(pool.starts)) == ([True, True], 1)


def test_a_worker_is_told_its_gpu_or_that_it_has_none(tmp_path: Path) -> None:
    """The first one has the index 0."""
    for gpu, word in ((None, "--devices=cpu"), (0, "HARNESS_GPU=0")):
        assert word in Pool(tmp_path, gpu).starts[0]
