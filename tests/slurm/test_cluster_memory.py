"""A job that Slurm kills whole, out of memory: nothing of it can say why."""

import re

import pytest

from tests.slurm.cluster import wait_until
from tests.slurm.project import SlurmProject
from tests.slurm.test_cluster_submit import Submitter


@pytest.mark.full
def test_status_tells_why_a_job_was_killed(project: SlurmProject) -> None:
    """Its script was killed too; the record of its submission leads to its log."""
    submitter = Submitter.of(project)
    (record,) = submitter.submit(project.path / "jobs/gru.toml", "--gpus", 0, "--mem", "300M")
    project.cluster.wait(record["job_id"], ["FAILED", "OUT_OF_MEMORY"])
    said = "out of memory; .*--mem"

    def is_said() -> bool:
        done = submitter.harness.run_here("status", "--all")
        return re.search(said, " ".join(done.stdout.split())) is not None

    # A heartbeat that is younger than the queue's answer may be of a later start.
    wait_until(is_said, timeout_s=60)
