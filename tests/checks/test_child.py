"""Children that answer a request: what they say, how they end, and what they took."""

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.checks import child
from harness.errors import InputError, RunError
from tests import asked_child
from tests.conftest import PROJECT

MODULE = "tests.checks.made_up_child"


def ask(do: str, *, timeout_s: float = 60, **request: Any) -> dict[str, Any]:
    answer, _ = asked_child.ask(MODULE, {"do": do, **request}, timeout_s=timeout_s, MADE_UP="1")
    return answer


def test_the_last_line_is_the_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child gets its arguments and variables, and this code whatever folder it starts in."""
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness/__init__.py").write_text("raise SystemExit('another checkout')")
    monkeypatch.chdir(tmp_path)
    assert ask("add", a=2, b=3) == {"sum": 5, "variable": "1", "first": str(PROJECT)}


@pytest.mark.parametrize(
    ("do", "kind", "line"),
    [
        ("refuse", InputError, "^a: is no number; give one$"),
        ("fail", RunError, "^the disk is full$"),
        ("crash", child.ChildError, r"^ended with code 1 \(KeyError: 'own'\)$"),
        ("die", child.ChildError, r"^died of SIGKILL \(it printed nothing\)$"),
    ],
)
def test_a_child_that_gives_no_answer_says_why(do: str, kind: type[Exception], line: str) -> None:
    """Its refusals and failures are raised here; of any other end the last line is told."""
    with pytest.raises(kind, match=line):
        ask(do)


def test_a_child_that_takes_too_long_is_ended() -> None:
    """The time limit holds whatever the child does."""
    with pytest.raises(child.ChildError, match=r"^took over 1 s and was ended$"):
        ask("hang", timeout_s=1)


def test_memory_is_that_of_the_one_child() -> None:
    """An earlier child that took more does not count for a later one."""
    code = f"""
from tests import asked_child
for size in (300_000_000, 1):
    _, ended = asked_child.ask("{MODULE}", {{"do": "fill", "num_bytes": size}})
    print(ended.peak_memory_gb)
"""
    # From a small process: Linux counts what a child shared with its parent before its own start.
    ended = child.run_process([sys.executable, "-c", code], timeout_s=60)
    large, small = map(float, ended.output.split())
    assert large > 0.3
    assert 0.005 < small < 0.2


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("print('a'); import sys; sys.exit('harness: b')", "ended with code 1 (b)"),
        ("print('a'); raise SystemExit(3)", "ended with code 3 (a)"),
        ("raise SystemExit(3)", "ended with code 3 (it printed nothing)"),
    ],
)
def test_an_end_is_told_with_the_last_line(code: str, line: str) -> None:
    """Standard error comes first, without the prefix of our own commands."""
    assert str(child.run_process([sys.executable, "-c", code], timeout_s=60)) == line
