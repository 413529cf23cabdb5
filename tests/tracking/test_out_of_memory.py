"""Whether Slurm killed a whole job for want of memory, by its log and the queue."""

from pathlib import Path

import pytest

from harness.slurm.queue import QueuedJob
from harness.tracking.records import RunStatus
from harness.tracking.status import was_out_of_memory

BEGIN = "2026-01-01 12:00:00 INFO job 7 on n1: no GPUs, 4 CPUs, 17.2 GB\n"
# As Slurm 24.11 writes them: by its own accounting, and by the kernel's cgroup.
EXCEEDED = """\
slurmstepd-n1: error: StepId=7.batch exceeded memory limit (451346432 > 314572800), being killed
slurmstepd-n1: error: Exceeded job memory limit
"""
CGROUP = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step tasks have "
    "been OOM Killed.\n"
)


@pytest.mark.parametrize(
    ("log", "state", "expected"),
    [
        (BEGIN + EXCEEDED, None, True),
        (BEGIN + CGROUP, None, True),
        ("", "OUT_OF_MEMORY", True),
        (EXCEEDED + BEGIN + "ERROR another failure\n", None, False),
        (BEGIN, "FAILED", False),
    ],
)
def test_the_last_start_counts(tmp_path: Path, log: str, state: str | None, expected: bool) -> None:
    """A job's log is written on by each of its starts."""
    (tmp_path / "job.out").write_text(log)
    queued = QueuedJob("7", "7", state, "", 0.0, "") if state else None
    status = RunStatus("lstm/slurm-7", tmp_path, log=str(tmp_path / "job.out"), queued=queued)
    assert was_out_of_memory(status) is expected
