"""Child processes of the checks: which code they import, how they end, how much memory they use."""

import sys
from pathlib import Path

import pytest

from tests import child
from tests.conftest import PROJECT


def test_a_child_imports_this_code_in_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The child also gets the environment variables that the call names."""
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness/__init__.py").write_text("raise SystemExit('another checkout')")
    monkeypatch.chdir(tmp_path)
    code = "import harness, os; print(harness.__file__, os.environ['MADE_UP'])"
    ended = child.run_process([sys.executable, "-c", code], timeout_s=60, MADE_UP="1")
    assert ended.output == f"{PROJECT / 'harness/__init__.py'} 1\n"


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("print('a'); import sys; sys.exit('harness: b')", "ended with code 1 (b)"),
        ("print('a'); raise SystemExit(3)", "ended with code 3 (a)"),
        ("raise SystemExit(3)", "ended with code 3 (it printed nothing)"),
        ("import os; os.kill(os.getpid(), 9)", "died of SIGKILL (it printed nothing)"),
    ],
)
def test_an_end_is_described_with_the_last_line(code: str, line: str) -> None:
    """The line is that of standard error if there is one; the prefix `harness:` is removed."""
    assert str(child.run_process([sys.executable, "-c", code], timeout_s=60)) == line


def test_a_child_that_takes_too_long_is_killed() -> None:
    """The error names the time limit."""
    with pytest.raises(child.ChildError, match=r"^took over 1 s and was killed$"):
        child.run_process([sys.executable, "-c", "import time; time.sleep(600)"], timeout_s=1)


def test_memory_is_that_of_one_child() -> None:
    """The memory of an earlier, larger child does not count."""
    code = """
import sys
from tests import child
for size in (300_000_000, 1):
    words = [sys.executable, "-c", f"len(b'x' * {size})"]
    print(child.run_process(words, timeout_s=60).peak_memory_gb)
"""
    # The parent is small, because on Linux a child's peak includes its parent's memory at the fork.
    ended = child.run_process([sys.executable, "-c", code], timeout_s=60)
    large, small = map(float, ended.output.split())
    assert large > 0.3
    assert 0.005 < small < 0.2
