"""The job scripts, run by bash: the arguments of the harness, exit codes, signals, requeues."""

import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from harness.slurm.batch import Counters
from harness.slurm.script import Request, render_script
from harness.system.console import strip_prefix
from tests.conftest import PROJECT, write_program
from tests.slurm.stand_in import Project

JOBS = ("rnn", "lstm", "gru", "bilstm", "stacked_lstm")
SCRIPTS = (*JOBS, "tune", "compare", "tensorboard", "doctor")
TASK = {"SLURM_JOB_ID": "44", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "2"}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose environment has a stand-in for the harness."""
    return Project(tmp_path)


@pytest.mark.parametrize(("script", "hours"), [("lstm", "02"), ("tune", "08")])
def test_the_request_of_a_script(script: str, hours: str) -> None:
    """A warning comes 90 s before the time limit. Another test compares all training scripts."""
    requested = (
        *("gres=gpu:1", "cpus-per-task=4", "mem=16G", f"time={hours}:00:00"),
        *("open-mode=append", "requeue", "signal=B:USR2@90"),
    )
    text = (PROJECT / f"slurm/{script}.sh").read_text()
    assert [each for each in requested if f"#SBATCH --{each}\n" not in text] == []


@pytest.fixture
def asked(project: Project) -> Path:
    """A file with the arguments of all calls of scontrol, which prints nothing."""
    return scontrol(project)


def scontrol(project: Project, then: str = "exit 0") -> Path:
    """Replace scontrol by a program that records its arguments and then runs `then`."""
    asked = project.outside / "asked"
    asked.touch()
    write_program(project.commands / "scontrol", f'echo "$@" >>{shlex.quote(str(asked))}; {then}')
    return asked


# Arguments


def test_a_script_trains_its_job(project: Project) -> None:
    """Each script works in any folder and passes arguments on; only names differ in the scripts."""
    arguments = ["--set", "train.note=two words", "it's", '"', "*", "", "$HOME"]
    result = project.run(project.path / "slurm/gru.sh", *arguments)
    assert result.returncode == 0, result.stderr
    assert project.call()["argv"] == ["train", f"{project.path}/jobs/gru.toml", *arguments]
    assert project.call()["runs"] == f"{project.path}/runs"
    texts = {(PROJECT / f"slurm/{job}.sh").read_text().replace(job, "NAME") for job in JOBS}
    assert len(texts) == 1


# The project, and the kind of allocation


def test_a_script_finds_its_project(project: Project) -> None:
    """HARNESS_HOME comes first, then the script's path in squeue, then the folder of sbatch."""
    # squeue may print a cluster's name first; the user's SQUEUE_STATES would hide the job.
    answer = '[ -n "$SQUEUE_STATES" ] || printf \'CLUSTER: x\\n%s\\nmore\\n\' "$SCRIPT"'
    write_program(project.commands / "squeue", answer)
    queued = {"SCRIPT": str(project.path / "slurm/gru.sh"), "SQUEUE_STATES": "PD"}
    for found in (queued, {"HARNESS_HOME": str(project.path)}):
        env = project.slurm(**{"SLURM_SUBMIT_DIR": "/", **found})
        result = project.run(project.spool("gru"), env=env)
        assert result.returncode == 0, result.stderr
        assert project.call()["argv"][1] == f"{project.path}/jobs/gru.toml"


@pytest.mark.parametrize("name", ["SLURM_SUBMIT_DIR", "HARNESS_HOME"])
def test_without_a_project_a_line_names_the_missing_file(project: Project, name: str) -> None:
    """Bash itself prints this line; another line names the setting."""
    write_program(project.commands / "squeue", "exit 1")
    result = project.run(project.spool(), env=project.slurm(**{name: str(project.outside)}))
    assert result.returncode == 2
    missing, remedy = result.stderr.splitlines()[-2:]
    assert f"{project.outside}/slurm/common.sh: No such file" in missing
    assert remedy == "harness: set HARNESS_HOME to the project"


def test_a_script_needs_neither_home_nor_path(project: Project) -> None:
    """`--export=NONE` removes both variables; with CDPATH, `cd` may enter another folder."""
    (project.outside / "elsewhere/slurm").mkdir(parents=True)
    env = project.environment | {"CDPATH": str(project.outside / "elsewhere")}
    for name in ("PATH", "HOME"):
        env.pop(name, None)
    done = subprocess.run(["/bin/bash", "slurm/bilstm.sh"], env=env, cwd=project.path, timeout=60)
    assert done.returncode == 0
    assert project.call()["argv"][1] == f"{project.path}/jobs/bilstm.toml"


def test_a_heterogeneous_job_is_refused(project: Project) -> None:
    """Its parts may have different nodes and GPUs."""
    result = project.run(project.spool(), env=project.slurm(SLURM_HET_SIZE="2"))
    assert result.returncode == 2
    assert "is heterogeneous" in result.stderr.splitlines()[-1]
    assert not project.note.exists()


@pytest.mark.parametrize("name", ["slurm/bilstm.sh", "my copy.sh"])
def test_a_script_that_is_called_in_a_job_is_interactive(project: Project, name: str) -> None:
    """Several interactive runs in one job get different names."""
    script = project.path / name
    if not script.exists():
        shutil.copy(project.path / "slurm/bilstm.sh", script)
    result = project.run(script, env=project.slurm())
    assert result.returncode == 0
    call = project.call()
    assert ("--run-id" in call["argv"], call["batch_job"]) == (False, None)


def test_a_users_batch_script_may_execute_a_script_of_the_project(project: Project) -> None:
    """At some sites /proc shows no processes of Slurm; Slurm states the batch script's id."""
    text = f"export SLURM_TASK_PID=$$\nexec bash {shlex.quote(str(project.path))}/slurm/bilstm.sh"
    mine = project.executable(project.outside / "mine.sh", text)
    for step, batch_job in ({}, "42"), ({"SLURM_STEP_ID": "0"}, None):
        assert project.run(mine, env=project.slurm(**step)).returncode == 0
        assert project.call()["batch_job"] == batch_job


def test_a_job_ignores_variables_of_the_shell_that_called_sbatch(project: Project) -> None:
    """The job ignores the shell's step and requests for GPUs."""
    scontrol(project, "echo TresPerNode=gres/gpu:8,gres/gpu:4")
    session = dict.fromkeys(("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS"), "4")
    session |= {"SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_GPUS": "1", "SLURM_GPUS_PER_TASK": "1"}
    done = project.run(project.spool(), env=project.slurm(SLURM_GPUS_ON_NODE="4", **session))
    assert done.returncode == 0, done.stderr
    assert "--gpus-per-node=8 does not replace" in done.stderr
    assert "time limit" not in done.stderr
    assert project.call()["slurm"] == ["SLURM_GPUS_ON_NODE", "SLURM_JOB_ID", "SLURM_SUBMIT_DIR"]


def test_a_resumed_job_keeps_each_requested_option_once(project: Project) -> None:
    """The job requests the kept options again, and scontrol shows them with the job's limit."""
    shown = "Features=big ExcNodeList=n7 TresPerNode=gres/gpu:a100:2,gres/disk:9"
    scontrol(project, f"echo {shown} TimeLimit=00:02:00")
    kept = "-C big --qos=long --exclude=n6 --gres=gpu:t4:1"
    done = project.run(project.spool(), env=project.slurm(HARNESS_FLAGS=kept))
    assert done.returncode == 0, done.stderr
    flags = "--qos=long --time=00:02:00 --constraint=big --exclude=n7 --gres=gpu:a100:1,disk:9"
    assert project.call()["flags"] == flags
    assert "with a time limit of 120 s, the run saves" in done.stderr


def test_the_log_of_an_array_task_is_also_found_by_its_shown_id(project: Project) -> None:
    """Slurm names the log by the task's raw job id, which only the task knows."""
    log = project.outside / "lstm-44.out"
    with log.open("w") as file:
        words = ["bash", str(project.spool())]
        subprocess.run(words, env=project.slurm(**TASK), stdout=file, timeout=60, check=True)
    assert log.samefile(project.outside / "lstm-42_2.out")


def test_settings_of_the_site(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """site.sh may use unset variables, and its modules may set PROJECT.

    It sets a submitted job's container, but not its folders.
    """
    (project.path / "slurm/site.sh").write_text(
        "export HARNESS_RUNS=/elsewhere HARNESS_DATA=/the/site PROJECT=/the/module project=p\n"
        'HARNESS_CONTAINER=(env "IMAGE=an image" $UNSET)\n'
    )
    assert project.run(project.path / "slurm/bilstm.sh").returncode == 0
    call = project.call()
    assert (call["runs"], call["data"], call["image"]) == ("/elsewhere", "/the/site", "an image")
    monkeypatch.setenv("HARNESS_VENV", "/nowhere")
    monkeypatch.setenv("HARNESS_DATA", "/my/own")
    request = Request(project.path, Path("/mine"), home=project.path)
    text = render_script(request, {}, ["supervise", "compare"])
    done = project.run(project.executable(project.outside / "job.sh", text))
    assert done.returncode == 0, done.stderr
    call = project.call()
    assert (call["runs"], call["data"], call["image"]) == ("/mine", "/my/own", "an image")


@pytest.mark.parametrize("named", ["", "relative"])
def test_a_submitted_job_finds_the_environment_of_its_container(
    project: Project, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """A relative HARNESS_VENV, or none, means a folder in the project, not in the code's copy."""
    (project.path / "slurm/site.sh").write_text(
        f"HARNESS_VENV={named} HARNESS_CONTAINER=(env IMAGE=x)\n"
    )
    monkeypatch.setenv("HARNESS_VENV", named)
    copy = project.path / "runs/.submissions/code-0"
    shutil.copytree(project.path / "slurm", copy / "slurm")
    project.venv.rename(project.path / (named or ".venv"))
    request = Request(project.path, project.path / "runs", home=copy)
    text = render_script(request, {}, ["supervise", "compare"])
    done = project.run(project.executable(project.outside / "job.sh", text))
    assert (done.returncode, project.call()["image"]) == (0, "x"), done.stderr


# Exit codes and signals


def test_a_submitted_job_without_its_environment(project: Project, asked: Path) -> None:
    """The job is requeued, because another node may have the environment; a line has the remedy."""
    missing = project.outside / "missing"
    home = {"HARNESS_HOME": str(project.path), "HARNESS_SNAPSHOT": "1"}
    env = project.slurm(HARNESS_VENV=str(missing), **home)
    done = project.run(project.spool(), env=env)
    assert "requeue" in asked.read_text()
    assert f"{missing}/bin/harness is missing, and a submitted job installs nothing" in done.stderr
    assert "run `bash slurm/common.sh --setup`" in done.stderr


@pytest.mark.parametrize(
    ("number", "forwarded"),
    [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1"), (signal.SIGINT, "SIGTERM")],
)
def test_a_signal_is_forwarded_once(
    project: Project, number: signal.Signals, forwarded: str
) -> None:
    """A repeated signal is dropped; INT becomes TERM, because a background process ignores INT."""
    script = project.path / "slurm/bilstm.sh"
    code, _ = project.signalled(script, number, number, env=project.environment)
    assert (code, project.call()["signals"]) == (75, [forwarded])


def test_a_signal_ends_script_and_harness_at_once(project: Project) -> None:
    """Slurm sends TERM to all processes of a job; bash 5.2 may then lose the child's exit code."""
    end = 'SIGNALS=""; run_child sh -c "kill -TERM \\$PPID \\$\\$"; [[ $RC == 143 ]] || exit 9'
    command = f'source "$1/slurm/common.sh"; for _ in {{1..40}}; do {end}; done'
    words = ["bash", "-c", command, "bash", str(project.path)]
    assert subprocess.run(words, env=project.environment, timeout=60).returncode == 0


def test_lines_of_a_log_have_time_and_level(project: Project) -> None:
    """The script's lines look like the harness's lines; the last line explains the end."""
    log = project.outside / "job.out"
    words = ["bash", str(project.spool())]
    with log.open("w") as file:
        done = subprocess.run(words, env=project.slurm(EXIT="137"), stderr=file, timeout=60)
    assert done.returncode == 137
    line = log.read_text().splitlines()[-1]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ERROR killed, most likely", line)
    assert strip_prefix(line).endswith("exit code 137")


def test_a_job_whose_log_is_on_a_full_disk_still_trains(project: Project) -> None:
    """Only the lines of the log are lost."""
    with Path("/dev/full").open("w") as full:
        words = ["bash", str(project.spool())]
        done = subprocess.run(words, env=project.slurm(), stderr=full, timeout=60)
    assert (done.returncode, project.call()["argv"][0]) == (0, "train")


# Requeues


def test_a_preempted_job_is_requeued_at_once(project: Project) -> None:
    """The user's SLURM_TIME_FORMAT does not affect the check for a preemption."""
    is_standard = '[ "${SLURM_TIME_FORMAT:-standard}" = standard ]'
    now = f"$({is_standard} && echo 2026-01-01T12:00:00 || echo noon)"
    asked = scontrol(project, f'echo "PreemptTime={now} EndTime={now} Restarts=0"')
    env = project.slurm(SLURM_TIME_FORMAT="%A")
    code, output = project.signalled(project.spool(), signal.SIGTERM, env=env)
    assert (code, "preempted; job 42 is back in the queue" in output) == (75, True), output
    assert asked.read_text().splitlines()[-1] == "requeue 42"


@pytest.mark.parametrize(
    ("end", "answer", "calls"),
    [("12:00:00", "job 42 is back in the queue", 1), ("12:00:09", "submit the job again", 0)],
)
def test_a_preempted_job_is_requeued_even_if_no_container_starts(
    project: Project, end: str, answer: str, calls: int
) -> None:
    """Slurm starts no job step in a job that ends. A user may cancel the job a little later."""
    known = f"PreemptTime=2026-01-01T12:00:00 EndTime=2026-01-01T{end} Restarts=0"
    asked = scontrol(project, f'echo "{known}"')
    wait = 'trap \'touch "$NOTE"; exit 75\' TERM; touch "${NOTE%.json}.ready"; sleep 9 2>&- & wait'
    project.program(f"case $1 in job-end) exit 1 ;; esac; {wait}", real=["job-begin"])
    code, output = project.signalled(project.spool(), signal.SIGTERM, env=project.slurm())
    assert (code, answer in output) == (75, True), output
    assert asked.read_text().splitlines().count("requeue 42") == calls


@pytest.mark.parametrize("decides", ["job-end", "none"])
def test_a_job_that_is_cancelled_before_its_second_start_begins_names_itself(
    project: Project, decides: str
) -> None:
    """A new job would begin a new run. The script says the same if Python does not start."""
    scontrol(project)
    wait = 'touch "$NOTE" "${NOTE%.json}.ready"; sleep 1; exit 143'
    project.program(f"case $1 in job-begin) {wait} ;; *) exit 1 ;; esac", real=[decides])
    said = []
    for restarts in ("1", "0"):
        project.note.with_suffix(".ready").unlink(missing_ok=True)
        env = project.slurm(SLURM_RESTART_COUNT=restarts)
        code, output = project.signalled(project.spool(), signal.SIGTERM, env=env)
        assert code == 75
        said.append(output.splitlines()[-1].partition("interrupted; ")[2])
    words = ["harness", "submit", "--resume", "42", "--runs", f"{project.path}/runs"]
    assert shlex.split(said[0].removeprefix("continue with: ")) == words
    assert said[1].startswith("submit the job again")


def test_an_array_task_requeues_only_itself(project: Project, asked: Path) -> None:
    """The job id of one task is the array's id; with this id, scontrol would act on all tasks."""
    project.program('echo "n1 broken" >>"$HARNESS_NODE_FAULTS"; exit 75')
    done = project.run(project.spool(), env=project.slurm(**TASK | {"SLURM_JOB_ID": "42"}))
    assert (done.returncode, "job 42_2 is back in the queue" in done.stderr) == (75, True)
    lines = asked.read_text().splitlines()
    assert {"requeue 42_2", "update JobId=42_2 ExcNodeList=n1"} < {*lines}
    assert not [line for line in lines if re.search(r"\b42\b(?!_2)", line)]


def test_a_job_that_is_cancelled_while_job_end_decides_stays_cancelled(
    project: Project, asked: Path
) -> None:
    """If the script called scontrol, Slurm would requeue the cancelled job."""
    project.program(
        'case "$*" in train*) exit 75 ;; *TERM*) echo stop; exit ;; esac\n'
        'touch "$NOTE" "${NOTE%.json}.ready"; sleep 1; echo requeue',
        real=["job-begin"],
    )
    code, output = project.signalled(project.spool(), signal.SIGTERM, env=project.slurm())
    assert (code, "requeue" in asked.read_text()) == (75, False), output


def test_a_warning_during_the_installation_requeues_the_job(project: Project, asked: Path) -> None:
    """The script handles signals even while it prepares the environment."""
    (project.path / "requirements.lock").touch()
    new, ready = project.outside / "new", project.note.with_suffix(".ready")
    slow = f"touch {ready}; sleep 1; mkdir {new}/bin; cp '{project.venv}/bin/harness' $0 {new}/bin"
    python = project.executable(
        project.commands / "python", f"#!/bin/sh\ncase $* in '-m venv '*) {slow} ;; esac\n"
    )
    env = project.slurm(HARNESS_VENV=str(new), HARNESS_PYTHON=str(python))
    project.note.touch()  # the harness is ended before it can write this file
    code, output = project.signalled(project.spool(), signal.SIGUSR2, env=env)
    assert (code, "is back in the queue" in output) == (75, True), output


def test_the_third_start_without_a_step_is_the_last(project: Project, asked: Path) -> None:
    """The job ends even if a warning of the time limit comes before each run begins."""
    ready = shlex.quote(str(project.note.with_suffix(".ready")))
    project.program(f'touch "$NOTE" {ready}; exec sleep 20')
    counters = project.path / "runs/.submissions/ends-42-bilstm-slurm-42.json"
    Counters(idle=1).write(counters)
    ends = []
    for restarts in ("30", "31"):  # the number of requeues does not matter
        project.note.with_suffix(".ready").unlink(missing_ok=True)
        env = project.slurm(SLURM_RESTART_COUNT=restarts)
        code, output = project.signalled(project.spool(), signal.SIGUSR2, env=env)
        ends.append((code, "is back in the queue" in output))
    assert ends == [(75, True), (1, False)]
    assert "gave up after 3 starts in succession" in output.splitlines()[-1]
    assert asked.read_text().count("requeue 42\n") == 1


@pytest.mark.parametrize(
    ("begins", "restarts", "code", "is_requeued"),
    [
        (True, "9", 75, True),  # the run saved
        (False, "1", 126, True),
        (False, "2", 126, False),  # the third start that did not reach its run
    ],
)
def test_a_job_is_requeued_if_python_does_not_start(
    project: Project, asked: Path, begins: bool, restarts: str, code: int, is_requeued: bool
) -> None:
    """Without `job-end`, the script decides by the exit code and Slurm's count of restarts."""
    fails = "case $1 in train) exit 75 ;; *) exit 126 ;; esac"
    project.program(fails, real=["job-begin"] if begins else ["none"])
    done = project.run(project.spool(), env=project.slurm(SLURM_RESTART_COUNT=restarts))
    assert done.returncode == code, done.stderr
    assert ("requeue 42" in asked.read_text()) == is_requeued


def test_a_successor_continues_where_slurm_forbids_the_requeue(project: Project) -> None:
    """Python writes the successor's script inside of the container; sbatch is called outside."""
    (project.path / "slurm/site.sh").write_text("HARNESS_CONTAINER=(env IMAGE=x)\numask 002\n")
    asked = scontrol(project, "echo requeue is disabled >&2; exit 1")
    write_program(project.commands / "sbatch", 'echo "a hint of the site"\necho "78;${IMAGE:-}"')
    folder = project.path / "runs/.submissions/one"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"job_id": "@JOB@"}')
    fault = f"echo n1 is broken >{shlex.quote(str(folder.parent))}/node-faults-42"
    answer = f"SUCCESSOR=(sbatch --parsable job.sh)\nRECORD={shlex.quote(str(folder))}/record.json"
    project.program(
        f'case $1 in train) {fault}; exit 75 ;; esac\necho "$@" >"$NOTE"\ncat <<END\n{answer}\nEND'
    )
    result = project.run(project.spool(), env=project.slurm())
    assert asked.read_text().splitlines()[-1] == "requeue 42"
    words = f"job-successor {project.path}/runs/bilstm/slurm-42 --runs {project.path}/runs"
    assert project.note.read_text() == f"{words} -- ExcNodeList=n1\n"
    assert result.stderr.splitlines()[-1].endswith("interrupted; job 78 continues the run")
    record = folder.parent / "78.json"
    assert (record.read_text(), record.stat().st_mode & 0o777) == ('{"job_id": "78"}', 0o644)


@pytest.mark.parametrize(
    ("variables", "answer"),
    [
        ({}, "continue with: the same command with --run-id slurm-42"),
        ({"HARNESS_SNAPSHOT": "1"}, "continue with: harness submit --resume 42 --runs {runs}"),
    ],
)
def test_without_a_successor_the_last_line_names_the_command(
    project: Project, variables: dict[str, str], answer: str
) -> None:
    """If `harness submit` has recorded the seeds of the job, the job's id names all runs."""
    preempted = "PreemptTime=2026-01-01T00:00:00 EndTime=2026-01-01T00:00:00 Restarts=0"
    scontrol(project, f"echo {preempted}; echo requeue is disabled >&2; exit 1")
    run = project.path / "runs/bilstm/slurm-42-seed2"
    run.mkdir(parents=True)
    (run / "state.json").write_text('{"step": 5}')
    project.program("case $1 in train) exit 75 ;; esac; exit 2")
    done = project.run(project.spool(), env=project.slurm(**variables))
    assert done.returncode == 75
    command = answer.format(runs=shlex.quote(str(project.path / "runs")))
    assert done.stderr.splitlines()[-1].endswith(f"interrupted; {command}")
