"""A job whose node has faulty GPUs moves to another node, at most twice."""

from typing import Any

from harness.slurm.batch import Counters
from tests.slurm.cluster import wait_until
from tests.slurm.project import SlurmProject
from tests.system.driver import broken_driver

__all__ = ["broken_driver"]  # a fixture that pytest finds in this module

ONE_GPU = ("--gres=gpu:1", "--cpus-per-task=1", "--mem=4G")


def test_a_job_leaves_a_node_whose_driver_is_broken(
    project: SlurmProject, broken_driver: dict[str, str]
) -> None:
    """The job is requeued and excludes the node; the log names the node and the reason."""
    variables: dict[str, Any] = {"HARNESS_DEVICES": "", **broken_driver}
    job = project.sbatch("lstm", *ONE_GPU, "--nodelist=n1", **variables)
    told = "n1: faulty, see above; the job avoids faulty nodes from now on"
    wait_until(lambda: job.log.exists() and told in job.log.read_text(), timeout_s=60)
    wait_until(lambda: job.cluster.show(job.job_id)["ExcNodeList"] == "n1", timeout_s=20)
    assert job.requeues() == 1
    log = job.log.read_text()
    assert "cuInit failed: CUDA_ERROR_SYSTEM_NOT_READY" in log
    assert not job.run.exists()
    job.cluster.run("scancel", job.job_id)


def test_a_job_that_finds_its_third_broken_node_stays_failed(
    project: SlurmProject, broken_driver: dict[str, str]
) -> None:
    """After three nodes the job may be the cause; it ends with exit code 1 and names the nodes."""
    variables: dict[str, Any] = {"HARNESS_DEVICES": "", **broken_driver}
    job = project.sbatch("lstm", *ONE_GPU, "--hold", **variables)
    Counters(idle=2, faulty=("n8", "n9")).write(job.counters)
    job.cluster.run("scontrol", "release", job.job_id)
    job.wait("FAILED", timeout_s=60)
    assert job.cluster.show(job.job_id)["ExitCode"] == "1:0"
    assert job.log.read_text().splitlines()[-1].endswith("nodes n8, n9, n1 were faulty")
