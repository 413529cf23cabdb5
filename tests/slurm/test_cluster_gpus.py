"""A job whose node has faulty GPUs moves to another node, at most twice."""

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.slurm.batch import Counters
from tests.gpu.conftest import null_environment
from tests.gpu.null_gpu.make import DRIVER
from tests.slurm.cluster import SlurmCluster, wait_until
from tests.slurm.project import HARNESS, SlurmProject
from tests.system.driver import broken_driver

__all__ = ["broken_driver", "null_environment"]  # fixtures that pytest finds in this module

ONE_GPU = ("--gres=gpu:1", "--cpus-per-task=1", "--mem=4G")


def test_a_job_leaves_a_node_whose_driver_is_broken(
    project: SlurmProject, broken_driver: dict[str, str]
) -> None:
    """The job is requeued and excludes the node; the log names the node and the reason."""
    variables: dict[str, Any] = {"HARNESS_DEVICES": "", **broken_driver}
    job = project.sbatch("lstm", *ONE_GPU, "--nodelist=n1", **variables)
    told = "n1: faulty, see above; the job avoids this node from now on"
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
    """After three nodes the job may be the cause: it ends with code 1 and names the nodes."""
    variables: dict[str, Any] = {"HARNESS_DEVICES": "", **broken_driver}
    job = project.sbatch("lstm", *ONE_GPU, "--hold", **variables)
    Counters(idle=2, faulty=("n8", "n9")).write(job.counters)
    job.cluster.run("scontrol", "release", job.job_id)
    job.wait("FAILED", timeout_s=60)
    assert job.cluster.show(job.job_id)["ExitCode"] == "1:0"
    assert job.log.read_text().splitlines()[-1].endswith("nodes n8, n9, n1 were faulty")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stub", "said", "excluded"),
    [
        ("STUB_FAIL=cuEventQuery:214:150", "a kernel failed on the GPU: Unexpected", "n1"),
        ("STUB_HANG=cudnnRNNForward:3", "of n1: no step, batch or compilation has ended", "(null)"),
    ],
    ids=["aborts", "hangs"],
)
def test_a_job_whose_gpu_fails_goes_back_into_the_queue(
    cluster: SlurmCluster,
    tmp_path: Path,
    null_environment: Path,
    stub: str,
    said: str,
    excluded: str,
) -> None:
    """A fault of the GPU excludes the node, even if TensorFlow aborts; a hang does not."""
    project = SlurmProject(cluster, tmp_path, real=True)
    python = str(null_environment / "bin/python")
    script = HARNESS.replace(sys.executable, python)
    project.stand_in.executable(project.stand_in.venv / "bin/harness", script)
    name, _, value = stub.partition("=")
    variables: dict[str, Any] = {
        "HARNESS_DEVICES": "",
        "HARNESS_CHECK_DEVICES": "0",
        "HARNESS_STALL_MIN": "0.5",
        "LD_LIBRARY_PATH": str(null_environment / DRIVER),
        name: value,
    }
    job = project.sbatch("lstm", *ONE_GPU, "--nodelist=n1", **variables)
    wait_until(lambda: job.log.exists() and said in job.log.read_text(), timeout_s=90)
    wait_until(lambda: int(job.cluster.show(job.job_id)["Restarts"]) >= 1, timeout_s=60)
    wait_until(lambda: job.cluster.show(job.job_id)["ExcNodeList"] == excluded, timeout_s=20)
    job.cluster.run("scancel", job.job_id)
    (line,) = [each for each in job.log.read_text().splitlines() if said in each][:1]
    assert line[20:].startswith("ERROR ")
