"""No run gets a second job, and no job stays in the queue that nobody knows of."""

import json
import os
import re

import pytest

from harness import __version__
from harness.errors import RunError
from harness.job.job_file import load_job
from harness.slurm import submit
from tests.conftest import JOBS, Harness


def test_a_job_whose_record_can_not_be_written_is_withdrawn(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would know of it, and its user would submit it again."""
    cancelled = harness.folder / "cancelled"
    harness.program("sbatch", "echo 77")
    harness.program("scancel", f'echo "$@" >{cancelled}')

    def full(*_: object) -> None:
        raise RunError("submission.json: can't be written: No space left on device")

    monkeypatch.setattr(submit, "_record_of", full)
    done = harness.run_here("submit", JOBS / "lstm.toml")
    assert done.returncode == 1
    assert "No space left on device; jobs 77 were cancelled" in done.stderr
    assert cancelled.read_text() == "77\n"


def test_an_sbatch_without_an_answer_may_have_submitted_the_job(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its script and job are kept, and one line says where to look."""
    harness.program("sbatch", "case $1 in --version | --test-only) ;; *) exec sleep 20 ;; esac")
    monkeypatch.setattr(submit, "SBATCH_TIMEOUT_S", 0.2)
    done = harness.run_here("submit", JOBS / "lstm.toml")
    assert done.returncode == 1
    assert "may be in the queue all the same: look by squeue --me" in done.stderr.splitlines()[-1]
    (folder,) = (harness.runs / ".submissions").glob("*-lstm")
    assert {path.name for path in folder.iterdir()} == {"job.sh", "lstm.toml"}


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("checking 7 hosts: OK\n77;cluster", "job 77: lstm, seed 1\n"),
        ("checking 7 hosts: OK", "may be in the queue all the same: .*only 'checking 7 hosts: OK'"),
    ],
)
def test_what_a_site_prints_beside_the_id_hides_no_job(
    harness: Harness, printed: str, said: str
) -> None:
    """Its sbatch may be a wrapper; the job keeps its files even if no id is found."""
    harness.program("sbatch", f'[ "$1" = --version ] || echo "{printed}"')
    done = harness.run_here("submit", JOBS / "lstm.toml")
    assert done.returncode == (0 if "77" in printed else 1), done.stderr
    assert re.search(said, done.stdout + done.stderr)
    assert len([*(harness.runs / ".submissions").glob("*-lstm/lstm.toml")]) == 1


def test_a_squeue_without_an_answer_submits_no_second_job(harness: Harness) -> None:
    """The run may have a job that waits."""
    run = harness.runs / "lstm/a"
    run.mkdir(parents=True)
    (run / "job.toml").write_text((JOBS / "lstm.toml").read_text())
    state = {"phase": "interrupted", "slurm_job": "12", "time_s": 1.0}
    (run / "state.json").write_text(json.dumps(state))
    harness.program("squeue", "echo 'squeue: error: no controller' >&2; exit 1")
    for words in (["submit", "--all-interrupted"], ["submit", "--resume", run], ["cancel", run]):
        done = harness.run_here(*words)
        assert done.returncode == 1, words
        assert "squeue gives no answer" in done.stderr, words


def test_a_job_that_is_taken_has_a_record_and_a_place_for_its_log(harness: Harness) -> None:
    """The record is found by the job's id; without its folder Slurm drops a log silently."""
    harness.program("sbatch", "echo '77;cluster'")
    done = harness.run_here("submit", JOBS / "lstm.toml")
    assert (done.returncode, "job 77: lstm, seed 1\n" in done.stdout) == (0, True), done.stderr
    record = json.loads((harness.runs / ".submissions/77.json").read_text())
    assert (record["harness"], record["job_id"], record["resumes"]) == (__version__, "77", False)
    assert record["runs"] == [str(harness.runs / "lstm/slurm-77")]
    assert record["logs"] == [str(harness.runs / "logs/lstm-77.out")]
    assert (harness.runs / "logs").is_dir()


def test_a_job_is_written_alike_in_every_locale(harness: Harness) -> None:
    """It is read as UTF-8; the paths in its script are the bytes that they were given as."""
    (harness.folder / "net.py").write_text("def net(): ...  # \u00e4\n", "utf-8")
    job = (JOBS / "lstm.toml").read_text()
    (harness.folder / "own.toml").write_text(job.replace('"lstm"', '"net.py:net"', 1))
    harness.program("sbatch", "echo 77")
    harness.environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = harness.run("submit", "own.toml", "--runs", "gr\u00fcn")
    assert done.returncode == 0, done.stderr
    (folder,) = (harness.folder / "gr\u00fcn/.submissions").glob("*-own")
    assert "# \u00e4" in (folder / "own.toml").read_text("utf-8")
    assert "/gr\u00fcn/" in (folder / "job.sh").read_text("utf-8")


def test_nobody_else_can_change_what_a_job_will_run(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask: its own network would be refused on the node, after the queue."""
    (harness.folder / "net.py").write_text("def net(): ...\n")
    job = (JOBS / "lstm.toml").read_text()
    (harness.folder / "own.toml").write_text(job.replace('"lstm"', '"net.py:net"', 1))
    harness.program("sbatch", "echo 77")
    monkeypatch.setattr("harness.system.files._is_own_group", lambda _: False)
    umask = os.umask(0o002)
    try:
        done = harness.run_here("submit", harness.folder / "own.toml")
    finally:
        os.umask(umask)
    assert done.returncode == 0, done.stderr
    (folder,) = (harness.runs / ".submissions").glob("*-own")
    assert load_job(folder / "own.toml").code
