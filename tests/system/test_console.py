"""Log lines: with time and level in a file, without them on a terminal or in a pipe."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.system.console import Console, echo, log, printable, rich_console
from tests.conftest import JOBS, Harness

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
CODE = """
import logging
from harness.system.console import Console, log
Console().info("100 % done")
Console().warning("slow")
log(logging.ERROR, "it broke")
"""


def test_a_file_gets_time_and_level_and_a_pipe_the_bare_text(tmp_path: Path) -> None:
    """In one file the lines of both streams stay in order; only information is no error."""
    command = [sys.executable, "-c", CODE]
    with (tmp_path / "log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True)
    texts = ("INFO 100 % done", "WARNING slow", "ERROR it broke")
    expected = "".join(f"{STAMP} {text}\n" for text in texts)
    assert re.fullmatch(expected, (tmp_path / "log").read_text())
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("100 % done\n", "warning: slow\nharness: it broke\n")


def test_a_full_disk_under_the_log_ends_nothing() -> None:
    """A line that can't be written is dropped, and does not change the exit code."""
    code = f"""
import sys
from harness.system.console import settle_output
print("a line of a callback")
{CODE}
sys.stdout.flush()
print("another line")
settle_output()
sys.exit(75)
"""
    # Python buffers its output, unless the environment of the tests forbids it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=full, env=environment, check=False
        )
    assert done.returncode == 75


def test_a_line_stands_above_the_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal, lines appear while the bar is shown, and the bar disappears at the end."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # Rich then writes as to a terminal
    with Console() as console:
        console.advance("epoch 1", 3, 9, figures="loss 0.5")
        console.info("[b]100 % done[/b]")
    out = capsys.readouterr().out
    assert "epoch 1" in out
    assert "3/9 loss 0.5" in out
    assert out.count("[b]100 % done[/b]") == 1


def test_no_output_acts_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """The log, `echo` and Rich show control characters as escapes."""
    hostile = "\x1b[2J\x1b]0;title\x07\x9b31m a\rb\x08\x7f\u202egpj.exe\udcff"
    shown = r"\x1b[2J\x1b]0;title\x07\x9b31m a\rb\x08\x7f\u202egpj.exe\udcff"
    assert printable(hostile) == shown
    assert printable(plain := "tab\tand\nline, ünïcode \u4e2d \U0001f600") == plain
    echo(hostile)
    log(logging.ERROR, hostile)
    rich_console(width=200).print(hostile, markup=False)
    out, err = capsys.readouterr()
    assert err == f"harness: {shown}\n"
    assert out.startswith(f"{shown}\n")
    assert not set(out) & set("\x1b\x9b\r\x08\x7f\u202e\udcff")


def test_commands_escape_what_other_users_wrote(
    finished: tuple[Harness, Path], harness: Harness
) -> None:
    """Names of runs, records, texts and arguments may contain escape sequences."""
    name = "evil\x1b[2J\x1b]0;x\x07"
    run = harness.runs / name / "a"
    shutil.copytree(finished[1], run)
    state = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps({**state, "phase": "failed", "error": "\x1b[31mX"}))
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "data": "\x1b[2J<b>=1"}))
    for words in (
        ["status", "--runs", harness.runs], ["compare", run, "--baseline=none"],
        ["compare", run, "--baseline=none", "--markdown"],
        ["predict", run, "fine \x1b[2J\x9b text"], ["resume", f"no\x1b[2J{name}"],
        ["evaluate", f"{name}/b"], ["logs", f"{name}/a"],
        ["train", "no\x1b[2J.toml"], ["train", JOBS / "lstm.toml", "--set", "x.\x1b[2J=1"],
    ):  # fmt: skip
        done = harness.run_here(*words)
        said = done.stdout + done.stderr
        assert said
        assert not set(said) & set("\x1b\x9b\x07"), (words, said)
