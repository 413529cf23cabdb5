"""When a job script puts its job back into the queue, and what it asks for from then on."""

import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.slurm.stand_in import Project
from tests.slurm.test_scripts import project  # noqa: F401 - a fixture


def asked_of_scontrol(project: Project, then: str) -> Path:  # noqa: F811 - the fixture
    """A file that gets the arguments of each call of a scontrol, which then does as told."""
    answer = f'echo "$@" >>"$ASKED"; {then}'
    project.executable(project.commands / "scontrol", f"#!/bin/sh\n{answer}\n")
    return project.outside / "asked"


def out_of_memory(
    project: Project,  # noqa: F811 - the fixture
    asked: Path,
) -> "subprocess.CompletedProcess[str]":
    """A job of 1,000 MB with --retry-memory, killed for want of it."""
    more = {"ASKED": str(asked), "SLURM_MEM_PER_NODE": "1000", "HARNESS_RETRY_MEMORY": "1"}
    return project.run(project.spool(), env=project.slurm(EXIT="137", **more))


@pytest.mark.parametrize(
    ("number", "times", "requeued"),
    [
        (signal.SIGUSR2, 0, "requeue 42\n"),
        (signal.SIGUSR2, 2, "requeue 42\n"),
        (signal.SIGUSR2, 30, "requeue 42\n"),
        (signal.SIGTERM, 0, ""),
    ],
)
def test_warned_job_goes_back_into_the_queue(
    project: Project,  # noqa: F811 - the fixture
    number: signal.Signals,
    times: int,
    requeued: str,
) -> None:
    """A job that was warned requeues itself, however often; a cancelled one stays cancelled."""
    asked = project.outside / "asked"
    asked.touch()
    answer = '[ "$1" != requeue ] || echo "$@" >>"$ASKED"'
    project.executable(project.commands / "scontrol", f"#!/bin/sh\n{answer}\n")
    env = project.slurm(ASKED=str(asked), SLURM_RESTART_COUNT=str(times), HARNESS_MAX_REQUEUES="3")
    code, said = project.signalled(project.spool(), number, env=env)
    assert code == 75, said
    assert asked.read_text() == requeued


def test_a_job_that_never_gets_to_its_run_gives_up(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """Starts that a time limit ends before there is anything to save count one after another."""
    project.executable(project.commands / "scontrol", "#!/bin/sh\nexit 0\n")
    harness = project.venv / "bin/harness"
    working = harness.read_text()
    ready = shlex.quote(str(project.note.with_suffix(".ready")))
    starting = f'[ "$1" = job-begin ] || {{ touch "$NOTE" {ready}; exec sleep 20; }}'
    env = project.slurm(HARNESS_MAX_REQUEUES="2", SLURM_RESTART_COUNT="9")
    said = []
    for program in (*[f"#!/bin/sh\n{starting}\n"] * 2, working, *[f"#!/bin/sh\n{starting}\n"] * 3):
        project.executable(harness, program)
        project.note.with_suffix(".ready").unlink(missing_ok=True)
        code, told = project.signalled(project.spool(), signal.SIGUSR2, env=env)
        said.append((code, "is back in the queue" in told))
    assert said == [(75, True)] * 5 + [(75, False)]
    assert "for the last 2 times (HARNESS_MAX_REQUEUES)" in told.splitlines()[-1]


def test_requeue_is_tried_again_while_the_scheduler_is_down(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """A controller that is being restarted costs no job its place."""
    asked = asked_of_scontrol(project, '[ "$(wc -l <"$ASKED")" = 2 ]')
    env = project.slurm(ASKED=str(asked), HARNESS_RETRY_S="0.1")
    code, said = project.signalled(project.spool(), signal.SIGUSR2, env=env)
    assert (code, asked.read_text()) == (75, "requeue 42\n" * 2)
    assert "is back in the queue" in said.splitlines()[-1]


def test_death_by_a_signal_is_told_in_the_last_line(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """A harness that is killed, as for its memory, is told of and its job not requeued."""
    project.executable(project.commands / "scontrol", "#!/bin/sh\nexit 1\n")
    result = project.run(project.spool(), env=project.slurm(EXIT="137"))
    assert result.returncode == 137
    assert "exit code 137" in result.stderr.splitlines()[-1]


def test_a_job_out_of_memory_asks_for_more(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """With --retry-memory it is back in the queue, and then asks for half as much again."""
    asked = asked_of_scontrol(project, "exit 0")
    result = out_of_memory(project, asked)
    assert result.returncode == 137
    assert asked.read_text() == "requeue 42\nupdate JobId=42 MinMemoryNode=1500\n"
    assert "1.0 GB asked" in result.stderr


def test_a_job_that_gets_no_further_gives_up(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """The third failure with the same exit code and without a step is the last."""
    project.executable(project.commands / "scontrol", "#!/bin/sh\nexit 0\n")
    ends = [project.run(project.spool(), env=project.slurm(EXIT="75")) for _ in range(3)]
    assert ["is back in the queue" in end.stderr for end in ends] == [True, True, False]
    assert "given up: ended 3 times with exit code 75" in ends[2].stderr


def test_memory_is_asked_for_a_job_that_waits_alone(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """Where Slurm forbids a requeue, the job that goes on has more, and this one is ending."""
    asked = asked_of_scontrol(project, "echo requeue is disabled >&2; exit 1")
    result = out_of_memory(project, asked)
    assert asked.read_text() == "requeue 42\n"
    assert project.call()["argv"][-2:] == ["--dependency=afterany:42", "--mem=1500M"]
    assert "cancel it" not in result.stderr


def test_faulty_nodes_count_in_a_row(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """A start that found none begins a new row; one that a signal ended too early does not.

    Nor does one that found a node at fault which was so before.
    """
    project.executable(project.commands / "scontrol", "#!/bin/sh\nexit 0\n")
    harness = project.venv / "bin/harness"
    trains = {"": "exit 75", "early": 'kill -USR2 "$PPID"; exec sleep 5'}
    fault = 'echo "$FAULT broken" >>"$HARNESS_NODE_FAULTS"; exit 75'
    ends = []
    for node in ("n1", "n2", "", "n3", "n4", "n3", "early", "n5"):
        cases = f"train) {trains.get(node, fault)} ;; job-end) echo requeue ;;"
        project.executable(harness, f"#!/bin/sh\ncase $1 in {cases} esac\n")
        end = project.run(project.spool(), env=project.slurm(FAULT=node))
        ends.append((end.returncode, "back in the queue" in end.stderr))
    assert ends == [(75, True)] * 7 + [(1, False)]
    assert end.stderr.splitlines()[-1].endswith("n3 n4 n5 were at fault one after another")


def test_a_container_without_sbatch_is_told(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """Where Slurm forbids the requeue, harness submits from inside of it."""
    (project.path / "slurm/site.sh").write_text("HARNESS_CONTAINER=(env IMAGE=x)\n")
    asked_of_scontrol(project, "echo requeue is disabled >&2; exit 1")
    project.executable(
        project.venv / "bin/harness",
        "#!/bin/sh\ncase $1 in train) exit 75 ;; job-end) echo requeue ;; submit) exit 2 ;; esac\n",
    )
    env = project.slurm(ASKED=str(project.outside / "asked"))
    said = project.run(project.spool(), env=env).stderr.splitlines()
    assert "the container has no sbatch that works" in said[-2]
    assert "--run-id (--sweep-id of a search) slurm-42" in said[-2]
