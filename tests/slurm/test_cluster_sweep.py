"""Searches on a real Slurm cluster: workers as job steps, warnings, requeues, arrays."""

import contextlib
import csv
import os
import signal
from pathlib import Path

import pytest

from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import Harness
from tests.slurm.cluster import wait_until
from tests.slurm.project import SlurmProject, Submitted
from tests.slurm.test_cluster_jobs import has_pending
from tests.tuning.test_sweep import SEARCH, Sweeps, by_settings, calm
from tests.tuning.test_sweep_trouble import BRIEF

__all__ = ["calm"]  # a fixture that pytest finds in this module

TWO_GPUS = ("--gres=gpu:2", "--cpus-per-task=2", "--mem=8G")


@pytest.fixture(scope="module")
def search(project: SlurmProject) -> Path:
    """A job file in the project; it describes the search of tests/tuning/test_sweep.py."""
    path = project.path / "jobs/small.toml"
    path.write_text(SEARCH)
    return path


def tune(project: SlurmProject, *flags: str, arguments: list[str]) -> Submitted:
    """Submit `slurm/tune.sh`; in the returned job, `run` is the sweep's folder."""
    job = project.sbatch("tune", *flags, arguments=arguments)
    return Submitted(
        job.cluster, job.job_id, job.log, project.path / f"runs/small/slurm-{job.job_id}"
    )


def rows(job: Submitted) -> list[dict[str, str]]:
    """Return the rows of the sweep's leaderboard."""
    with (job.run / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def ended_once(job: Submitted) -> bool:
    """Whether all four trials have finished."""
    return [trial.status for trial in SweepDirectory(job.run).trials()] == ["finished"] * 4


@pytest.mark.slow
def test_each_worker_of_a_search_has_a_gpu_and_refuses_the_cpu(
    project: SlurmProject, search: Path
) -> None:
    """Two workers have a simulated GPU each, but no driver, so the exit code is 2."""
    job = project.sbatch("tune", *TWO_GPUS, arguments=["jobs/small.toml"], HARNESS_DEVICES="")
    job.wait("FAILED", timeout_s=180)
    assert job.cluster.show(job.job_id)["ExitCode"] == "2:0"
    folder = project.path / f"runs/small/slurm-{job.job_id}/workers"
    logs = [(folder / f"job{job.job_id}-w{i}.log").read_text() for i in range(2)]
    for gpu, log in enumerate(logs):
        if log:  # the first refusal ends both workers
            assert f"CUDA_VISIBLE_DEVICES={gpu}, but TensorFlow sees no GPU" in log
    assert any(logs)
    assert "there is no NVIDIA driver here" in job.log.read_text()


def test_a_search_uses_every_cpu_of_its_job(
    project: SlurmProject, search: Path, calm: Sweeps
) -> None:
    """Two workers, each a job step with one CPU, reach the scores of an undisturbed search."""
    flags = ("--gres=none", "--cpus-per-task=2", "--mem=8G")
    job = tune(project, *flags, arguments=["jobs/small.toml"])
    words = ("squeue", "--steps", f"--jobs={job.job_id}", "--noheader", "--format=%j")
    steps = {f"job{job.job_id}-w{i}" for i in range(2)}
    wait_until(lambda: steps <= set(job.cluster.run(*words).split()), timeout_s=60)
    job.wait(timeout_s=180)
    assert by_settings(rows(job)) == by_settings(calm.rows("calm"))
    assert "best of 4 trials" in job.log.read_text()


def stop_workers(job: Submitted) -> list[int]:
    """Send SIGSTOP to a job's workers after the first checkpoint; return their process ids.

    Otherwise all four trials, which take a second each, would end before Slurm acts.
    """
    saved = "trials/*/*/seed1/checkpoints/step-*.npz"
    wait_until(lambda: any(job.run.glob(saved)), timeout_s=120, poll_s=0.05)
    workers = workers_of(job)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    return workers


def workers_of(job: Submitted) -> list[int]:
    """Return the process ids of a job's workers."""
    found = []
    for process in job.cluster.processes():
        with contextlib.suppress(OSError):  # the process has ended
            program, *words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
            proposes = any(word.startswith("--ahead=") for word in words)
            is_ours = {"harness.tuning.worker", str(job.run)} <= {*words} and not proposes
            if is_ours and Path(program).name != "srun":
                found.append(process)
    return found


@pytest.mark.slow
def test_a_search_that_is_warned_goes_on_and_others_join(
    project: SlurmProject, search: Path, calm: Sweeps
) -> None:
    """An array joins the search while the warned job is requeued, and no trial is lost."""
    flags = ("--gres=none", "--cpus-per-task=1", "--mem=4G")
    job = tune(project, *flags, arguments=["jobs/small.toml", "--workers", "1"])
    (worker,) = stop_workers(job)
    job.warn()
    wait_until(lambda: has_pending(worker, signal.SIGUSR2), timeout_s=60)
    joined = project.sbatch("tune", *flags, "--array=1-2", arguments=["--join", str(job.run)])
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker, signal.SIGCONT)
    wait_until(lambda: job.requeues() == 1, timeout_s=60)
    job.wait(timeout_s=180)
    for task in (1, 2):
        of = project.submitted("tune", f"{joined.job_id}_{task}", joined.log)
        of.wait(timeout_s=90)
    assert by_settings(rows(job)) == by_settings(calm.rows("calm"))
    assert ended_once(job)
    assert job.requeues() == 1
    assert "interrupted by SIGUSR2; trials saved" in job.log.read_text()
    assert len(list((job.run / "workers").glob("job*-w0.log"))) == 3
    log = (job.run / f"workers/job{job.job_id}-w0.log").read_text()
    assert " ERROR SIGUSR2\n" in log  # the worker was not killed


@pytest.mark.slow
def test_a_search_on_two_nodes_that_is_cancelled_can_go_on(
    project: SlurmProject, search: Path, calm: Sweeps
) -> None:
    """After scancel both nodes save their trials; `resume` continues the search on this machine."""
    flags = ("--nodes=2", "--gres=none", "--nodelist=n[3-4]", "--cpus-per-task=1", "--mem=4G")
    job = tune(project, *flags, arguments=["jobs/small.toml"])
    assert stop_workers(job)  # Slurm continues stopped processes in order to end them
    job.cluster.run("scancel", job.job_id)
    job.wait("CANCELLED")
    wait_until(lambda: job.record()["phase"] == "interrupted", timeout_s=30)
    done = calm.harness.run("resume", job.run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert by_settings(rows(job)) == by_settings(calm.rows("calm"))
    assert ended_once(job)


@pytest.mark.slow
def test_an_array_is_one_search_whose_tasks_come_and_go(
    project: SlurmProject, tmp_path: Path
) -> None:
    """Of eight tasks, two are cancelled, some lose their node, and three begin late."""
    (project.path / "jobs/small.toml").write_text(BRIEF)
    calm = Sweeps(Harness(tmp_path), BRIEF)
    done = calm.harness.run("tune", calm.job, "--sweep-id", "calm", "--workers", 1, timeout_s=900)
    assert done.returncode == 0, done.stderr
    flags = ("--gres=none", "--cpus-per-task=1", "--mem=1G", "--array=1-8%5")
    job = tune(project, *flags, arguments=["jobs/small.toml", "--workers", "1"])
    cluster = job.cluster

    def num_done() -> int:
        return len(list(job.run.glob("trials/*/accepted")))

    wait_until(lambda: num_done() >= 3, timeout_s=300)
    for task in (1, 2):
        cluster.run("scancel", f"{job.job_id}_{task}")
    wait_until(lambda: num_done() >= 8, timeout_s=600)
    found = {task: cluster.show(f"{job.job_id}_{task}") for task in range(3, 9)}
    at_work = {task: each for task, each in found.items() if each["JobState"] == "RUNNING"}
    node = next(iter(at_work.values()))["NodeList"]
    lost = [task for task, each in at_work.items() if each["NodeList"] == node]
    cluster.kill_node(node, *(at_work[task]["JobId"] for task in lost))
    try:
        for task in range(3, 9):
            project.submitted("tune", f"{job.job_id}_{task}", job.log).wait(timeout_s=900)
    finally:
        cluster.restart_node(node)
    assert [trial.status for trial in SweepDirectory(job.run).trials()] == ["finished"] * 24
    keys = ("model.units", "model.dropout", "train.learning_rate", "val_loss", "status", "rank")
    boards = [
        [{k: row[k] for k in keys} for row in each] for each in (rows(job), calm.rows("calm"))
    ]
    assert boards[0] == boards[1]
    logs = (job.run / "workers").glob(f"job{job.job_id}_*-w0.log")
    assert sum(", seed 1" in log.read_text() for log in logs) >= 5
    states = {task: cluster.show(f"{job.job_id}_{task}")["JobState"] for task in (1, 2)}
    assert set(states.values()) == {"CANCELLED"}
