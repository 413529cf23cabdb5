"""Log lines: with time and level in a file, as people read them on a terminal or in a pipe."""

import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.system.console import echo, log, printable, rich_console, strip_prefix
from tests.conftest import JOBS, Harness

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


def test_a_full_disk_under_the_log_ends_nothing() -> None:
    """A log line that can't be written is dropped."""
    with Path("/dev/full").open("w") as full:
        code = f"{CODE}\nimport sys; sys.stdout = sys.stderr = open('/dev/null', 'w')"
        subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full, check=True)


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


HOSTILE = {
    "\x1b[2J": r"\x1b[2J",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x9b31m": r"\x9b31m",
    "a\rb": r"a\rb",
    "\x08\x7f": r"\x08\x7f",
    "\u202egpj.exe": r"\u202egpj.exe",
    "\udcff": r"\udcff",
    "tab\tand\nline, ünïcode \u4e2d \U0001f600": "tab\tand\nline, ünïcode \u4e2d \U0001f600",
}


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items(), ids=ascii)
def test_nothing_that_is_printed_acts_on_the_terminal(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines of the log, a command's own lines, Rich's: what would act is shown instead."""
    assert printable(text) == shown
    echo(text)
    log(logging.ERROR, text)
    rich_console(width=100).print(text, markup=False)
    out, err = capsys.readouterr()
    assert err == f"harness: {shown}\n"
    assert out.startswith(f"{shown}\n")
    assert not set(out) & set("\x1b\x9b\r\x08\x7f\u202e\udcff")


def test_the_commands_show_what_others_wrote_as_text(
    finished: tuple[Harness, Path], harness: Harness
) -> None:
    """A run's name, its record, a text and an argument with escape sequences in them."""
    name = "evil\x1b[2J\x1b]0;x\x07"
    run = harness.runs / name / "a"
    shutil.copytree(finished[1], run)
    state = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps({**state, "phase": "failed", "error": "\x1b[31mX"}))
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "data": "\x1b[2J<b>=1"}))
    for words in (
        ["status", "--runs", harness.runs], ["compare", run, "--no-baseline"],
        ["compare", run, "--no-baseline", "--markdown"], ["predict", run, "fine \x1b[2J\x9b text"],
        ["resume", f"no\x1b[2J{name}"], ["evaluate", f"{name}/b"], ["logs", f"{name}/a"],
        ["train", "no\x1b[2J.toml"], ["train", JOBS / "lstm.toml", "--set", "x.\x1b[2J=1"],
    ):  # fmt: skip
        done = harness.run_here(*words)
        said = done.stdout + done.stderr
        assert said
        assert not set(said) & set("\x1b\x9b\x07"), (words, said)
