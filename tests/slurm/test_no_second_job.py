"""No run gets a second job, and no job stays in the queue that nobody knows of."""

import json
import os

import pytest

from harness.errors import RunError
from harness.slurm import submit
from tests.conftest import JOBS, Harness


def test_a_job_whose_record_can_not_be_written_is_withdrawn(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would know of it, and its user would submit it again."""
    commands = harness.folder / "bin"
    commands.mkdir()
    for name, script in (("sbatch", "echo 77"), ("scancel", f'echo "$@" >{commands}/cancelled')):
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    harness.environment["PATH"] = f"{commands}:{os.environ['PATH']}"

    def full(*_: object) -> None:
        raise RunError("submission.json: can't be written: No space left on device")

    monkeypatch.setattr(submit, "_record", full)
    done = harness.run_here("submit", JOBS / "lstm.toml")
    assert done.returncode == 1
    assert "No space left on device; jobs 77 were cancelled" in done.stderr
    assert (commands / "cancelled").read_text() == "77\n"


def test_an_sbatch_without_an_answer_may_have_submitted_the_job(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its script and job are kept, and one line says where to look."""
    commands = harness.folder / "bin"
    commands.mkdir()
    (commands / "sbatch").write_text('#!/bin/sh\n[ "$1" = --version ] || exec sleep 20\n')
    (commands / "sbatch").chmod(0o755)
    harness.environment["PATH"] = f"{commands}:{os.environ['PATH']}"
    monkeypatch.setattr(submit, "SBATCH_TIMEOUT_S", 0.2)
    done = harness.run_here("submit", JOBS / "lstm.toml")
    assert done.returncode == 1
    assert "may be in the queue all the same: look by squeue --me" in done.stderr.splitlines()[-1]
    (folder,) = (harness.runs / ".submissions").glob("*-lstm")
    assert {path.name for path in folder.iterdir()} == {"job.sh", "lstm.toml"}


def test_a_squeue_without_an_answer_submits_no_second_job(harness: Harness) -> None:
    """The run may have a job that waits."""
    run = harness.runs / "lstm/a"
    run.mkdir(parents=True)
    (run / "job.toml").write_text((JOBS / "lstm.toml").read_text())
    state = {"phase": "interrupted", "slurm_job": "12", "time_s": 1.0}
    (run / "state.json").write_text(json.dumps(state))
    commands = harness.folder / "bin"
    commands.mkdir()
    (commands / "squeue").write_text("#!/bin/sh\necho 'squeue: error: no controller' >&2; exit 1\n")
    (commands / "squeue").chmod(0o755)
    harness.environment["PATH"] = f"{commands}:{os.environ['PATH']}"
    for words in (["submit", "--all-interrupted"], ["submit", "--resume", run], ["cancel", run]):
        done = harness.run_here(*words)
        assert done.returncode == 1, words
        assert "squeue gives no answer" in done.stderr, words
