"""Restarts and failures of the workers of a command, tested without processes."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import InputError, NodeFault, RunError
from harness.slurm.pool import ManagedProcess, Slot
from harness.system.console import Console
from harness.tuning.protocol import MAX_ATTEMPTS
from harness.tuning.worker import (
    DISK_CODE,
    MAX_ERRORS,
    MAX_FAILURES,
    NODE_FAULT_CODE,
    WorkerPool,
    WorkerRequest,
)

FAILED = RunError.exit_code


class Pool(WorkerPool):
    """A pool of one worker, which records starts instead of starting processes."""

    def __init__(self, folder: Path, gpu: int | None = None) -> None:
        slots, console = [Slot(None, gpu, 1, 1)], Console()
        super().__init__(folder, WorkerRequest(), slots, name="a", allocation=None, console=console)
        self.starts: list[Sequence[str]] = []
        (self.worker,) = self.workers
        self.start_one(self.worker)

    def start(self, process: ManagedProcess, args: Sequence[str]) -> None:
        self.starts.append(args)
        self.exit(None)

    def exit(self, code: int | None) -> None:
        """Let the worker's process end with an exit code; None keeps it running."""
        self.worker.popen = SimpleNamespace(poll=lambda: code)  # type: ignore[assignment]

    def end(self, code: int, num_done: int = 0) -> None:
        """End the worker, tend the pool, and skip the pause before the worker's restart."""
        self.exit(code)
        self.tend(num_done)
        if self.worker.not_before_s is not None:
            self.worker.not_before_s = 0
        self.tend(num_done)


@pytest.mark.parametrize(
    ("codes", "line", "error"),
    [
        ([-9] * MAX_FAILURES, "", RunError),
        ([DISK_CODE] * MAX_FAILURES, "", RunError),
        ([FAILED] * MAX_FAILURES, "OSError: [Errno 5] Input/output error: 'x'", RunError),
        ([FAILED] * MAX_FAILURES, "srun: error: no controller", RunError),
        ([FAILED] * MAX_ERRORS, "", RunError),
        ([NODE_FAULT_CODE] * MAX_ERRORS, "", NodeFault),
        ([InputError.exit_code] * MAX_ERRORS, "", InputError),
        ([DISK_CODE] * MAX_ERRORS + [FAILED], "", RunError),
    ],
)
def test_failures_in_a_row_end_the_command(
    tmp_path: Path, codes: list[int], line: str, error: type[Exception]
) -> None:
    """The command ends after an error that is at least the third failure, or after 30 outages."""
    pool = Pool(tmp_path)
    pool.worker.log.parent.mkdir()
    pool.worker.log.write_text(line)
    for code in codes[:-1]:
        pool.end(code)
    said = f"worker a-w0 failed {len(codes)} times: {line[:7]}"
    with pytest.raises(error, match=said):
        pool.end(codes[-1])


def test_a_trial_that_kills_its_workers_fails_before_the_command(tmp_path: Path) -> None:
    """After the last attempt, the command still starts the process that lets the trial fail."""
    pool = Pool(tmp_path)
    for _ in range(MAX_ATTEMPTS):
        pool.end(-9)
    assert len(pool.starts) == MAX_ATTEMPTS + 1


def test_an_accepted_trial_starts_all_counts_again(tmp_path: Path) -> None:
    """After a trial of any worker, the failures of every process are counted from 0 again."""
    pool = Pool(tmp_path)
    for num_done in range(2 * MAX_ERRORS):
        pool.end(FAILED, num_done)
        pool.proposer.popen = SimpleNamespace(poll=lambda: FAILED)  # type: ignore[assignment]
        pool.proposer.not_before_s = None
        pool.tend(num_done)
        assert [each.num_failures for each in pool.everybody] == [1, 1]


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
