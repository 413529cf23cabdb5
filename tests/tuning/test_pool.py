"""Restarts and failures of the workers of a command, tested without processes."""

from pathlib import Path
from types import SimpleNamespace

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


class Pool(WorkerPool):
    """A pool of one worker, which records starts instead of starting processes."""

    def __init__(self, folder: Path, gpu: int | None = None) -> None:
        slots, console = [Slot(None, gpu, 1, 1)], Console()
        super().__init__(folder, WorkerRequest(), slots, name="a", allocation=None, console=console)
        self.starts: list[list[str]] = []
        (self.worker,) = self.workers
        self.start_one(self.worker)

    def start(self, process: object, args: object) -> None:
        assert isinstance(process, WorkerProcess)
        assert isinstance(args, list)
        self.starts.append(args)
        self.exit(None)

    def exit(self, code: int | None) -> None:
        """Let the worker's process end with an exit code; None keeps it running."""
        self.worker.popen = SimpleNamespace(poll=lambda: code)  # type: ignore[assignment]

    def end(self, code: int, num_done: int = 0, *, has_begun: bool = False) -> None:
        """End the worker, tend the pool, and skip the pause before the worker's restart."""
        self.tend(num_done, {self.worker.uuid} if has_begun else set())
        self.exit(code)
        self.tend(num_done, set())
        if self.worker.not_before_s is not None:
            self.worker.not_before_s = 0
        self.tend(num_done, set())


@pytest.mark.parametrize("code", [-9, Interrupted.exit_code, RunError.exit_code])
def test_a_worker_that_had_a_trial_is_always_restarted(tmp_path: Path, code: int) -> None:
    """There is no limit; each restart is a new process, and the old process counts as ended."""
    pool = Pool(tmp_path)
    for n in range(2 * MAX_FAILURES):
        before = pool.worker.uuid
        assert before not in pool.ended
        pool.end(code, has_begun=True)
        assert (len(pool.starts), before in pool.ended) == (n + 2, True)
        assert pool.worker.uuid not in pool.ended


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (-9, ""),
        (DISK_CODE, ""),
        (RunError.exit_code, "OSError: [Errno 5] Input/output error: '/home/me/x.py'"),
        (RunError.exit_code, "srun: error: no controller"),
    ],
)
def test_a_signal_or_an_outage_fails_25_times(tmp_path: Path, code: int, line: str) -> None:
    """The command ends after 25 such failures of a worker that began no trial in between."""
    pool = Pool(tmp_path)
    pool.worker.log.parent.mkdir()
    pool.worker.log.write_text(line)
    pool.end(code, has_begun=True)
    for _ in range(MAX_FAILURES - 1):
        pool.end(code)
    with pytest.raises(RunError, match=f"failed 25 times: {line[:7] or f'exit code {code}'}"):
        pool.end(code)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (RunError.exit_code, RunError),
        (NODE_FAULT_CODE, NodeFault),
        (InputError.exit_code, InputError),
    ],
)
def test_three_errors_in_a_row_end_the_command(
    tmp_path: Path, code: int, error: type[Exception]
) -> None:
    """The count starts again when any worker ends a trial."""
    pool = Pool(tmp_path)
    for num_done in range(2 * MAX_ERRORS):
        pool.end(code, num_done)
    for _ in range(MAX_ERRORS - 2):
        pool.end(code, num_done)
    with pytest.raises(error, match="worker a-w0 failed 3 times: the process ended with exit code"):
        pool.end(code, num_done)


def test_outages_do_not_count_as_errors(tmp_path: Path) -> None:
    """Outages of the disk, more than the allowed number of errors, precede two errors."""
    pool = Pool(tmp_path)
    for code in [DISK_CODE] * MAX_ERRORS + [RunError.exit_code] * (MAX_ERRORS - 1):
        pool.end(code)
    with pytest.raises(RunError, match="failed 6 times"):
        pool.end(RunError.exit_code)


def test_each_process_has_its_own_count(tmp_path: Path) -> None:
    """An accepted trial starts the counts of all processes again, not only the first count."""
    pool = Pool(tmp_path)
    for _ in range(MAX_ERRORS - 1):
        pool.end(RunError.exit_code, 0)
    pool.proposer.popen = SimpleNamespace(poll=lambda: RunError.exit_code)  # type: ignore[assignment]
    pool.tend(1, set())
    pool.end(RunError.exit_code, 1)
    assert len(pool.worker.failures) == 1


def test_a_failed_worker_is_restarted_after_a_growing_pause(tmp_path: Path) -> None:
    """The pause grows by two seconds per failure."""
    pool = Pool(tmp_path)
    for n in range(1, 3):
        pool.exit(RunError.exit_code)
        pool.tend(0, set())
        assert len(pool.starts) == n
        assert pool.worker.not_before_s
        pool.worker.not_before_s -= 2 * n
        pool.tend(0, set())
        assert len(pool.starts) == n + 1


def test_a_worker_without_work_is_not_restarted(tmp_path: Path) -> None:
    """Exit code 0 means that the search is over or stopped; the proposer was never started."""
    pool = Pool(tmp_path)
    assert [each.is_done for each in pool.everybody] == [False, True]
    pool.end(0)
    assert ([each.is_done for each in pool.everybody], len(pool.starts)) == ([True, True], 1)


@pytest.mark.parametrize(("gpu", "word"), [(None, "--devices=cpu"), (0, "HARNESS_GPU=0")])
def test_a_worker_gets_the_gpu_of_its_slot(tmp_path: Path, gpu: int | None, word: str) -> None:
    """A worker whose slot has no GPU uses the CPU."""
    assert word in Pool(tmp_path, gpu).starts[0]
