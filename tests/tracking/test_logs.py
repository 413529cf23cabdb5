"""`harness logs` prints a log or its last lines, and follows it until the run ends."""

import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from harness.tracking import logs
from harness.tracking.logs import Follower, clean, follow
from harness.tracking.records import RunStatus
from tests.conftest import Harness
from tests.tracking.site import Site
from tests.tracking.site import site as site


def test_a_log_is_printed_without_control_characters(harness: Harness, site: Site) -> None:
    """A progress bar is shown in its last state, and colours are removed. Slurm is not asked."""
    site.slurm(script=f"touch {site.folder}/asked")
    log = site.folder / "it's a log.out"
    log.write_bytes(b"one\n\x1b[31mtwo\x1b[0m\n10%\r50%\r100%\nthr\xffee\r\nfour")
    site.run("a", "finished", log=log)
    lines = ["one", "two", "100%", "thr\ufffdee", "four"]
    assert harness.run_here("logs", "a").stdout.splitlines() == lines
    assert not (site.folder / "asked").exists()
    assert clean(b"\x1b]0;title\x07a\tb") == "a\tb"


def test_a_log_is_printed_in_any_encoding(harness: Harness, site: Site) -> None:
    """A character that is not in the encoding is shown as its code.

    `harness logs | head`, which stops reading, prints no error.
    """
    log = site.folder / "log"
    log.write_text("naïve ☃\n" * 200_000)
    site.run("a", "finished", log=log)
    words = shlex.join(harness.command("logs", "a"))
    command = ["/bin/bash", "-c", f"set -o pipefail; {words} | /usr/bin/head -1"]
    environment = {**harness.environment, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (b"na\xefve \\u2603\n", b"")


def test_a_run_without_a_log_is_one_line(harness: Harness, site: Site) -> None:
    """The line says that the run printed to a terminal, or has not begun."""
    site.run("a", "finished")
    site.submission("12", [1])
    said = "has no log: the run printed to a terminal or a pipe; the run is finished"
    assert said in harness.refuse("logs", "a")
    assert "slurm-12.out does not exist; the run is submitted" in harness.refuse("logs", "12")


def test_the_last_jobs_log_is_printed_while_the_next_job_waits(
    harness: Harness, site: Site
) -> None:
    """With -f the command waits for the log of the next job."""
    site.slurm("77|77|PENDING|0:00|Priority|/x.sh")
    log = site.folder / "log"
    log.write_text("why\n")
    run = site.run("a", "interrupted", 60, log=log, slurm_job="12").folder
    site.submission("77", [1], job="lstm", runs=[str(run)], resumes=True)
    done = harness.run_here("logs", "a")
    assert (done.returncode, done.stdout) == (0, "why\n")
    following = harness.start("logs", "-f", "a", is_forked=False)
    assert following.stderr
    assert "lstm/a is pending (Priority; requeued" in following.stderr.readline()
    following.send_signal(signal.SIGINT)
    assert (following.communicate(timeout=20), following.returncode) == (("", ""), 0)


def test_a_seed_without_a_log_has_the_log_of_its_job(harness: Harness, site: Site) -> None:
    """The job with several seeds ended before it began its runs, and only its own log says why."""
    site.slurm()
    log = site.runs / "logs/lstm-slurm-77-seed1.out"
    run = site.runs / "lstm/slurm-77-seed1"
    site.submission("77", [1], job="lstm", runs=[str(run)], logs=[str(log)])
    log.parent.mkdir()
    (log.parent / "lstm-77.out").write_text("the environment is missing\n")
    assert harness.run_here("logs", "77").stdout == "the environment is missing\n"
    assert "gone" in (line := harness.run_here("status").stdout.splitlines()[-1])
    assert line.endswith("the environment is missing")
    log.write_text("epoch 1\n")
    assert harness.run_here("logs", "77").stdout == "epoch 1\n"


def test_following_a_log_survives_its_replacement(tmp_path: Path) -> None:
    """Each whole line appears once; a truncated or new file is read from its beginning."""
    log = tmp_path / "log"
    follower = Follower(log)
    assert list(follower.new_lines()) == []
    log.write_text("a\nb\nha")
    assert list(follower.new_lines()) == ["a", "b"]
    with log.open("a") as file:
        file.write("lf\n")
    assert list(follower.new_lines()) == ["half"]
    assert list(follower.new_lines()) == []
    log.write_text("n\n")
    assert list(follower.new_lines()) == ["n"]
    (tmp_path / "other").write_text("other, and longer\nrest")
    (tmp_path / "other").replace(log)
    assert list(follower.new_lines()) == ["other, and longer"]
    assert list(follower.new_lines(at_end=True)) == ["rest"]


def test_the_last_lines_may_come_after_the_end_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy node, these lines come seconds later and in several parts."""
    log = tmp_path / "log"
    log.write_text("said\n")
    times = iter(["", "one\n", "", "", "two\n", "", "", "three", "too late\n"])

    def sleep(_: float) -> None:
        with log.open("a") as file:
            file.write(next(times))

    monkeypatch.setattr(time, "sleep", sleep)
    over = RunStatus("a", tmp_path, "finished", log=str(log))
    found = list(follow(Follower(log), lambda: over))
    assert found == ["said", "one", "two", "three"]


@pytest.mark.parametrize(
    ("phase", "code"), [("interrupted", 75), ("finished", 0), ("failed", 1), ("training", 1)]
)
def test_following_ends_with_the_run(
    harness: Harness, site: Site, monkeypatch: pytest.MonkeyPatch, phase: str, code: int
) -> None:
    """`logs -f` ends with the exit code of the run; a dead run has failed."""
    monkeypatch.setattr(logs, "POLL_S", 0.01)
    log = site.folder / "log"
    log.write_text("said\nlast words")
    site.run("a", phase, log=log, host=socket.gethostname(), process=2**22 + 1)
    done = harness.run_here("logs", "-f", "a")
    assert (done.returncode, done.stdout) == (code, "said\nlast words\n")
