"""`submit --resume`: which runs become jobs, and which resources these jobs request."""

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import InputError
from harness.job.job_file import load_job
from harness.slurm.client import Queue
from harness.slurm.environment import BATCH_JOB, SlurmEnvironment, asked_of
from harness.slurm.resources import Resources
from harness.tracking.provenance import write_provenance
from harness.tracking.records import RunStatus
from harness.tracking.resume import as_job, interrupted
from harness.tracking.run_dir import RunDirectory, ask_to_cancel, stamped
from harness.tracking.status import pick, select_runs
from tests.conftest import JOBS, SHRUNK, Harness
from tests.tracking.site import Site
from tests.tracking.site import site as site
from tests.tuning.made_up_sweep import RANDOM, make_sweep

LAST = ("--partition=long", "--time=01:30:00", "--mem=1500M", "--gres=gpu:a100:4,lscratch:50")


def stopped(folder: Path, record: dict[str, Any], **state: str) -> RunStatus:
    """Write a run with this record and, if `state` has items, a heartbeat; return its status."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.toml").write_text(load_job(JOBS / "gru.toml").to_toml())
    if record:
        (folder / "provenance.json").write_text(json.dumps(stamped(record)))
    if state:
        state = {"phase": "interrupted", "slurm_job": "7", **state}
        (folder / "state.json").write_text(json.dumps(state))
    return RunStatus(run=f"gru/{folder.name}", folder=folder, state="interrupted")


CPU, GPUS = {"device": "cpu:0"}, [{"device": "/gpu:0"}] * 2


@pytest.mark.parametrize(
    ("options", "devices", "wanted", "args", "gpus"),
    [
        # A run of a job with several seeds used some of the job's GPUs.
        (LAST, GPUS, Resources(), [*LAST[:3], "--gres=gpu:a100:2,lscratch:50"], None),
        (LAST, [CPU], Resources(), LAST, None),
        (LAST, [], Resources(), LAST, None),
        (LAST, GPUS, Resources(gpus="t4:1"), LAST[:3], "t4:1"),
        (
            *(LAST, GPUS, Resources(time="5", flags=("--mem-per-gpu=2G", "-pshort", "-G1"))),
            *(["--time=5", "--mem-per-gpu=2G", "-pshort", "-G1"], None),
        ),
        (["--gpus-per-node=t4:4"], GPUS, Resources(), ["--gpus-per-node=t4:2"], None),
        (["--gres=lscratch:50"], [CPU], Resources(), ["--gres=lscratch:50"], None),
        (["--nodes=4", "-d", "afterok:3", "-H", "-C", "a&b"], [], Resources(), ["-C", "a&b"], None),
        (None, [CPU], Resources(), [], "0"),
        (None, GPUS, Resources(mem="4G"), ["--mem=4G"], "2"),
        (None, [], Resources(flags=("-G2",)), ["-G2"], None),
    ],
)
def test_the_job_requests_the_resources_of_the_last_start(
    tmp_path: Path,
    options: Sequence[str] | None,
    devices: list[dict[str, str]],
    wanted: Resources,
    args: Sequence[str],
    gpus: str | None,
) -> None:
    """The user's options replace options of the last start; holds and dependencies are dropped."""
    variables = {"SLURM_JOB_ID": "7", "HARNESS_FLAGS": shlex.join(options or ())}
    job = SlurmEnvironment.from_environment(variables)
    asked = {"slurm_asked": asked_of(job)} if job and options is not None else {}
    record = {"starts": [{"devices": devices, **asked}]}
    resumed = as_job(stopped(tmp_path / "a", record), wanted)
    assert resumed.resources.sbatch_args() == ["--nodes=1", *args]
    assert resumed.resources.gpus == gpus
    resumed.resources.check()
    assert (resumed.resumes, resumed.job) == (tmp_path / "a", load_job(JOBS / "gru.toml"))


def test_no_options_come_from_a_record_that_others_could_write(tmp_path: Path) -> None:
    """An option such as `--export=ALL,BASH_ENV=FILE` would run another user's code."""
    status = stopped(tmp_path / "a", {"starts": [{"devices": [CPU]}]})
    as_job(status, Resources())
    (tmp_path / "a/provenance.json").chmod(0o666)
    with pytest.raises(InputError, match=r"provenance\.json: others can write to it; check"):
        as_job(status, Resources())
    status.is_own = False
    with pytest.raises(InputError, match="belongs to another user; train your own run"):
        as_job(status, Resources())


@pytest.mark.parametrize("asked", [{}, {"slurm_asked": {"options": ["--gres=gpu:2", "--mem=4G"]}}])
def test_a_site_that_refuses_gres_gets_no_request_for_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """The run used GPUs in an interactive job, or a plugin of the site added --gres to its job."""
    monkeypatch.setenv("HARNESS_SBATCH_NEVER", "gres mem")
    status = stopped(tmp_path / "a", {"starts": [{"devices": GPUS, **asked}]})
    resources = as_job(status, Resources(flags=("--partition=gpu",))).resources
    assert (resources.gpus, resources.flags) == (None, ("--partition=gpu",))


def test_a_seed_of_a_job_on_several_nodes_continues_on_one(tmp_path: Path) -> None:
    """A run on several nodes has a task on each node, and continues on the same number of nodes."""
    dataset: Any = SimpleNamespace(record=dict)
    for num in (1, 2):
        step = {"SLURM_STEP_ID": "3", "SLURM_STEP_NUM_TASKS": str(num)}
        step |= {"SLURM_JOB_NUM_NODES": "2", "HARNESS_FLAGS": "--gres=gpu:4"}
        status = stopped(tmp_path / str(num), {})
        job = SlurmEnvironment.from_environment({**step, "SLURM_JOB_ID": "7"})
        run, start = RunDirectory(status.folder), {"devices": GPUS * num}
        write_provenance(run, dataset, job, devices_asked=None, plan={}, start=start)
        wanted = as_job(status, Resources()).resources
        assert (wanted.nodes, wanted.flags) == (num, ("--gres=gpu:2",))


@pytest.mark.parametrize("name", ["search", "session", "run"])
def test_each_task_of_an_array_continues_its_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The record names another task, or the job that continues it. Interactive jobs are no tasks.

    Two jobs for one run would take the run over from each other.
    """
    task = {"SLURM_JOB_ID": "44", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "2"}
    for variable, value in (task | ({} if name == "session" else {BATCH_JOB: "44"})).items():
        monkeypatch.setenv(variable, value)
    folder = tmp_path / name
    status = RunStatus("s", folder)
    stopped(folder, {}) if name == "run" else make_sweep(folder, RANDOM)
    for status.state, status.reported_job, status.slurm_job in (
        ("running", "45", "42_3"),
        ("pending", "50", "50"),
    ):
        if name == "search":
            assert as_job(status, Resources()).resumes == folder
        else:
            remedy = "first stop the run" if name == "run" else "add workers with: sbatch"
            with pytest.raises(InputError, match=f"is {status.state}; {remedy}"):
                as_job(status, Resources())
    status.state = "finished"
    with pytest.raises(InputError, match="is finished; choose an unfinished run"):
        as_job(status, Resources())


def test_all_interrupted_runs_that_nobody_cancelled_continue(tmp_path: Path) -> None:
    """Failed runs are left out, and so are runs of other users, whose jobs may be in the queue."""
    states = ("interrupted", "lost", "dead", "failed", "running", "finished", "cancelled")
    stopped(tmp_path, {})
    statuses = [RunStatus(run=state, folder=tmp_path, state=state) for state in states]
    assert [each.run for each in interrupted(statuses)] == ["interrupted", "lost", "dead"]
    other = RunStatus(run="other", folder=tmp_path, state="interrupted", is_own=False)
    warned, term, ctrl_c = (
        RunStatus(run=signal, folder=tmp_path, state="interrupted", signal=signal)
        for signal in ("SIGUSR2", "SIGTERM", "SIGINT")
    )
    assert interrupted([other, warned, term, ctrl_c]) == [warned]
    assert as_job(term, Resources()).resumes == tmp_path
    ask_to_cancel(tmp_path)
    assert interrupted([warned]) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume"], "give runs (folders or ids) or --all-interrupted"),
        (
            ["--all-interrupted"],
            "to continue a run after SIGTERM or Ctrl-C, use harness submit --resume RUN",
        ),
        (["--resume", "nowhere"], "no run has this folder"),
        (["--resume", "gru/a", "--seeds", "1-2"], "continues runs with unchanged"),
        (["--resume", "gru/a", "--pack"], "continues runs with unchanged"),
        (["--resume", "gru/a", "--all-interrupted"], "not both"),
    ],
)
def test_a_request_that_names_no_run_is_one_line(
    harness: Harness, words: list[str], said: str
) -> None:
    """The exit code is 2, and nothing is written."""
    harness.hide_slurm()
    assert said in harness.refuse("submit", *words, "--dry-run")
    assert not harness.runs.exists()


def test_each_interrupted_run_becomes_a_job(harness: Harness) -> None:
    """Each job script resumes one run; sbatch options apply to all jobs."""
    harness.hide_slurm()
    for name, signal in (("a", "SIGUSR2"), ("b", "SIGUSR2"), ("cancelled", "SIGTERM")):
        stopped(harness.runs / "gru" / name, {}, signal=signal)
    done = harness.run_here("submit", "--all-interrupted", "--dry-run", "--", "-C", "ib")
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        assert f"supervise resume run {harness.runs}/gru/{name}\n" in done.stdout
    assert "gru/cancelled" not in done.stdout
    assert done.stdout.count("sbatch --parsable --job-name=gru") == 2
    assert done.stdout.count(" -C ib ") == 2
    done = harness.run_here("submit", "--resume", "a", "--dry-run", "--", "-C", "ib")
    assert done.stdout.count("sbatch --parsable") == 1


def test_a_broken_run_is_no_obstacle_to_other_interrupted_runs(harness: Harness) -> None:
    """A warning says why the run is not continued; if it is the only run, an error says so."""
    harness.hide_slurm()
    for name in ("a", "b", "c"):
        stopped(harness.runs / "gru" / name, {}, signal="SIGUSR2")
        if name != "b":
            (harness.runs / "gru" / name / "job.toml").write_text("?")
    words = ["submit", "--all-interrupted", "--dry-run"]
    done = harness.run_here(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sbatch --parsable") == 1
    assert f"supervise resume run {harness.runs}/gru/b\n" in done.stdout
    for name in ("a", "c"):
        assert f"gru/{name}: is not continued: job " in done.stderr
    shutil.rmtree(harness.runs / "gru/b")
    assert "is not TOML" in harness.run_here(*words).stderr.splitlines()[-1]


def test_seeds_that_had_not_begun_continue_too(harness: Harness, site: Site) -> None:
    """These seeds keep their job file and names; finished and cancelled seeds are left out.

    A cancelled seed begins if the user names it.
    """
    site.slurm()
    folders = [harness.runs / f"lstm/slurm-3-seed{seed}" for seed in (1, 2, 3, 4)]
    job_file, runs = str(JOBS / "lstm.toml"), [*map(str, folders)]
    site.submission("3", [1, 2, 3, 4], job_file=job_file, runs=runs)
    stopped(folders[1], {}, signal="SIGTERM", slurm_job="3", slurm_own_id="3")
    stopped(folders[0], {})
    (folders[0] / "result.json").write_text(json.dumps({"accuracy": 0.5, "val_accuracy": 0.5}))
    ask_to_cancel(folders[3])
    done = harness.run_here("submit", "--resume", "3", "--dry-run")
    assert done.returncode == 0, done.stderr
    calls = [line for line in done.stdout.splitlines() if line.startswith("supervise")]
    assert calls[0] == f"supervise resume run {folders[1]}", calls
    assert calls[1].startswith("supervise train ")
    assert calls[1].endswith(f"--run-id slurm-3-seed3 --runs {harness.runs}")
    assert len(calls) == 2
    for folder, word in ((folders[0], "finished"), (folders[3], "cancelled")):
        assert f"{folder.name}: is not continued, because it is {word}" in done.stderr
    done = harness.run_here("submit", "--resume", folders[3], "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f" --run-id slurm-3-seed4 --runs {harness.runs}\n" in done.stdout


def test_a_search_that_had_not_begun_begins(harness: Harness, site: Site) -> None:
    """The new job gives the search its old id."""
    site.slurm()
    sweep = str(harness.runs / "tune_lstm/slurm-3")
    site.submission("3", [1], job_file=str(JOBS / "tune_lstm.toml"), runs=[sweep])
    done = harness.run_here("submit", "--resume", "3", "--dry-run")
    assert done.returncode == 0, done.stderr
    (call,) = (line for line in done.stdout.splitlines() if line.startswith("supervise"))
    assert call.startswith("supervise tune ")
    assert call.endswith(f"/tune_lstm.toml --sweep-id slurm-3 --runs {harness.runs}")


@pytest.mark.parametrize("had_jobs", [True, False])
def test_a_run_in_another_folder_gets_one_job(harness: Harness, site: Site, had_jobs: bool) -> None:
    """The job's record is in the run's own folder of runs if this folder has records of jobs.

    Otherwise the record is in the folder of --runs. A second job is refused.
    """
    site.program("sbatch", "echo 77")
    site.slurm("77|77|PENDING|0:00|Priority|/x.sh")
    runs = site.folder / "empty"
    harness.environment["HARNESS_RUNS"] = str(runs)
    run = site.run("a", "interrupted", 60).folder
    if had_jobs:
        site.submission("76", [])
    done = harness.run_here("submit", "--resume", run)
    assert done.returncode == 0, done.stderr
    home = site.runs if had_jobs else runs
    assert (home / ".submissions/77.json").exists()
    (status,) = select_runs([str(run)], runs, Queue())
    assert (status.state, status.reported_job) == ("pending", "77")
    for words in ([], ["--runs", home]):
        assert "is pending; first stop" in harness.refuse("submit", "--resume", run, *words)
    if had_jobs:
        said = harness.refuse("submit", "--all-interrupted", "--runs", home)
        assert "has no run that is lost, dead or interrupted" in said


def test_a_session_that_lives_is_ended_by_scancel(harness: Harness, site: Site) -> None:
    """`harness cancel` would find no running process, and keeps the session."""
    site.slurm("12|12|RUNNING|1:00:00|None|")
    run = site.run("a", "interrupted", 60, slurm_job="12", signal="SIGINT").folder
    said = harness.refuse("submit", "--resume", run)
    assert "first end Slurm job 12, which could continue this run: scancel 12" in said


def test_training_outside_of_a_job_is_a_warning_or_refused(harness: Harness) -> None:
    """If there is a cluster, the command warns; with HARNESS_JOBS_ONLY, training needs --here."""
    environment = harness.environment
    del environment["HARNESS_HERE"]
    words = ["train", JOBS / "lstm.toml", "--devices", "no-such"]
    harness.program("sbatch", "exit 1")
    harness.program("scontrol", "exit 1")
    assert "not a Slurm job" not in harness.run_here(*words).stderr  # there is no cluster
    harness.program("scontrol", "echo MaxArraySize = 1001")
    first = harness.run_here(*words).stderr.splitlines()[0]
    assert "this is not a Slurm job, so " in first
    assert "use harness submit, or put srun before the command" in first
    environment["HARNESS_JOBS_ONLY"] = "1"
    sweep = make_sweep(harness.folder / "sweep", RANDOM).folder
    for command in (
        words,
        [*words[:2], JOBS / "gru.toml", "--seeds", "1-2"],
        ["tune", JOBS / "tune_lstm.toml"],
        ["audit", "a", "b", "--full"],
        ["sweep", "join", sweep],
        ["sweep", "retrain", sweep],
        ["doctor", "--probe"],
    ):
        said = harness.refuse(*command)
        assert "only in Slurm jobs; use harness submit, or put srun" in said
    assert not harness.runs.exists()
    assert "only in Slurm jobs" not in harness.refuse("audit", "a", "--quick")
    said = harness.run_here("sweep", "retrain", sweep, "--here").stderr
    assert "has no finished trial" in said.splitlines()[0]
    assert "no-such" in harness.run_here(*words, "--here").stderr.splitlines()[0]
    environment["SLURM_JOB_ID"] = "7"
    assert "no-such" in harness.run_here(*words).stderr.splitlines()[0]


@pytest.mark.full
def test_only_a_run_that_begins_takes_back_its_cancel(harness: Harness) -> None:
    """After a refused command the run stays cancelled, or the other seeds' job would restart it."""
    run = harness.runs / "lstm/slurm-12-seed1"
    ask_to_cancel(run)
    settings = [*SHRUNK[1::2], "train.epochs=1"]
    (run / "job.toml").write_text(load_job(JOBS / "lstm.toml", settings).to_toml())
    harness.program("sbatch", "exit 1")
    environment = harness.environment
    environment["HARNESS_JOBS_ONLY"] = "1"
    del environment["HARNESS_HERE"]
    for options, said in (
        ([], "only in Slurm jobs"),
        (["--here", "--data", "nowhere"], "nowhere"),
        (["--here"], "TensorFlow can't be imported"),
    ):
        assert said in harness.refuse("resume", run, *options)
        assert (run / "cancel.json").exists()
    harness.succeed("resume", run, "--here")
    assert not (run / "cancel.json").exists()


@pytest.mark.parametrize("own_id", ["56", "56_1"])
@pytest.mark.parametrize("phase", ["training", "interrupted"])
def test_another_job_continues_the_run_of_an_array_task(
    site: Site, phase: str, own_id: str
) -> None:
    """`status` shows the other job, so no further job is submitted."""
    waits = phase == "interrupted"
    site.slurm(f"{own_id}|56|{'PENDING' if waits else 'RUNNING'}|1:00|None|/x.sh")
    site.run("slurm-12_4", phase, slurm_job="56", slurm_own_id=own_id)
    status = site.only()
    assert (status.state, status.slurm_job) == ("pending" if waits else "running", own_id)
    assert not interrupted([status])
    site.slurm(script="exit 1")
    assert site.only().slurm_job == own_id  # even if squeue fails
    for name in ("12_4", "12", "56", "slurm-12_4"):
        assert pick(name, [status], site.runs) == [status]
