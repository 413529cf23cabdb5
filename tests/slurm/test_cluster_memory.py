"""Slurm kills a job that exceeds its memory, and the job script with it."""

import re

import pytest

from tests.slurm.cluster import wait_until
from tests.slurm.project import SlurmProject
from tests.slurm.test_cluster_submit import Submitter


@pytest.mark.full
def test_status_tells_why_a_job_was_killed(project: SlurmProject) -> None:
    """`status` finds the job and its log through the record of the submission."""
    submitter = Submitter.of(project)
    (record,) = submitter.submit(project.path / "jobs/gru.toml", "--gpus", 0, "--mem", "300M")
    project.cluster.wait(record["job_id"], ["FAILED", "OUT_OF_MEMORY"])
    said = "out of memory; .*--mem"

    def is_said() -> bool:
        done = submitter.harness.run_here("status", "--all")
        return re.search(said, " ".join(done.stdout.split())) is not None

    # `status` says this only when squeue's answer is newer than the run's heartbeat, because a
    # newer heartbeat could belong to a later start.
    wait_until(is_said, timeout_s=60)
