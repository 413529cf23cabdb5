"""What Slurm says of a job before it is submitted, and of a new one in the queue."""

from pathlib import Path

import pytest

from harness.slurm.client import first_look_s
from tests.conftest import JOBS, Harness

REFUSES = "case $* in *--test-only*) echo 'allocation failure: {}' >&2; exit 1 ;; esac\necho 77"


@pytest.fixture
def site(harness: Harness) -> Harness:
    """A Slurm that takes each job as 77; its scancel and squeue note how they are called."""
    harness.program("sbatch", "echo 77")
    harness.program("scontrol", "exit 1")
    harness.program("scancel", f'echo "$@" >>"{harness.folder}/cancelled"')
    return harness


def answer(site: Harness, *lines: str) -> None:
    """Let squeue print these states and reasons of the job."""
    text = "\n".join(f"77|77|{line}|/a" for line in lines)
    asked = f'echo "$@" >>"{site.folder}/asked"'
    site.program("squeue", f"{asked}\ncat <<'end'\n{text}\nend")


def noted(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("PENDING|0:00|Priority", "pending (Priority)"),
        ("PENDING|0:00|None", "pending"),
        ("RUNNING|0:01 2:00:00|None", "running"),
        ("RUNNING|0:01 UNLIMITED|None", "running"),
        ("PENDING|0:00|QOSMinGRES", "pending (QOSMinGRES)"),
    ],
)
def test_the_queues_own_reason_is_one_line(site: Harness, line: str, said: str) -> None:
    """From one call of squeue for the job."""
    answer(site, line)
    done = site.run_here("submit", JOBS / "lstm.toml")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"queue {said}"), done.stderr
    (call,) = noted(site.folder / "asked")
    assert "--jobs=77" in call.split()
    assert noted(site.folder / "cancelled") == []


def test_a_short_time_limit_is_said_at_submission(site: Harness) -> None:
    """As the queue has it, whoever set it: the user, the site or the script."""
    answer(site, "PENDING|0:00 2:00|Priority")
    done = site.run_here("submit", JOBS / "lstm.toml")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    assert said.startswith("queue pending (Priority); a time limit of 120 s leaves 30 s before")


def test_a_squeue_without_an_answer_costs_its_line_alone(site: Harness) -> None:
    """The job is in the queue."""
    site.program("squeue", "exit 1")
    done = site.run_here("submit", JOBS / "lstm.toml")
    assert (done.returncode, "\nqueue" in done.stdout) == (0, False)
    assert "job 77: lstm" in done.stdout


def test_what_sbatch_refuses_is_refused_before_anything_is_written(site: Harness) -> None:
    """With all that it says."""
    site.program("sbatch", f'echo "$*" >>{site.folder}/calls\n' + REFUSES.format("Invalid qos"))
    done = site.run_here("submit", "--all", "--", "--qos=none")
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 2
    assert "rnn: would not start: allocation failure: Invalid qos" in said
    assert not site.runs.exists()
    assert sum("--test-only" in call for call in noted(site.folder / "calls")) == 1


def test_nodes_that_are_down_refuse_no_job(site: Harness) -> None:
    """`--test-only` finds none then, where sbatch lets the job wait."""
    site.program("sbatch", REFUSES.format("Requested node configuration is not available"))
    answer(site, "PENDING|0:00|ReqNodeNotAvail, UnavailableNodes:n1")
    done = site.run_here("submit", JOBS / "lstm.toml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("queue pending (ReqNodeNotAvail, UnavailableNodes:n1)\n")


@pytest.mark.parametrize(
    ("settings", "wait_s"),
    [
        ({}, 0),
        ({"SchedulerParameters": "(null)"}, 4),
        ({"SchedulerParameters": "a,batch_sched_delay=9,b=1"}, 10),
    ],
)
def test_slurm_gets_the_time_to_look_at_a_job(settings: dict[str, str], wait_s: float) -> None:
    """A reason is known after its delay of the scheduling of batch jobs."""
    assert first_look_s(settings) == wait_s


def test_a_dry_run_splits_seeds_as_the_submission_does(harness: Harness) -> None:
    """By the site's own array size."""
    words = ["submit", JOBS / "lstm.toml", "--seeds", "1234,2024", "--dry-run"]
    harness.program("scontrol", "exit 1")
    assert "--array=1-2 " in harness.run_here(*words).stdout
    harness.program("scontrol", "echo 'MaxArraySize = 4000001'")
    assert "--array=1234,2024 " in harness.run_here(*words).stdout
    assert not harness.runs.exists()
