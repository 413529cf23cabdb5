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
    env = project.slurm(ASKED=str(asked), SLURM_RESTART_COUNT=str(times))
    code, said = project.signalled(project.spool(), number, env=env)
    assert code == 75, said
    assert asked.read_text() == requeued


def test_a_job_that_never_gets_to_its_run_gives_up(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """Starts that a time limit ends before there is anything to save count one after another."""
    project.executable(project.commands / "scontrol", "#!/bin/sh\nexit 0\n")
    ready = shlex.quote(str(project.note.with_suffix(".ready")))
    project.program(f'touch "$NOTE" {ready}; exec sleep 20')
    said = []
    for restarts in range(3):
        project.note.with_suffix(".ready").unlink(missing_ok=True)
        env = project.slurm(SLURM_RESTART_COUNT=str(restarts))
        code, told = project.signalled(project.spool(), signal.SIGUSR2, env=env)
        said.append((code, "is back in the queue" in told))
    assert said == [(75, True), (75, True), (1, False)]
    assert "3 starts one after another ended without a step" in told.splitlines()[-1]


@pytest.mark.parametrize(
    ("begins", "restarts", "code", "requeued"),
    [
        (True, "9", 75, True),  # its run was saved
        (False, "1", 126, True),
        (False, "2", 126, False),  # the third start that did not get to its run
    ],
)
def test_a_job_goes_back_where_python_does_not_start(
    project: Project,  # noqa: F811 - the fixture
    begins: bool,
    restarts: str,
    code: int,
    requeued: bool,
) -> None:
    """The script decides by itself, from the exit code and Slurm's own count."""
    asked = asked_of_scontrol(project, "exit 0")
    fails = "case $1 in train) exit 75 ;; *) exit 126 ;; esac"
    project.program(fails, real=["job-begin"] if begins else ["none"])
    env = project.slurm(ASKED=str(asked), SLURM_RESTART_COUNT=restarts)
    done = project.run(project.spool(), env=env)
    assert done.returncode == code, done.stderr
    assert ("requeue 42" in asked.read_text()) == requeued


def test_requeue_is_tried_again_while_the_scheduler_is_down(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """A controller that is being restarted costs no job its place."""
    asked = asked_of_scontrol(project, '[ "$(grep -c requeue "$ASKED")" = 2 ]')
    env = project.slurm(ASKED=str(asked))
    code, said = project.signalled(project.spool(), signal.SIGUSR2, env=env)
    assert (code, asked.read_text().count("requeue 42\n")) == (75, 2)
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
    assert asked.read_text().endswith("requeue 42\nupdate JobId=42 MinMemoryNode=1500\n")
    assert "asked for 1.0 GB" in result.stderr


def test_a_job_that_gets_no_further_gives_up(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """The third start without a step is the last."""
    project.executable(project.commands / "scontrol", "#!/bin/sh\nexit 0\n")
    starts = [project.slurm(EXIT="75", SLURM_RESTART_COUNT=str(count)) for count in range(3)]
    ends = [project.run(project.spool(), env=start) for start in starts]
    assert ["is back in the queue" in end.stderr for end in ends] == [True, True, False]
    assert "given up: 3 starts" in ends[2].stderr


def test_where_slurm_forbids_a_requeue_the_script_submits_another_job(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """Python, in a container, writes it, with what is to change; sbatch is called outside."""
    (project.path / "slurm/site.sh").write_text("HARNESS_CONTAINER=(env IMAGE=x)\n")
    asked = asked_of_scontrol(project, "echo requeue is disabled >&2; exit 1")
    project.executable(
        project.commands / "sbatch", '#!/bin/sh\necho "a word of the site"\necho "78;${IMAGE:-}"\n'
    )
    folder = project.path / "runs/.submissions/one"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"job_id": "@JOB@"}')
    answer = f"SUCCESSOR=(sbatch --parsable job.sh)\nRECORD={shlex.quote(str(folder))}/record.json"
    project.program(
        f'case $1 in train) exit 137 ;; esac\necho "$@" >"$NOTE"\ncat <<END\n{answer}\nEND'
    )
    said = out_of_memory(project, asked).stderr.splitlines()
    assert asked.read_text().splitlines()[-1] == "requeue 42"
    run = project.path / "runs/bilstm/slurm-42"
    told = project.note.read_text()
    assert told == f"job-successor {run} --runs {project.path}/runs -- MinMemoryNode=1500\n"
    assert said[-1].endswith("interrupted; job 78 goes on with the run")
    assert (folder.parent / "78.json").read_text() == '{"job_id": "78"}'


def test_a_job_leaves_the_nodes_at_fault(
    project: Project,  # noqa: F811 - the fixture
) -> None:
    """The third in a row is the last; the start says which, and the job fails."""
    asked = asked_of_scontrol(project, "exit 0")
    project.program('echo "$FAULT broken" >>"$HARNESS_NODE_FAULTS"; exit 75')
    ends = []
    for restarts in range(3):
        node = {"FAULT": f"n{restarts}", "SLURM_RESTART_COUNT": str(restarts)}
        end = project.run(project.spool(), env=project.slurm(ASKED=str(asked), **node))
        ends.append((end.returncode, "back in the queue" in end.stderr))
    assert ends == [(75, True)] * 2 + [(1, False)]
    assert end.stderr.splitlines()[-1].endswith("n0 n1 n2 were at fault one after another")
    changes = [line for line in asked.read_text().splitlines() if "update" in line]
    assert changes == [f"update JobId=42 ExcNodeList={node}" for node in ("n0", "n0,n1")]
