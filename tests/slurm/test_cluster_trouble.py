"""A job loses its node, the controller or a worker, or its node has faulty GPUs."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from harness.slurm.batch import Counters
from tests.conftest import SHRUNK, Harness, results
from tests.slurm.cluster import ENDED, wait_until
from tests.slurm.project import SlurmProject, Submitted
from tests.system.driver import broken_driver
from tests.training.kills import newest_step

__all__ = ["broken_driver"]  # a fixture that pytest finds in this module

# Fewer epochs than in JOB, because several devices are slower.
TWO_REPLICAS = [*SHRUNK, "--set", "train.batch_size=8", "--set", "train.epochs=3"]
# Variables of a shell that runs in another job and calls sbatch. If the new job kept these
# variables, its calls of srun would fail: they set a second option for memory, and request GPUs
# that the job does not have.
SESSION: dict[str, Any] = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x2",
    "SLURM_MEM_PER_CPU": "1000",
    "SLURM_GPUS_PER_NODE": "1",
}
ONE_GPU = ("--gres=gpu:1", "--cpus-per-task=1", "--mem=4G")
TWO_NODES = ("--nodes=2", "--gres=none", "--nodelist=n[3-4]", "--cpus-per-task=1", "--mem=8G")


@pytest.fixture(scope="module")
def on_two_devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the LSTM outside of Slurm, on two devices of one process."""
    harness = Harness(tmp_path_factory.mktemp("two"))
    done = harness.train("lstm", "calm", "--devices", "cpu:2", *TWO_REPLICAS)
    assert done.returncode == 0, done.stderr
    return harness.runs / "lstm" / "calm"


# Only nightly, because the next test is similar: it kills a node.
@pytest.mark.slow
def test_a_node_set_down_gives_its_job_to_another(project: SlurmProject, undisturbed: Path) -> None:
    """If the process on the first node is still alive, it respects the lease of the run."""
    job = project.sbatch("lstm")
    job.wait_for_step(20)
    node = job.cluster.show(job.job_id)["NodeList"]
    for state in ("DRAIN", "DOWN"):  # a node in state DOWN alone would return by itself
        job.cluster.run("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test")
    try:
        wait_until(lambda: job.requeues() == 1, timeout_s=30)
        job.wait()
        assert job.cluster.show(job.job_id)["NodeList"] != node
    finally:
        job.cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        wait_until(lambda: job.cluster.node_state(node) == "idle", timeout_s=30)
    assert results(job.run) == results(undisturbed)
    assert (job.requeues(), job.record()["restarts"]) == (1, 1)


def test_a_job_outlives_its_node_and_the_controller(
    project: SlurmProject, undisturbed: Path
) -> None:
    """The node dies with all processes of the job. Later the controller stops, and the job gets
    USR2. The job repeats its request for a requeue until the controller answers.
    """
    job = project.sbatch("lstm", HARNESS_RETRY_S="1")
    job.wait_for_step(20)
    node = job.cluster.show(job.job_id)["NodeList"]
    job.cluster.kill_node(node, job.job_id)
    try:
        wait_until(lambda: job.requeues() == 1, timeout_s=30)
        job.wait_for_step(newest_step(job.run) + 20)
        process = job.record()["process"]
        os.kill(process, signal.SIGSTOP)  # the run might finish before the controller stops
        assert job.cluster.show(job.job_id)["NodeList"] != node
    finally:
        job.cluster.restart_node(node)

    script = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    job.cluster.stop_controller()
    try:
        os.kill(script, signal.SIGUSR2)  # as slurmd would
        os.kill(process, signal.SIGCONT)
        # Another line follows, which says that the requeue failed.
        said = "interrupted by SIGUSR2"
        wait_until(lambda: job.log.read_text().partition(said)[2].count("\n") > 1, timeout_s=60)
    finally:
        job.cluster.restart_controller()
    wait_until(lambda: job.requeues() == 2, timeout_s=60)
    job.wait()
    assert results(job.run) == results(undisturbed)
    # Slurm may requeue a job once more by itself, but the script only asks until Slurm agrees.
    said = job.log.read_text()
    assert job.record()["restarts"] == 2, said
    assert said.count("is back in the queue") <= 1, said


def train_on_two_nodes(project: SlurmProject) -> Submitted:
    """Submit a job with two replicas, as a shell in another job would."""
    words = ["--devices", "cpu", *TWO_REPLICAS]
    return project.sbatch("lstm", *TWO_NODES, arguments=words, **SESSION)


def assert_two_replicas(job: Submitted, on_two_devices: Path) -> None:
    """Assert the same results as on two devices of one process, except for the devices' names."""
    ended, calm = results(job.run), results(on_two_devices)
    assert ended["result.json"].pop("devices") == ["n3/cpu:0", "n4/cpu:0"]
    del calm["result.json"]["devices"]
    assert ended == calm


def workers(job: Submitted) -> dict[str, int]:
    """Return the ids of a job's training processes, by node."""
    found = {}
    for process in job.cluster.processes():
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            if f"SLURM_JOB_ID={job.job_id}".encode() in variables and b"harness" in words:
                node = next(v for v in variables if v.startswith(b"SLURMD_NODENAME="))
                found[node.partition(b"=")[2].decode()] = process
    return found


@pytest.mark.parametrize("node", [pytest.param("n3", marks=pytest.mark.slow), "n4"])
def test_a_lost_worker_ends_the_step_and_the_job_goes_on(
    project: SlurmProject, on_two_devices: Path, node: str
) -> None:
    """The other worker ends, too, and the requeued job ends with the same bytes."""
    job = train_on_two_nodes(project)
    job.wait_for_step(20)
    os.kill(workers(job)[node], signal.SIGKILL)
    wait_until(lambda: job.requeues() == 1, timeout_s=60)
    job.wait(timeout_s=120)
    assert_two_replicas(job, on_two_devices)
    assert (job.requeues(), job.record()["restarts"]) == (1, 1)
    assert f"a lost worker on {node}" in job.log.read_text()
    record = json.loads((job.run / "provenance.json").read_text())
    assert record["starts"][0]["trusted_network"]


@pytest.mark.slow
def test_a_stopped_worker_ends_the_step_and_the_job_goes_on(
    project: SlurmProject, on_two_devices: Path
) -> None:
    """srun kills the stopped worker a minute after the other worker has ended."""
    job = train_on_two_nodes(project)
    job.wait_for_step(20)
    os.kill(workers(job)["n4"], signal.SIGSTOP)
    wait_until(lambda: job.requeues() == 1, timeout_s=180)
    job.wait(timeout_s=120)
    assert_two_replicas(job, on_two_devices)
    assert "a lost worker on n4" in job.log.read_text()


@pytest.mark.slow
def test_two_nodes_that_are_warned_save_and_go_on(
    project: SlurmProject, on_two_devices: Path
) -> None:
    """srun forwards USR2 to both workers, which stop at the same step."""
    job = train_on_two_nodes(project)
    job.wait_for_step(20)
    job.warn()
    wait_until(lambda: job.requeues() == 1, timeout_s=60)
    job.wait(timeout_s=120)
    assert_two_replicas(job, on_two_devices)
    assert (job.requeues(), job.record()["restarts"]) == (1, 1)
    assert "interrupted by SIGUSR2; checkpoint saved" in job.log.read_text()


@pytest.mark.slow
def test_two_nodes_save_when_their_script_gets_a_term(project: SlurmProject) -> None:
    """The script forwards the TERM as USR2, because srun kills its step after a TERM."""
    words = ["--set", "train.checkpoint_every_s=600", "--set", "train.epochs=500"]
    job = project.sbatch("lstm", *TWO_NODES, arguments=["--devices", "cpu", *TWO_REPLICAS, *words])
    begun = job.run / "state.json"
    wait_until(lambda: begun.exists() and job.record().get("step", 0) > 20, timeout_s=60)
    job.cluster.run("scancel", "--batch", "--signal=TERM", job.job_id)
    wait_until(lambda: job.cluster.state(job.job_id) in ENDED, timeout_s=30)
    assert (job.record()["phase"], newest_step(job.run) >= 20) == ("interrupted", True)


def test_a_failing_chief_ends_the_step_for_good(project: SlurmProject) -> None:
    """If one worker refuses its options, all workers end without a requeue; the log says why."""
    job = project.sbatch("lstm", *TWO_NODES, arguments=["--devices", "cpu:2", *TWO_REPLICAS])
    job.wait("FAILED", timeout_s=60)
    assert "devices cpu:2: should be one CPU device per node" in job.log.read_text()
    time.sleep(1)  # a wrong requeue would come within this time
    assert job.requeues() == 0


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
