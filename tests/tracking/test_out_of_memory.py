"""What a job asked for and used that Slurm killed whole, from its log, its run and the queue."""

import json
from pathlib import Path

import pytest

from harness.slurm.queue import QueuedJob
from harness.tracking.job_end import Shortage, shortage_of
from harness.tracking.records import RunStatus

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
    ("log", "state", "told", "more_mb"),
    [
        (BEGIN + EXCEEDED, None, "0.3 GB asked, 0.5 GB used when last seen", 450),
        (BEGIN + CGROUP, None, "17.2 GB asked, 16.9 GB used when last seen", 24605),
        ("", "OUT_OF_MEMORY", "2.1 GB asked, 16.9 GB used when last seen", 3072),
        (EXCEEDED + BEGIN + "ERROR another failure\n", None, None, None),
        (BEGIN, "FAILED", None, None),
        # What nobody wrote so.
        (
            "job 7 on n1: 1.2.3 GB\n" + CGROUP,
            None,
            "2.3 GB asked, 16.9 GB used when last seen",
            3290,
        ),
        (
            f"memory limit ({'9' * 5000} > 1) exceeded job memory limit",
            None,
            "2.1 GB asked, 16.9 GB used when last seen",
            3072,
        ),
    ],
)
def test_asked_and_used(
    tmp_path: Path, log: str, state: str | None, told: str | None, more_mb: int | None
) -> None:
    """The last start counts; the log says it best, then the run's record and heartbeat."""
    (tmp_path / "job.out").write_text(log)
    record = {"slurm": {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "2048"}}
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    status = RunStatus(
        run="lstm/slurm-7",
        folder=tmp_path,
        log=str(tmp_path / "job.out"),
        device={"memory_gb": 16.9},
        queued=QueuedJob("7", "7", state, "", 0.0, "") if state else None,
    )
    found = shortage_of(status)
    assert (str(found) if found else None, found.more_mb if found else None) == (told, more_mb)


@pytest.mark.parametrize("number", ["\u00b2", "9" * 5000, "-1"])
def test_a_record_without_numbers_says_nothing(tmp_path: Path, number: str) -> None:
    """A run's record may be another user's, and hold anything."""
    names = ("NUM_NODES", "CPUS_PER_TASK", "MEM_PER_NODE", "GPUS_ON_NODE", "MEM_PER_GPU")
    slurm = {f"SLURM_{name}": number for name in names} | {"SLURM_JOB_NUM_NODES": number}
    slurm |= {"SLURM_JOB_ID": "7", "SLURM_TRES_PER_TASK": f"cpu={number}"}
    (tmp_path / "provenance.json").write_text(json.dumps({"slurm": slurm}))
    queued = QueuedJob("7", "7", "OUT_OF_MEMORY", "", 0.0, "")
    assert shortage_of(RunStatus("a", tmp_path, queued=queued)) == Shortage(None, None)


def test_what_nobody_knows_is_left_out() -> None:
    """A job with all memory of its node is given no number."""
    assert (str(Shortage(None, None)), Shortage(None, 1.0).more_mb) == (
        "all memory of the node asked",
        None,
    )
