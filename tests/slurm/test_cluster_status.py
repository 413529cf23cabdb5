"""`status`, `logs` and `cancel` on jobs of a real Slurm cluster."""

import dataclasses
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import results
from tests.slurm.cluster import wait_until
from tests.slurm.project import JOB, SlurmProject, Watcher
from tests.slurm.test_cluster_submit import Submitter


@pytest.fixture(scope="module")
def watched(project: SlurmProject) -> Watcher:
    """The harness on the login node, beside the project's jobs."""
    return Watcher(project)


def test_waiting_jobs_are_shown_with_slurms_reason_and_leave_by_cancel(
    watched: Watcher, project: SlurmProject
) -> None:
    """Jobs of plain sbatch are recognized by their script; `cancel` of a task keeps other tasks."""
    single = project.sbatch("lstm", "--hold", arguments=[])
    array = project.sbatch("lstm", "--hold", "--array=4-5", arguments=[])
    rows = watched.seen()
    for job_id, seed in ((single.job_id, None), (f"{array.job_id}_4", 4), (f"{array.job_id}_5", 5)):
        row = rows[f"lstm/slurm-{job_id}"]
        assert (row["state"], row["job"], row["seed"]) == ("pending", "lstm", seed)
        assert row["reason"].startswith("JobHeld")
    done = watched.run("cancel", f"{array.job_id}_4", single.job_id)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"lstm/slurm-{array.job_id}_4: job {array.job_id}_4 was removed from the queue",
        f"lstm/slurm-{single.job_id}: job {single.job_id} was removed from the queue",
    ]
    left = [run for run, row in watched.seen().items() if row["state"] == "pending"]
    assert left == [f"lstm/slurm-{array.job_id}_5"]
    watched.run("cancel", array.job_id)


def test_a_cancelled_job_stays_cancelled_and_goes_on_as_another(
    watched: Watcher, project: SlurmProject, undisturbed: Path
) -> None:
    """`cancel` returns after the run has saved; `submit --resume` ends with the same bytes."""
    flags = ("--array=1-1", "--gres=none", "--partition=high")
    array = project.sbatch("lstm", *flags)
    log = array.log.with_name(f"lstm-{array.job_id}_1.out")
    job = project.submitted("lstm", f"{array.job_id}_1", log)
    job.wait_for_step(20)
    name = f"lstm/slurm-{job.job_id}"
    row = watched.seen(job.job_id)[name]
    assert (row["state"], row["slurm_job"], row["seed"]) == ("running", job.job_id, 1)
    assert row["reviews_per_s"] > 0
    done = watched.run("cancel", job.job_id)
    assert done.returncode == 0, done.stderr
    assert "saved at epoch " in done.stdout
    assert "; harness submit --resume" in done.stdout
    job.wait("CANCELLED")
    assert watched.seen()[name]["state"] == "interrupted"
    assert "nothing to cancel" in watched.run("cancel", job.run).stdout
    assert not (job.run / "result.json").exists()
    assert f"harness submit --resume {shlex.quote(str(job.run))}" in log.read_text()
    assert (job.cluster.state(job.job_id), job.requeues()) == ("CANCELLED", 0)

    submitter = Submitter.of(project)
    submitter.harness.runs = job.run.parents[1]
    submitter.harness.environment["HARNESS_RUNS"] = str(submitter.harness.runs)
    (record,) = submitter.submit("--resume", job.run, "--", "--hold")
    known = job.cluster.show(record["job_id"])
    assert (known["Partition"], known.get("TresPerNode")) == ("high", None), (
        "the request of its job"
    )
    row = watched.seen(job.run)[name]
    assert (row["state"], row["slurm_job"]) == ("pending", record["job_id"])
    twice = submitter.run("--resume", job.run)
    assert (twice.returncode, "is pending; first stop the run" in twice.stderr) == (2, True)
    job.cluster.run("scontrol", "release", record["job_id"])
    other = dataclasses.replace(job, job_id=record["job_id"], log=Path(record["logs"][0]))
    other.wait()
    assert results(job.run) == results(undisturbed)
    assert job.record()["restarts"] == 1


@pytest.mark.slow
def test_a_killed_job_is_lost(watched: Watcher, project: SlurmProject) -> None:
    """The heartbeat of a killed run still says that it trains, but squeue shows the job's end."""
    job = project.sbatch("lstm", arguments=[*JOB, "--set", "train.epochs=1000"])
    job.wait_for_step(20)
    os.kill(job.record()["process"], signal.SIGKILL)
    name = f"lstm/slurm-{job.job_id}"
    wait_until(lambda: watched.seen()[name]["state"] == "lost", timeout_s=40)
    assert "Slurm says FAILED" in watched.seen()[name]["note"]


@pytest.mark.slow
def test_following_goes_on_over_a_requeue(watched: Watcher, project: SlurmProject) -> None:
    """`logs -f` shows both starts and the result, and ends with exit code 0."""
    job = project.sbatch("lstm", arguments=[*JOB, "--set", "train.epochs=150"])
    following = watched.start("logs", "-f", job.job_id)
    assert following.stdout
    first = following.stdout.readline()  # `logs` has started, also on a busy machine
    job.wait_for_step(20)
    job.cluster.run("scontrol", "requeue", job.job_id)
    waits: list[dict[str, Any]] = []

    def is_pending() -> bool:
        waits.append(watched.seen()[f"lstm/slurm-{job.job_id}"])
        return bool(waits[-1]["state"] == "pending")

    wait_until(is_pending, timeout_s=20)
    assert "requeued" in waits[-1]["note"]
    rest = following.stdout.read()  # `communicate` would lose what `readline` has buffered
    assert following.wait() == 0
    assert (first + rest).count(f"run {job.run}:") == 2
    assert (first + rest).splitlines() == job.log.read_text().splitlines()
    row = watched.seen()[f"lstm/slurm-{job.job_id}"]
    assert (row["state"], row["restarts"]) == ("finished", 1)
