"""The user's jobs in Slurm's queue, from squeue's text."""

import itertools
from pathlib import Path

import pytest

from harness.slurm.client import Queue, QueuedJob, find_job, parse_jobs, seconds, training_script

PRINTED = """\
7|7|RUNNING|1-02:03:04 2-00:00:00|None|/home/me/project/slurm/lstm.sh --set a=b|c
12_3|15|PENDING|0:00|Priority|(null)
slurm_load_jobs error: something
x|y|RUNNING|0:01|None|/a
"""


def job(shown: str, raw: str) -> QueuedJob:
    return QueuedJob(shown, raw, "RUNNING", "None", 0.0, "")


def test_lines_of_squeue_are_jobs() -> None:
    """A command may hold the separator; a line of another form is skipped."""
    running, pending = parse_jobs(PRINTED)
    assert running == QueuedJob(
        *("7", "7", "RUNNING", "None", 93_784.0, "/home/me/project/slurm/lstm.sh --set a=b|c"),
        limit_s=172_800.0,
    )
    assert (pending.id, pending.raw_id, pending.command) == ("12_3", "15", "")
    assert pending.limit_s == 0
    assert (running.waits, pending.waits, running.ended) == (False, True, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:05", 5), ("2:00", 120), ("1:00:00", 3600), ("3-00:00:01", 259_201), ("INVALID", 0)],
)
def test_times_of_squeue(text: str, expected: float) -> None:
    """Days, hours and minutes may be left out; anything else is 0."""
    assert seconds(text) == expected


def test_a_runs_job_is_found_by_its_heartbeats_id_or_its_name() -> None:
    """Tasks of an array that never started share an id, so there the name decides.

    Another job may go on with the run of a task.
    """
    jobs = [job("12_1", "12"), job("12_2", "12"), job("20", "20")]
    assert find_job(jobs, None, "12_2") == jobs[1]
    assert find_job(jobs, "12", "12_2") == jobs[1]
    assert find_job(jobs, "20", "20") == jobs[2]
    assert find_job(jobs, "20", "12_1") == jobs[2]
    assert find_job(jobs, "12", "12_3") is None
    assert find_job(jobs, "99", "20") is None
    assert find_job(jobs, None, "99") is None


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/p/x/slurm/lstm.sh", ("/p/x", "lstm")),
        ("/p/x/slurm/lstm.sh --set a=b", ("/p/x", "lstm")),
        ("/p/x/other/lstm.sh", None),
        ("slurm/lstm.sh", None),
        ("", None),
    ],
)
def test_a_projects_script_names_project_and_job(
    command: str, expected: tuple[str, str] | None
) -> None:
    """Only scripts in a folder slurm/ that is named by an absolute path."""
    assert training_script(QueuedJob("1", "1", "", "", 0.0, command)) == expected


def squeue(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = folder / "squeue"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_squeue_is_called_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within half a minute the last answer is given again; then squeue is called again."""
    calls = tmp_path / "calls"
    squeue(tmp_path, monkeypatch, f"echo x >>{calls}; echo '7|7|RUNNING|0:01|None|/a'")
    times = itertools.chain([0.0, 0.0], itertools.repeat(29.0))
    now = iter(times)
    queue = Queue(clock=lambda: next(now))
    first = queue.jobs()
    assert first
    assert [each.id for each in first] == ["7"]
    assert queue.jobs() == first
    assert calls.read_text().count("x") == 1
    queue.clock = lambda: 31.0
    assert queue.jobs() == first
    assert calls.read_text().count("x") == 2


def test_a_squeue_that_fails_is_no_empty_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is None with the reason; so it is, without one, where there is no squeue."""
    squeue(tmp_path, monkeypatch, "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    queue = Queue()
    assert queue.jobs() is None
    assert queue.problem == "squeue gives no answer (Unable to contact)"
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    queue = Queue()
    assert (queue.jobs(), queue.problem) == (None, None)
