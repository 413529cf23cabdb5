"""Jobs at the site ELSEWHERE: typed GPUs, preemption by CANCEL, a plugin that refuses jobs."""

import contextlib
import json
import os
import re
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from harness.doctor.doctor import check_slurm
from tests.conftest import results
from tests.slurm.cluster import SlurmCluster, wait_until
from tests.slurm.project import SlurmProject, Submitted
from tests.slurm.test_cluster_submit import Submitter
from tests.training.kills import newest_step


@pytest.fixture
def visitor(elsewhere: SlurmCluster, tmp_path: Path) -> SlurmProject:
    """A project at this site with a stand-in for the harness."""
    return SlurmProject(elsewhere, tmp_path, real=False)


@pytest.fixture(scope="module")
def guest(elsewhere: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmProject:
    """A project at this site whose jobs train."""
    return SlurmProject(elsewhere, tmp_path_factory.mktemp("guest"), real=True)


@pytest.mark.parametrize(
    ("site", "words", "asked"),
    [
        ({}, ["--gpus", "a100:2"], {"TresPerNode": "gres/gpu:a100:2", "MinMemoryNode": "16G"}),
        (
            {},
            ["--", "--gpus-per-node=t4:2", "--mem-per-gpu=3G"],
            {"TresPerNode": "gres/gpu:t4:2", "MemPerTres": "gres/gpu:3072"},
        ),
        (
            {},
            ["--", "--gpus=2", "--mem-per-cpu=2G"],
            {"TresPerJob": "gres/gpu:2", "TresPerNode": None, "MinMemoryCPU": "2G"},
        ),
        ({}, ["--gpus", 0, "--", "--partition=cpu"], {"TresPerNode": None}),
        (
            {"SBATCH_GPUS_PER_NODE": "t4:1", "SBATCH_PARTITION": "spare"},
            ["--gpus", "2"],
            {"TresPerNode": "gres/gpu:t4:2", "Partition": "spare"},
        ),
    ],
)
def test_each_way_of_asking_reaches_slurm_alone(
    visitor: SlurmProject, site: dict[str, str], words: list[object], asked: dict[str, str | None]
) -> None:
    """The user's request replaces the requests of the site and of the job script."""
    hold = ["--hold"] if "--" in words else ["--", "--hold"]
    submitter = Submitter.of(visitor)
    submitter.harness.environment |= site  # as in a shell that has sourced site.sh
    (record,) = submitter.submit(visitor.path / "jobs/gru.toml", *words, *hold)
    known = visitor.cluster.show(record["job_id"])
    visitor.cluster.run("scancel", record["job_id"])
    assert {name: known.get(name) for name in asked} == asked


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--gres=gpu:a100:2", r"job \d+ on gpu-a-01: 2 GPUs, 1 CPUs?, 17.2 GB$"),
        (
            "--gpus-per-node=2",
            r"1 GPU, .*; --gpus-per-node=2 does not replace .* use --gres=gpu:2 instead,",
        ),
        (
            "--gpus=2",
            r"on each of .*: 1 GPU, .*; --gpus=2 does not replace .* use --gres=gpu:2 instead,",
        ),
    ],
)
def test_the_log_says_what_was_given(guest: SlurmProject, flag: str, said: str) -> None:
    """If the script's request conflicts with the user's, the line names the right option."""
    job = guest.sbatch("gru", flag, arguments=["--set", "model.unit=8"])
    job.wait("FAILED")
    # Line 0 is about the Python environment, which common.sh did not create.
    assert re.search(said, job.log.read_text().splitlines()[1])


def test_all_that_a_site_says_reaches_the_user(visitor: SlurmProject) -> None:
    """The error contains all three lines of the site's plugin."""
    submitter = Submitter.of(visitor)
    done = submitter.run(visitor.path / "jobs/gru.toml", "--", "--comment=refuse")
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    for part in ("need a project", "alpha, beta", "--account=PROJECT", "Unspecified error"):
        assert part in said


RULES = {"HARNESS_SBATCH_NEVER": "gres mem", "HARNESS_SBATCH_ALWAYS": "--ntasks=1"}


def test_two_settings_of_the_site_make_a_job_acceptable(visitor: SlurmProject) -> None:
    """Without the settings the site's refusal is shown; with the settings the job runs."""
    submitter = Submitter.of(visitor)
    submitter.harness.environment["SBATCH_PARTITION"] = "whole"
    job = visitor.path / "jobs/gru.toml"
    for words in ([], ["--gpus", "0"]):
        done = submitter.run(job, *words)
        assert (done.returncode, "is not accepted here" in done.stderr) == (2, True)
    submitter.harness.environment |= RULES
    for more in ([], ["--gpus", "0"], ["--mem", "4G"]):
        (record,) = submitter.submit(job, *more)
        visitor.cluster.wait(record["job_id"], ["COMPLETED"])
    done = submitter.run(job, "--gpus", "2")
    assert (done.returncode, "is refused by this site" in done.stderr) == (2, True)
    submitter.harness.environment["HARNESS_TRUSTED_NETWORK"] = "1"
    (record,) = submitter.submit(job, "--nodes", "2", "--", "--hold")
    assert visitor.cluster.show(record["job_id"])["NumNodes"].startswith("2")
    visitor.cluster.run("scancel", record["job_id"])


def test_doctor_prints_the_line_that_submits_a_script(
    visitor: SlurmProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm accepts this line and runs the script. Other lines say what preemption means."""
    environment = {"SBATCH_PARTITION": "whole", **RULES, **visitor.cluster.environment}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = {each.name: each for each in check_slurm(None)}
    preemption = "spare: CANCEL, grace time 10 s: a preempted run has 2 s to save; its job script"
    assert preemption in found["preemption"].found
    assert "JobRequeue is 0" in found["requeue"].found
    (line,) = re.findall("`(sed .* sbatch .*?)`", found["sbatch"].found)
    script = line.replace("sbatch", "sbatch --parsable", 1)
    job_id = visitor.cluster.run("bash", "-c", script, cwd=visitor.path, env=environment).strip()
    visitor.cluster.wait(job_id, ["COMPLETED"])


def test_a_job_that_never_starts_is_told(visitor: SlurmProject) -> None:
    """A job of 2 h can't start in a partition with a limit of 1 min; 2 min cause a warning."""
    submitter = Submitter.of(visitor)
    done = submitter.run(visitor.path / "jobs/gru.toml", "--", "--partition=short")
    assert done.returncode == 0, done.stderr
    assert "queue pending (PartitionTimeLimit)\n" in done.stdout
    done = submitter.run(visitor.path / "jobs/gru.toml", "--time", 2, "--", "--hold")
    assert "with a time limit of 120 s, the run saves" in done.stdout
    visitor.cluster.run("scancel", "--me")


def test_seeds_beyond_the_sites_arrays(visitor: SlurmProject) -> None:
    """Seeds above the largest array index are trained, too; many seeds get several arrays."""
    submitter = Submitter.of(visitor)
    words = [visitor.path / "jobs/gru.toml", "--gpus", 0, "--seeds"]
    (record,) = submitter.submit(*words, "42,1234,2024")
    for index in (1, 2, 3):
        visitor.cluster.wait(f"{record['job_id']}_{index}", ["COMPLETED"])
    calls = [call["argv"] for call in visitor.stand_in.calls() if call["argv"][0] == "train"]
    trained = {call[3]: call[5] for call in calls}
    assert [trained[seed] for seed in ("42", "1234", "2024")] == [
        Path(run).name for run in record["runs"]
    ]
    done = submitter.run(*words, "1-200%5", "--", "--hold")
    arrays = re.findall(r"(?m)^job \d+: gru, seed (.*)$", done.stdout)
    assert arrays == ["1-99", "100-198", "199-200"], done.stderr
    visitor.cluster.run("scancel", "--me")


def preempt(job: Submitted) -> None:
    """Submit another job that preempts this one, and wait for the preemption."""
    flags = ("--partition=gpu", "--nodelist=n10", "--gres=gpu:2", "--mem=1G")
    job.cluster.run("sbatch", *flags, "--output=/dev/null", "--wrap=sleep 2")
    wait_until(lambda: job.cluster.show(job.job_id).get("PreemptTime", "None") != "None", 30)


# The second case runs nightly, because test_cluster_jobs.py also tests such a warning.
@pytest.mark.parametrize("warned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_job_that_is_cancelled_for_another_goes_on_with_the_same_bytes(
    guest: SlurmProject, undisturbed: Path, *, warned: bool
) -> None:
    """The job requeues itself at the end of its grace time, or when it is warned.

    Then Slurm forbids a requeue, as with --no-requeue, and the warned job submits a successor with
    the same request.
    """
    flags = ("--partition=spare", "--nodelist=n10", "--exclude=gpu-a-01", "--gres=gpu:2")
    job = guest.sbatch("lstm", *flags)
    job.wait_for_step(20)
    os.kill(job.record()["process"], signal.SIGSTOP)  # otherwise the run would finish too early
    preempt(job)
    if warned:  # as `PreemptParameters=send_user_signal` does
        job.warn()
    else:
        wait_until(lambda: job.cluster.state(job.job_id) != "RUNNING", timeout_s=30)
    with contextlib.suppress(ProcessLookupError):  # no process after the grace time
        os.kill(job.record()["process"], signal.SIGCONT)
    wait_until(lambda: job.record()["restarts"] == 1, timeout_s=90)
    job.wait_for_step(newest_step(job.run) + 1)

    job.cluster.run("scontrol", "update", f"JobId={job.job_id}", "Requeue=0")
    job.warn()
    wait_until((job.run / "result.json").exists, timeout_s=90)
    assert results(job.run) == results(undisturbed)
    assert (job.requeues(), job.record()["restarts"]) == (1, 2)
    successor = job.record()["slurm_job"]
    assert successor != job.job_id
    known = job.cluster.show(successor)
    assert (known["Partition"], known["TresPerNode"]) == ("spare", "gres/gpu:2")
    assert (known["ReqNodeList"], known["ExcNodeList"]) == ("n10", "gpu-a-01")
    log = job.log.read_text()
    said = "interrupted; job" if warned else "preempted; job"
    assert f"{said} {job.job_id} is back in the queue" in log
    assert f"job {successor} continues the run" in log
    record = json.loads((job.run.parents[1] / f".submissions/{successor}.json").read_text())
    assert record["runs"] == [str(job.run)]


@pytest.mark.slow
def test_a_job_cancelled_in_its_grace_time_stays_cancelled(guest: SlurmProject) -> None:
    """`scancel` ends the job for good, although another job preempts it at that time."""
    job = guest.sbatch("lstm", "--partition=spare", "--nodelist=n10", "--gres=gpu:2")
    job.wait_for_step(1)
    os.kill(job.record()["process"], signal.SIGSTOP)
    preempt(job)
    begun = job.cluster.show(job.job_id)["PreemptTime"]
    wait_until(lambda: datetime.now() - datetime.fromisoformat(begun) > timedelta(seconds=2), 10)
    os.kill(job.record()["process"], signal.SIGCONT)
    job.cluster.run("scancel", job.job_id)
    job.wait("CANCELLED")
    assert (job.requeues(), "back in the queue" in job.log.read_text()) == (0, False)
