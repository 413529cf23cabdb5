"""Jobs on a real Slurm cluster are submitted, warned, requeued, preempted and cancelled."""

import dataclasses
import json
import os
import shlex
import signal
import time
from pathlib import Path

import pytest

from harness.slurm.batch import Counters
from tests.conftest import results
from tests.slurm.cluster import SlurmCluster, wait_until
from tests.slurm.project import JOB, SlurmProject, Submitted, Watcher
from tests.slurm.stand_in import STAND_IN
from tests.slurm.test_scripts import JOBS, SCRIPTS
from tests.training.kills import newest_step


@pytest.fixture(scope="module")
def followed(project: SlurmProject) -> tuple[Submitted, str, str]:
    """A job that has trained, and the output of a `harness logs -f` that began before the job."""
    job = project.sbatch("lstm", "--hold")
    following = Watcher(project).start("logs", "-f", job.job_id)
    assert following.stderr is not None
    first = following.stderr.readline()
    job.cluster.run("scontrol", "release", job.job_id)
    output, _ = following.communicate(timeout=180)
    assert following.returncode == 0
    job.wait()
    return job, first, output


@pytest.fixture(scope="module")
def finished(followed: tuple[Submitted, str, str]) -> Submitted:
    """A job that has trained without any disturbance."""
    return followed[0]


def test_a_log_is_waited_for(followed: tuple[Submitted, str, str]) -> None:
    """`logs -f` says that the job is waiting, and later follows the job's log to its end."""
    job, first, output = followed
    assert f"slurm-{job.job_id} is pending (JobHeldUser); waiting" in first
    assert "epoch 40/40" in output


def test_sbatch_trains_to_a_result(finished: Submitted, undisturbed: Path) -> None:
    """The run is named after the job's id, and has the bytes of a run outside of Slurm."""
    assert results(finished.run) == results(undisturbed)
    assert finished.record()["slurm_job"] == finished.job_id
    assert finished.record()["restarts"] == 0
    assert str(finished.run) in finished.log.read_text()


def test_a_finished_job_that_is_requeued_changes_nothing(finished: Submitted) -> None:
    """The job adds a line to its log and does not change any file of its run."""
    before = {path: path.stat().st_mtime_ns for path in finished.run.rglob("*")}
    log = finished.log.read_text()
    finished.cluster.run("scontrol", "requeue", finished.job_id)
    finished.wait()
    assert finished.requeues() == 1
    assert {path: path.stat().st_mtime_ns for path in finished.run.rglob("*")} == before
    assert finished.log.read_text().startswith(log)
    assert "finished already" in finished.log.read_text().removeprefix(log)


@pytest.mark.slow
def test_seeds_side_by_side_in_one_job_go_on_with_the_same_bytes(
    project: SlurmProject, undisturbed: Path
) -> None:
    """With `--seeds 1-2` for the script, each seed is a job step and continues after a requeue."""
    job = project.sbatch(
        "lstm", "--gres=none", "--cpus-per-task=2", arguments=[*JOB, "--seeds", "1-2"]
    )
    runs = [job.run.with_name(f"{job.run.name}-seed{seed}") for seed in (1, 2)]
    for run in runs:
        dataclasses.replace(job, run=run).wait_for_step(20)
    job.cluster.run("scontrol", "requeue", job.job_id)
    job.wait()
    assert job.requeues() == 1
    assert "Slurm has put the job back into the queue" in job.log.read_text()
    assert results(runs[0]) == results(undisturbed)
    assert [json.loads((run / "state.json").read_text())["restarts"] for run in runs] == [1, 1]
    assert json.loads((runs[1] / "result.json").read_text())["seed"] == 2


def test_a_job_preempted_and_then_warned_ends_with_the_same_bytes(
    project: SlurmProject, undisturbed: Path, tmp_path: Path
) -> None:
    """A job in the partition `high` takes the node of a user's script, which executes lstm.sh.

    Slurm checks time limits only every 30 s. After the first new step, which may take a minute on
    a busy machine, the test stops the harness and sets the limit. Training until the warning comes
    would cost more CPU time.
    """
    script = tmp_path / "mine.sh"
    script.write_text(
        "#!/bin/bash\n"
        "#SBATCH --requeue --open-mode=append --output=mine.out --mem=8G\n"
        f"exec bash {shlex.quote(str(project.path / 'slurm/lstm.sh'))} {shlex.join(JOB)}\n"
    )
    node = ("--nodelist=n1", "--gres=gpu:2")
    flags = (*node, "--partition=low", "--time=60", "--signal=B:USR2@30")
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"}  # sbatch is called in a job step
    job_id = project.cluster.sbatch(script, *flags, cwd=tmp_path, env=step)
    job = project.submitted("lstm", job_id, tmp_path / "mine.out")
    job.wait_for_step(20)
    urgent = job.cluster.run(
        *("sbatch", "--parsable", "--partition=high", *node),
        *("--output=/dev/null", "--mem=1G", "--wrap=sleep 2"),
    ).strip()
    job.cluster.wait(urgent, ["RUNNING", "COMPLETED"])
    assert not (job.run / "result.json").exists()
    saved = newest_step(job.run)
    job.cluster.wait(urgent, ["COMPLETED"])
    job.wait("RUNNING")
    # If a job requeues itself in its grace time, Slurm 24.11 requeues it again at the job's end.
    preemptions = job.requeues()
    assert preemptions in (1, 2)
    job.wait_for_step(saved + 1)

    process = job.record()["process"]
    os.kill(process, signal.SIGSTOP)
    hours, minutes, seconds = map(int, job.cluster.show(job.job_id)["RunTime"].split(":"))
    limit = (3600 * hours + 60 * minutes + seconds + 35) // 60 + 1  # minutes, at least 35 s ahead
    job.cluster.run("scontrol", "update", f"JobId={job.job_id}", f"TimeLimit={limit}")
    wait_until(lambda: has_pending(process, signal.SIGUSR2), timeout_s=90)
    job.cluster.run("scontrol", "update", f"JobId={job.job_id}", "TimeLimit=60")
    os.kill(process, signal.SIGCONT)
    wait_until(lambda: job.requeues() > preemptions, timeout_s=60)
    job.wait()
    assert results(job.run) == results(undisturbed)
    # On a busy machine the rest may take over a minute and need several requeues. The run does
    # not count a warning before the import of TensorFlow, which reaches only the script.
    times, record = job.requeues() - preemptions, job.record()
    assert 2 <= record["restarts"] <= times + 1 <= 4
    assert Counters.read(job.counters).idle == 0, "each start had a new step"
    log = job.log.read_text()
    assert log.count("interrupted by SIGUSR2") >= 2
    assert f"job {job.job_id} is back in the queue" in log


def has_pending(process: int, number: signal.Signals) -> bool:
    """Whether this signal is pending for a stopped process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("ShdPnd:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def test_a_failed_job_is_not_requeued_and_says_why(project: SlurmProject) -> None:
    """After a refused setting the exit code is 2, and the log's last line names the setting."""
    job = project.sbatch("gru", arguments=["--set", "model.unit=8"])
    job.wait("FAILED", timeout_s=30)
    assert job.cluster.show(job.job_id)["ExitCode"] == "2:0"
    assert "model.unit" in job.log.read_text().splitlines()[-1]
    time.sleep(1)  # a wrong requeue would come within this time
    assert (job.cluster.state(job.job_id), job.requeues()) == ("FAILED", 0)
    assert not job.run.exists()


@pytest.mark.parametrize("export", [pytest.param("NONE", marks=pytest.mark.slow), "NIL"])
def test_a_job_needs_nothing_of_the_callers_environment(
    stand_in: SlurmProject, export: str
) -> None:
    """With `--export=NONE` or NIL, a script still finds its project, its settings and scontrol."""
    with (stand_in.path / "slurm/site.sh").open("a") as site:
        site.write("[[ -n ${SLURM_RESTART_COUNT:-} ]] || export WAIT=1\n")
    job = stand_in.sbatch("bilstm", f"--export={export}", arguments=["--set", "a.b=two words"])
    wait_until(stand_in.stand_in.note.with_suffix(".ready").exists, timeout_s=30)
    job.warn("USR1")
    job.wait()
    assert job.requeues() == 1
    assert stand_in.stand_in.call()["argv"] == [
        *("train", f"{stand_in.path}/jobs/bilstm.toml", "--run-id", f"slurm-{job.job_id}"),
        *("--set", "a.b=two words"),
    ]


def test_every_script_runs_as_a_job(stand_in: SlurmProject, tmp_path: Path) -> None:
    """Each script, submitted from any folder, finds its project and writes a log."""
    stand_in.stand_in.executable(stand_in.stand_in.venv / "bin/python", STAND_IN)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    words = {"tune": ["jobs/tune_lstm.toml"]}
    jobs = [
        stand_in.sbatch(script, cwd=elsewhere, arguments=words.get(script, []))
        for script in SCRIPTS
    ]
    for job in jobs:
        job.wait()
        assert job.log.parent == elsewhere / "logs"
        assert job.log.is_file()
    calls = stand_in.stand_in.calls()
    assert {call["runs"] for call in calls} == {f"{stand_in.path}/runs"}
    trained = {call["argv"][1] for call in calls if call["argv"][0] == "train"}
    assert trained == {f"{stand_in.path}/jobs/{job}.toml" for job in JOBS}
    others = sorted(call["argv"][0] for call in calls if call["argv"][0] != "train")
    # The command of doctor.sh is python -P -m tests.gpu.
    assert others == ["-P", "compare", "tensorboard", "tune"]


@pytest.mark.cluster
@pytest.mark.slow
def test_nothing_is_left_of_a_cluster() -> None:
    """The cluster ends every process, even a job that ignores TERM, and removes its folder."""
    with SlurmCluster() as cluster:
        line = "trap '' TERM; touch there; while :; do sleep 1; done"
        job = cluster.run("sbatch", "--parsable", "--output=/dev/null", f"--wrap={line}").strip()
        wait_until((cluster.folder / "there").exists, timeout_s=20)
        assert cluster.state(job) == "RUNNING"
        assert len(cluster.processes()) > 8
    assert cluster.processes() == []
    assert not cluster.folder.exists()
