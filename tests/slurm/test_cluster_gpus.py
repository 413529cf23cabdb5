"""GPUs that Slurm gave and a broken node can't use: the job goes elsewhere, twice at most."""

from typing import Any

from tests.slurm.cluster import wait_until
from tests.slurm.project import SlurmProject
from tests.system.driver import broken_driver

__all__ = ["broken_driver"]  # pytest takes the fixture from here

ONE_GPU = ("--gres=gpu:1", "--cpus-per-task=1", "--mem=4G")


def test_a_job_leaves_a_node_whose_driver_is_broken(
    project: SlurmProject, broken_driver: dict[str, str]
) -> None:
    """It goes back into the queue without that node, and its log names the node and the reason."""
    variables: dict[str, Any] = {"HARNESS_DEVICES": "", **broken_driver}
    job = project.sbatch("lstm", *ONE_GPU, "--nodelist=n1", **variables)
    told = "will not run on n1 again; tell your site"
    wait_until(lambda: job.log.exists() and told in job.log.read_text(), timeout_s=60)
    shown = job.cluster.show(job.job_id)
    assert shown["ExcNodeList"] == "n1"
    assert int(shown["Restarts"]) == 1
    log = job.log.read_text()
    assert "cuInit failed: CUDA_ERROR_SYSTEM_NOT_READY" in log
    assert not job.run.exists()
    job.cluster.run("scancel", job.job_id)


def test_a_job_that_finds_its_third_broken_node_stays_failed(
    project: SlurmProject, broken_driver: dict[str, str]
) -> None:
    """Then it may not be the nodes: exit code 1, and a line with all their names."""
    variables: dict[str, Any] = {"HARNESS_DEVICES": "", **broken_driver}
    job = project.sbatch("lstm", *ONE_GPU, "--hold", **variables)
    faults = project.path / f"runs/.submissions/node-faults-{job.job_id}"
    faults.parent.mkdir(parents=True, exist_ok=True)
    faults.write_text("n8 cuInit failed\nn9 cuInit failed\n")
    job.cluster.run("scontrol", "release", job.job_id)
    job.wait("FAILED", timeout_s=60)
    assert job.cluster.show(job.job_id)["ExitCode"] == "1:0"
    assert job.log.read_text().splitlines()[-1].endswith("n8 n9 were at fault one after another")
