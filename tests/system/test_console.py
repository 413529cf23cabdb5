"""Log lines: with time and level in a file, as people read them on a terminal or in a pipe."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.system.console import strip_prefix
from tests.conftest import Harness

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
CODE = """
import logging
from harness.system.console import Console, log
Console().info("100 % done")
Console().warning("slow")
log(logging.ERROR, "it broke")
"""


def test_a_file_gets_time_and_level(tmp_path: Path) -> None:
    """Both streams in one file: in order, each line with its time and level."""
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", CODE], stdout=log, stderr=log, check=True)
    lines = (tmp_path / "log").read_text().splitlines()
    for line, text in zip(
        lines, ("INFO 100 % done", "WARNING slow", "ERROR it broke"), strict=True
    ):
        assert re.fullmatch(f"{STAMP} {text}", line)


def test_a_pipe_gets_the_bare_text() -> None:
    """Standard output and standard error are apart, and their lines can be read by programs."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "100 % done\n"
    assert done.stderr == "warning: slow\nharness: it broke\n"


def test_a_terminal_gets_the_bare_text() -> None:
    """So a command shows on a terminal what it shows in a pipe."""
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", CODE], stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    assert os.read(ours, 1000).split(b"\r\n") == [
        *(b"100 % done", b"warning: slow", b"harness: it broke", b"")
    ]
    os.close(ours)


def test_a_full_disk_under_the_log_ends_nothing() -> None:
    """A log line that can't be written is dropped."""
    with Path("/dev/full").open("w") as full:
        code = f"{CODE}\nimport sys; sys.stdout = sys.stderr = open('/dev/null', 'w')"
        subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full, check=True)


def test_the_end_of_a_command_is_stamped_in_a_jobs_log(harness: Harness) -> None:
    """HARNESS_LOG says that the pipe ends in a log; without it the line is as users read it."""
    bare = harness.run("train", "none.toml").stderr
    harness.environment["HARNESS_LOG"] = "job.out"
    stamped = harness.run("train", "none.toml").stderr
    assert bare.startswith("harness: job none.toml: no such file")
    assert re.match(f"{STAMP} ERROR job none.toml: no such file", stamped)
    assert strip_prefix(bare) == strip_prefix(stamped)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("harness: job x: bad\n", "job x: bad"),
        ("2026-01-02 03:04:05 ERROR job x: bad", "job x: bad"),
        ("2026-01-02 03:04:05 WARNING slow", "slow"),
        ("Killed", "Killed"),
        ("2026-01-02 was a Friday", "2026-01-02 was a Friday"),
    ],
)
def test_a_prefix_is_stripped(line: str, message: str) -> None:
    """What quotes a last line quotes its message alone."""
    assert strip_prefix(line) == message
