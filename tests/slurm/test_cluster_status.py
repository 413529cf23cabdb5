"""`status`, `logs` and `cancel` on jobs of a real Slurm."""

import json
import os
import signal
from typing import Any

import pytest

from tests.conftest import SHRUNK, Harness
from tests.slurm.cluster import SEARCH_PATH, wait_until
from tests.slurm.project import JOB, SlurmProject, Submitted

LONG = [*JOB, "--set", "train.epochs=1000"]


class Watcher(Harness):
    """The harness on the login node of the project's cluster."""

    def __init__(self, project: SlurmProject) -> None:
        super().__init__(project.path)
        self.environment |= project.cluster.environment | {"PATH": SEARCH_PATH}

    def seen(self, *words: object) -> dict[str, dict[str, Any]]:
        """Return the rows of `status --json`, by run."""
        done = self.run("status", "--json", *words)
        assert (done.returncode, done.stderr) == (0, "")
        return {each["run"]: each for each in json.loads(done.stdout)}

    def state(self, run: str) -> str | None:
        state: str | None = self.seen().get(run, {}).get("state")
        return state


@pytest.fixture(scope="module")
def watched(project: SlurmProject) -> Watcher:
    """The harness on the login node, beside the project's jobs."""
    return Watcher(project)


def held(project: SlurmProject, *flags: str) -> Submitted:
    """Submit a job that waits until it is released."""
    return project.sbatch("lstm", "--hold", *flags, arguments=[])


def test_waiting_jobs_are_shown_with_slurms_reason_and_leave_by_cancel(
    watched: Watcher, project: SlurmProject
) -> None:
    """Jobs of plain sbatch are recognized by their script; `cancel` of a task keeps other tasks."""
    single, array = held(project), held(project, "--array=4-5")
    rows = watched.seen()
    for job_id, seed in ((single.job_id, None), (f"{array.job_id}_4", 4), (f"{array.job_id}_5", 5)):
        row = rows[f"lstm/slurm-{job_id}"]
        assert (row["state"], row["job"], row["seed"]) == ("pending", "lstm", seed)
        assert row["reason"].startswith("JobHeld")
    done = watched.run("cancel", f"{array.job_id}_4", single.job_id)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"lstm/slurm-{array.job_id}_4: job {array.job_id}_4 is out of the queue",
        f"lstm/slurm-{single.job_id}: job {single.job_id} is out of the queue",
    ]
    left = [run for run, row in watched.seen().items() if row["state"] == "pending"]
    assert left == [f"lstm/slurm-{array.job_id}_5"]
    watched.run("cancel", array.job_id)


def test_a_running_job_is_seen_and_cancelled_once_it_has_saved(
    watched: Watcher, project: SlurmProject
) -> None:
    """`cancel` returns after the job has saved its run; the job stays cancelled."""
    job = project.sbatch("lstm", "--array=1-1", arguments=LONG)
    task = project.submitted("lstm", f"{job.job_id}_1", job.log)
    task.wait_for_step(20)
    row = watched.seen(f"{job.job_id}_1")[f"lstm/slurm-{job.job_id}_1"]
    assert (row["state"], row["slurm_job"], row["seed"]) == ("running", f"{job.job_id}_1", 1)
    assert row["reviews_per_s"] > 0
    done = watched.run("cancel", f"{job.job_id}_1")
    assert done.returncode == 0, done.stderr
    assert "saved at epoch " in done.stdout
    assert "; harness submit --resume" in done.stdout
    task.wait("CANCELLED")
    assert watched.state(f"lstm/slurm-{job.job_id}_1") == "interrupted"
    assert "nothing to cancel" in watched.run("cancel", task.run).stdout


def test_a_killed_job_is_lost(watched: Watcher, project: SlurmProject) -> None:
    """The heartbeat of a killed run still says that it trains, but squeue shows the job's end."""
    job = project.sbatch("lstm", arguments=LONG)
    job.wait_for_step(20)
    os.kill(job.record()["process"], signal.SIGKILL)
    wait_until(lambda: watched.state(f"lstm/slurm-{job.job_id}") == "lost", timeout_s=40)
    assert "Slurm says FAILED" in watched.seen()[f"lstm/slurm-{job.job_id}"]["note"]


@pytest.mark.slow
def test_following_goes_on_over_a_requeue(watched: Watcher, project: SlurmProject) -> None:
    """`logs -f` shows both starts and the result, and ends with exit code 0."""
    job = project.sbatch("lstm")
    job.wait_for_step(20)
    following = watched.start("logs", "-f", job.job_id)
    job.cluster.run("scontrol", "requeue", job.job_id)
    waits: list[dict[str, Any]] = []

    def is_pending() -> bool:
        waits.append(watched.seen()[f"lstm/slurm-{job.job_id}"])
        return bool(waits[-1]["state"] == "pending")

    wait_until(is_pending, timeout_s=20)
    assert "requeued" in waits[-1]["note"]
    said, complaints = following.communicate(timeout=120)
    assert (following.returncode, complaints) == (0, "")
    assert said.count(f"run {job.run}:") == 2
    assert said.splitlines() == job.log.read_text().splitlines()
    row = watched.seen()[f"lstm/slurm-{job.job_id}"]
    assert (row["state"], row["restarts"]) == ("finished", 1)


def test_a_log_is_waited_for(project: SlurmProject, watched: Watcher) -> None:
    """`logs -f` says that the job is waiting, and later follows the job's log to its end."""
    job = project.sbatch("lstm", "--hold", arguments=SHRUNK)
    following = watched.start("logs", "-f", job.job_id)
    assert following.stderr is not None
    assert f"slurm-{job.job_id} is pending (JobHeldUser); waiting" in following.stderr.readline()
    job.cluster.run("scontrol", "release", job.job_id)
    output, errors = following.communicate(timeout=180)
    assert following.returncode == 0, errors
    assert "epoch 3/3" in output
