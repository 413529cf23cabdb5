"""By which names the job scripts know their job, its run and the copy of its data."""

import os
import pty
import re
import signal
import subprocess

import pytest

from tests.slurm.stand_in import Project
from tests.slurm.test_scripts import project  # noqa: F401 - a fixture

ASKED = "SLURM_GPUS_PER_NODE"


def test_one_task_of_an_array_acts_on_itself_alone(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """Slurm gives one of them the array's own id, by which scontrol would act on all tasks."""
    asked = project.outside / "asked"
    project.executable(project.commands / "scontrol", '#!/bin/sh\necho "$@" >>"$ASKED"\n')
    env = project.slurm(
        SLURM_JOB_ID="42",
        SLURM_ARRAY_JOB_ID="42",
        SLURM_ARRAY_TASK_ID="3",
        ASKED=str(asked),
    )
    project.program('echo "n1 broken" >>"$HARNESS_NODE_FAULTS"; exit 75')
    done = project.run(project.spool(), env=env)
    assert (done.returncode, "job 42_3 is back in the queue" in done.stderr) == (75, True)
    lines = asked.read_text().splitlines()
    assert "requeue 42_3" in lines
    assert "update JobId=42_3 ExcNodeList=n1" in lines
    assert not [line for line in lines if re.search(r"\b42\b(?!_3)", line)]


def test_a_preempted_job_is_known_whatever_form_of_times_its_user_likes(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """It goes back into the queue; a job that its user cancels would not."""
    asked = project.outside / "asked"
    is_standard = '[ "${SLURM_TIME_FORMAT:-standard}" = standard ]'
    now = f"$({is_standard} && echo 2026-01-01T12:00:00 || echo noon)"
    answer = f'echo "$*" >>"$ASKED"; echo "PreemptTime={now} EndTime={now} Restarts=0"'
    project.executable(project.commands / "scontrol", f"#!/bin/sh\n{answer}\n")
    env = project.slurm(ASKED=str(asked), SLURM_TIME_FORMAT="%A")
    code, said = project.signalled(project.spool(), signal.SIGTERM, env=env)
    assert (code, "preempted; job 42 is back in the queue" in said) == (75, True), said
    assert asked.read_text().splitlines()[-1] == "requeue 42"


@pytest.mark.parametrize("given", [["--run-id", "exp1"], ["--run-id=exp0", "--run-id=exp1"]])
def test_a_run_of_a_given_name_is_looked_for_by_it(
    project: Project,  # noqa: F811 - the fixture
    given: list[str],
) -> None:
    """Whether a failed job goes on is asked of its own run."""
    asked = project.outside / "asked"
    project.program('echo "$@" >>"$ASKED"\n[ "$1" != train ] || exit 137', real=["job-begin"])
    env = project.slurm(ASKED=str(asked))
    project.run(project.spool(), *given, env=env)
    assert f"job-end 137 --signals  --run {project.path}/runs/bilstm/exp1 " in asked.read_text()


def test_a_signal_after_the_harness_has_ended_is_heard(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """While the script asks whether the job goes on, a preemption may come."""
    project.program(
        'if [ "$1" = train ]; then touch "$NOTE"; exit 137; fi\n'
        'touch "${NOTE%.json}.ready"; sleep 1; exit 1',
        real=["job-begin"],
    )
    project.executable(project.commands / "scontrol", '#!/bin/sh\necho "$@" >>"$ASKED"\n')
    asked = project.outside / "asked"
    env = project.slurm(ASKED=str(asked))
    code, said = project.signalled(project.spool(), signal.SIGTERM, env=env)
    assert (code, "unbound" in said) == (137, False), said
    assert "show job 42" in asked.read_text()  # whether it is preempted


def test_a_job_does_not_take_its_callers_variables_for_its_own(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """Of the session that called sbatch: its step, its memory a CPU, its GPUs, its binding."""
    session = {
        "SLURM_STEP_ID": "0",
        "SLURM_STEPID": "0",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_CPU_BIND": "mask_cpu:0x1",
        "SLURM_MEM_PER_CPU": "1000",
        "SLURM_GPUS": "1",
        "SLURM_GPUS_PER_NODE": "1",
        "SLURM_GPUS_PER_TASK": "1",
    }
    own = {"SLURM_MEM_PER_NODE": "16384", "SLURM_GPUS_ON_NODE": "4"}
    project.executable(project.commands / "scontrol", "#!/bin/sh\necho MinMemoryNode=16G\n")
    assert project.run(project.spool(), env=project.slurm(**session, **own)).returncode == 0
    assert project.call()["slurm"] == sorted(["SLURM_JOB_ID", "SLURM_SUBMIT_DIR", *own])
    # The log's first line compares what was asked for with what was given.
    done = project.run(project.spool(), env=project.slurm(**{**own, **session, ASKED: "8"}))
    assert "--gpus-per-node=8 was asked for" in done.stderr


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("echo MinMemoryCPU=4G", ["CPU"]),
        ("echo MinMemoryNode=0 MemPerTres=gres/gpu:8192", ["GPU"]),
        ("echo MinMemoryNode=8G", ["NODE"]),
        ("exit 1", ["CPU", "GPU", "NODE"]),
    ],
)
def test_of_two_memories_the_jobs_own_is_kept(
    project: Project,  # noqa: F811 - the fixture
    answer: str,
    kept: list[str],
) -> None:
    """Slurm says which it is; where it does not, both stay."""
    project.executable(project.commands / "scontrol", f"#!/bin/sh\n{answer}\n")
    memory = {f"SLURM_MEM_PER_{each}": "4096" for each in ("CPU", "GPU", "NODE")}
    assert project.run(project.spool(), env=project.slurm(**memory)).returncode == 0
    found = [name for name in project.call()["slurm"] if "MEM" in name]
    assert found == [f"SLURM_MEM_PER_{each}" for each in kept]


def test_the_terminal_of_a_notebook_server_starts_fresh_runs(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """The server is a batch job, which is not the run's to requeue."""
    ours, terminal = pty.openpty()
    done = subprocess.run(
        ["bash", str(project.path / "slurm/bilstm.sh")],
        env=project.slurm(ENVIRONMENT="BATCH"),
        stdin=terminal,
        timeout=60,
    )
    os.close(ours)
    os.close(terminal)
    assert done.returncode == 0
    assert "--run-id" not in project.call()["argv"]


def test_a_script_is_called_by_its_relative_path_whatever_cd_searches(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """With CDPATH, cd may take another folder and print its name."""
    (project.outside / "elsewhere/slurm").mkdir(parents=True)
    for folder in (".", str(project.outside / "elsewhere")):
        done = subprocess.run(
            ["bash", "slurm/bilstm.sh"],
            env={**project.environment, "CDPATH": folder},
            cwd=project.path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert project.call()["argv"][1] == f"{project.path}/jobs/bilstm.toml"


@pytest.mark.parametrize("given", [["--sweep-id", "mine", "{job}"], ["{job}", "--sweep-id=mine"]])
def test_a_sweep_is_looked_for_by_its_job_wherever_it_is_named(
    project: Project,  # noqa: F811 - the fixture
    given: list[str],
) -> None:
    """Only a name above the first table of its file is the job's."""
    job = project.outside / "all.toml"
    job.write_text('[model.options]\nname = "wide"\n')
    asked = project.outside / "asked"
    project.program('echo "$@" >>"$ASKED"\n[ "$1" != tune ] || exit 75', real=["job-begin"])
    words = [word.format(job=job) for word in given]
    project.run(project.spool("tune"), *words, env=project.slurm(ASKED=str(asked)))
    assert f"job-end 75 --signals  --run {project.path}/runs/all/mine " in asked.read_text()


def test_the_log_of_an_arrays_task_has_its_shown_id_too(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """Slurm names it by an id of the task's own, which no list shows."""
    log = project.outside / "lstm-44.out"
    array = {"SLURM_JOB_ID": "44", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "2"}
    for env in (project.slurm(SLURM_JOB_ID="44"), project.slurm(**array)):
        with log.open("w") as file:
            subprocess.run(
                ["bash", str(project.spool())], env=env, stdout=file, timeout=60, check=True
            )
    names = [path.name for path in project.outside.glob("*.out")]
    assert sorted(names) == ["lstm-42_2.out", "lstm-44.out"]
    assert log.samefile(project.outside / "lstm-42_2.out")
