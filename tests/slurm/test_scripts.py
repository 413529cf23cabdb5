"""The job scripts, run by a real bash: what reaches the harness, and what comes back."""

import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from harness.slurm.script import render_script
from harness.system.console import strip_prefix
from tests.conftest import PROJECT
from tests.slurm.stand_in import Project

JOBS = ("rnn", "lstm", "gru", "bilstm", "stacked_lstm")
SCRIPTS = (*JOBS, "tune", "compare", "tensorboard", "doctor")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project whose environment is a stand-in that was made by other means."""
    return Project(tmp_path)


@pytest.mark.parametrize("job", JOBS)
def test_script_trains_its_job(project: Project, job: str) -> None:
    """Each script trains the job of its name, into the project's runs, from any folder."""
    result = project.run(project.path / f"slurm/{job}.sh")
    assert result.returncode == 0, result.stderr
    assert project.call()["argv"] == ["train", f"{project.path}/jobs/{job}.toml"]
    assert project.call()["runs"] == f"{project.path}/runs"


def test_training_scripts_differ_in_their_name_only() -> None:
    """What the scripts say beyond their job's name is the same, so a mend reaches all."""
    texts = {(PROJECT / f"slurm/{job}.sh").read_text().replace(job, "NAME") for job in JOBS}
    assert len(texts) == 1


def test_arguments_pass_unchanged(project: Project) -> None:
    """Arguments with spaces, quotes, globs and nothing in them reach the harness as they are."""
    arguments = ["--set", "train.note=two words", "it's", '"', "*", "", "$HOME"]
    result = project.run(project.path / "slurm/bilstm.sh", *arguments)
    assert result.returncode == 0, result.stderr
    assert project.call()["argv"][2:] == arguments


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("tune", ["jobs/a b.toml"], ["tune", "jobs/a b.toml", "--sweep-id", "slurm-42"]),
        ("tune", ["j.toml", "--sweep-id=mine"], ["tune", "j.toml", "--sweep-id=mine"]),
        ("tune", ["--workers", "2", "--join", "a b"], ["sweep", "join", "--workers", "2", "a b"]),
        ("tune", ["--join=a=b"], ["sweep", "join", "a=b"]),
        ("tune", ["--retrain", "s", "--seeds", "1"], ["sweep", "retrain", "s", "--seeds", "1"]),
        ("compare", ["{runs}/x*"], ["compare", "--out", "{runs}/comparison", "{runs}/x*"]),
        ("compare", [], ["compare", "--out", "{runs}/comparison"]),
        ("compare", ["--out=a b", "{runs}"], ["compare", "--out=a b", "{runs}"]),
        ("compare", ["--runs=/a b"], ["compare", "--out", "/a b/comparison", "--runs=/a b"]),
        ("tensorboard", ["--hours", "2"], ["tensorboard", "--hours", "2"]),
    ],
)
def test_script_calls_its_command(
    project: Project, script: str, arguments: list[str], words: list[str]
) -> None:
    """The other scripts pass their arguments to the command of their name, patterns as they are."""
    runs = project.path / "runs"
    result = project.run(
        project.spool(script), *(word.format(runs=runs) for word in arguments), env=project.slurm()
    )
    assert result.returncode == 0, result.stderr
    assert project.call()["argv"] == [word.format(runs=runs) for word in words]


def test_the_checks_of_a_node_are_this_projects(project: Project) -> None:
    """They run by the environment's Python, without what the current folder holds."""
    project.add_python()
    result = project.run(project.spool("doctor"), "--full", env=project.slurm())
    assert result.returncode == 0, result.stderr
    assert project.call()["argv"] == ["-P", "-m", "tests.gpu", "--full"]


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_run_or_sweep_goes_on_where_it_is(project: Project, kind: str) -> None:
    """What `submit --resume` writes calls `harness resume`; a sweep starts its own job steps."""
    script = project.executable(
        project.spool(),
        f'#!/bin/bash\nsource "$HARNESS_HOME/slurm/common.sh"\nsupervise resume {kind} "$@"\n',
    )
    project.executable(
        project.commands / "srun",
        '#!/bin/bash\ntouch srun\nexec "${@: -3}"\n',
    )
    project.executable(project.commands / "scontrol", "#!/bin/sh\nprintf 'n08\\nn10\\n'\n")
    env = project.slurm(
        HARNESS_HOME=str(project.path),
        HARNESS_TRUSTED_NETWORK="1",
        SLURM_JOB_NUM_NODES="2",
        SLURM_JOB_NODELIST="n[08,10]",
    )
    result = project.run(script, "a folder", env=env)
    assert result.returncode == 0, result.stderr
    assert project.call()["argv"] == ["resume", "a folder"]
    assert (project.outside / "srun").exists() == (kind == "run")


@pytest.mark.parametrize("code", [1, 2, 75])
def test_exit_code_is_the_harness_own(project: Project, code: int) -> None:
    """The script ends with the exit code of the run."""
    env = {**project.environment, "EXIT": str(code)}
    assert project.run(project.path / "slurm/bilstm.sh", env=env).returncode == code


def test_bare_environment_is_enough(project: Project) -> None:
    """A script runs without HOME and PATH, which `--export=NONE` drops."""
    env = project.slurm()
    del env["PATH"]
    result = subprocess.run(
        [shutil.which("bash") or "bash", str(project.spool())],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr


def test_spool_copy_finds_the_project(project: Project) -> None:
    """Slurm knows where the script is that it copied; the job's id names the run."""
    script = project.path / "slurm/gru.sh"
    project.executable(
        project.commands / "squeue", f"#!/bin/sh\necho {shlex.quote(str(script))}\necho more\n"
    )
    result = project.run(
        project.spool("gru"), "--set", "a.b=1", env=project.slurm(SLURM_SUBMIT_DIR="/")
    )
    assert result.returncode == 0, result.stderr
    job = f"{project.path}/jobs/gru.toml"
    assert project.call()["argv"] == ["train", job, "--run-id", "slurm-42", "--set", "a.b=1"]


def test_squeues_answer_is_found_among_others(project: Project) -> None:
    """It may print a cluster's name first, and a user's own settings would hide the job."""
    script = project.path / "slurm/gru.sh"
    answer = f"[ -n \"$SQUEUE_STATES\" ] || printf 'CLUSTER: x\\n%s\\n' {shlex.quote(str(script))}"
    project.executable(project.commands / "squeue", f"#!/bin/sh\n{answer}\n")
    env = project.slurm(SLURM_SUBMIT_DIR="/", SQUEUE_STATES="PD")
    result = project.run(project.spool("gru"), env=env)
    assert result.returncode == 0, result.stderr
    assert project.call()["argv"][1] == f"{project.path}/jobs/gru.toml"


def test_submit_folder_is_the_project_where_slurm_does_not_answer(project: Project) -> None:
    """With a scheduler that is down the project is where sbatch was called."""
    project.executable(project.commands / "squeue", "#!/bin/sh\nexit 1\n")
    result = project.run(project.spool("gru"), env=project.slurm())
    assert result.returncode == 0, result.stderr
    assert project.call()["argv"][1] == f"{project.path}/jobs/gru.toml"


def test_home_overrides_the_submit_folder(project: Project) -> None:
    """HARNESS_HOME names the project wherever sbatch was called."""
    env = project.slurm(SLURM_SUBMIT_DIR="/", HARNESS_HOME=str(project.path))
    assert project.run(project.spool(), env=env).returncode == 0
    assert project.call()["argv"][1] == f"{project.path}/jobs/bilstm.toml"


@pytest.mark.parametrize("name", ["SLURM_SUBMIT_DIR", "HARNESS_HOME"])
def test_no_project_is_one_line(project: Project, name: str) -> None:
    """Where the project is not found, the folder that was looked in is named last."""
    project.executable(project.commands / "squeue", "#!/bin/sh\nexit 1\n")
    result = project.run(project.spool(), env=project.slurm(**{name: str(project.outside)}))
    assert result.returncode == 2
    line = result.stderr.splitlines()[-1]
    assert f"{project.outside} is not the project" in line
    assert "set HARNESS_HOME" in line


def test_interactive_allocation_starts_fresh_runs(project: Project) -> None:
    """Inside salloc, where many runs share the job's id, the harness names the run."""
    env = project.slurm(SLURM_SUBMIT_DIR="/")
    assert project.run(project.path / "slurm/bilstm.sh", env=env).returncode == 0
    assert "--run-id" not in project.call()["argv"]


def test_a_users_own_job_script_may_call_one(project: Project) -> None:
    """Its runs have the job's id, and the sum of their arguments; a step of it is no such call.

    The id of a step may be that of the session from which it was submitted.
    """
    env = project.slurm(SLURM_SUBMIT_DIR="/", ENVIRONMENT="BATCH")
    scontrol = project.commands / "scontrol"
    project.executable(scontrol, "#!/bin/sh\necho StepId=42.0 State=RUNNING\n")
    script = project.path / "slurm/bilstm.sh"
    names = []
    for arguments in ([], ["--set", "a.b=1"], ["--set", "a.b=2"], ["--set", "a.b=1"]):
        assert project.run(script, *arguments, env=env).returncode == 0
        argv = project.call()["argv"]
        names.append(argv[argv.index("--run-id") + 1])
    assert names[0] == "slurm-42"
    assert re.fullmatch(r"slurm-42-\d+", names[1])
    assert (names[1] == names[3], names[1] == names[2]) == (True, False)
    assert project.run(script, env={**env, "SLURM_STEP_ID": "0"}).returncode == 0
    assert "--run-id" not in project.call()["argv"]
    project.executable(scontrol, "#!/bin/sh\necho Job step 42.0 not found\nexit 1\n")
    assert project.run(script, env={**env, "SLURM_STEP_ID": "0"}).returncode == 0
    assert "--run-id" in project.call()["argv"]


@pytest.mark.parametrize("task", ["3", "0"])
def test_array_task_is_the_seed(project: Project, task: str) -> None:
    """An array task's number becomes the seed and a part of the run's id."""
    env = project.slurm(SLURM_JOB_ID="44", SLURM_ARRAY_JOB_ID="42", SLURM_ARRAY_TASK_ID=task)
    assert project.run(project.spool(), env=env).returncode == 0
    assert project.call()["argv"][2:] == ["--seed", task, "--run-id", f"slurm-42_{task}"]


def test_array_task_finds_its_seed_in_a_list(project: Project) -> None:
    """Seeds too large for an index are exported in the order of the tasks."""
    env = project.slurm(SLURM_JOB_ID="44", SLURM_ARRAY_JOB_ID="42", SLURM_ARRAY_TASK_ID="2")
    env["HARNESS_ARRAY_SEEDS"] = "42 1234 2024"
    assert project.run(project.spool(), env=env).returncode == 0
    assert project.call()["argv"][2:] == ["--seed", "1234", "--run-id", "slurm-42_2"]


@pytest.mark.parametrize("given", [["--seed", "7"], ["--seed=7"]])
def test_given_seed_wins(project: Project, given: list[str]) -> None:
    """A seed on the command line wins over the array task's number."""
    env = project.slurm(SLURM_ARRAY_JOB_ID="42", SLURM_ARRAY_TASK_ID="3")
    assert project.run(project.spool(), *given, env=env).returncode == 0
    assert project.call()["argv"][2:] == ["--run-id", "slurm-42_3", *given]


def test_two_nodes_start_a_process_on_each(project: Project) -> None:
    """On several nodes srun starts one harness a node, with the job's CPUs and environment."""
    project.executable(
        project.commands / "srun",
        '#!/bin/bash\necho "$@" >&2\nexec "${@: -5}"\n',
    )
    project.executable(project.commands / "scontrol", "#!/bin/sh\nprintf 'n08\\nn10\\n'\n")
    env = project.slurm(
        SLURM_JOB_NUM_NODES="2", SLURM_JOB_NODELIST="n[08,10]", SLURM_CPUS_PER_TASK="4",
        HARNESS_TRUSTED_NETWORK="1",
    )  # fmt: skip
    result = project.run(project.spool(), env=env)
    assert result.returncode == 0, result.stderr
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --mem=0 --export=ALL" in result.stderr
    assert "--cpus-per-task=4" in result.stderr
    assert project.call()["nodes"].split() == ["n08", "n10"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signal_is_passed_on_once(project: Project, number: signal.Signals) -> None:
    """A signal reaches the harness once, however often it comes, and its 75 is returned."""
    code, _ = project.signalled(
        project.path / "slurm/bilstm.sh", number, number, env=project.environment
    )
    assert code == 75
    assert project.call()["signals"] == [number.name]


def test_interrupt_reaches_the_harness_as_term(project: Project) -> None:
    """Ctrl-C stops the harness too, though a background child ignores INT."""
    code, _ = project.signalled(
        project.path / "slurm/bilstm.sh", signal.SIGINT, env=project.environment
    )
    assert code == 75
    assert project.call()["signals"] == ["SIGTERM"]


def test_lines_in_a_log_carry_time_and_level(project: Project, tmp_path: Path) -> None:
    """In a file a line begins as the harness's own do, so that a log shows when and what."""
    log = tmp_path / "job.out"
    with log.open("w") as file:
        done = subprocess.run(
            ["bash", str(project.spool())],
            env=project.slurm(EXIT="137"),
            cwd=project.outside,
            stderr=file,
            timeout=60,
        )
    assert done.returncode == 137
    line = log.read_text().splitlines()[-1]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ERROR killed, most likely", line)
    assert strip_prefix(line).startswith("killed, most likely")


def test_site_settings_and_container(project: Project) -> None:
    """slurm/site.sh is read, may use unset variables, and its container starts the harness."""
    (project.path / "slurm/site.sh").write_text(
        "export HARNESS_RUNS=/elsewhere HARNESS_DATA=/the/site\n"
        'HARNESS_CONTAINER=(env "IMAGE=an image" $UNSET)\n'
    )
    assert project.run(project.path / "slurm/bilstm.sh").returncode == 0
    call = project.call()
    assert (call["runs"], call["data"], call["image"]) == ("/elsewhere", "/the/site", "an image")
    submitted = {"HARNESS_HOME": str(project.path), "HARNESS_SNAPSHOT": "1"}
    submitted |= {"HARNESS_VENV": "/nowhere", "HARNESS_RUNS": "/mine", "HARNESS_DATA": "/my/own"}
    text = render_script([], submitted, ["supervise", "compare"])
    done = project.run(project.executable(project.outside / "job.sh", text))
    assert done.returncode == 0, done.stderr
    call = project.call()
    assert (call["runs"], call["data"], call["image"]) == ("/mine", "/my/own", "an image")
