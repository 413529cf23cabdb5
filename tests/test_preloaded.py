"""Forks that run the commands of the tests behave like new processes."""

import subprocess

import psutil
import pytest

from tests.conftest import Harness, wait_for


def test_a_fork_ends_like_a_process(harness: Harness) -> None:
    """The fork has the output and the exit code of a new process."""
    forked = harness.run("data", "describe", "none.csv")
    harness.environment["PYTHONHASHSEED"] = "7"  # makes the next command a new process
    process = harness.run("data", "describe", "none.csv")
    assert process.returncode == 2
    assert (forked.returncode, forked.stdout, forked.stderr) == (2, process.stdout, process.stderr)


def test_a_command_is_killed_at_its_limit(harness: Harness) -> None:
    """No process remains."""
    with pytest.raises(subprocess.TimeoutExpired):
        harness.run(*harness.train_words("lstm", "long", "--set", "train.epochs=200"), timeout_s=3)
    assert not (harness.runs / "lstm/long/result.json").exists()
    folder = str(harness.folder)
    wait_for(lambda: all(each.info["cwd"] != folder for each in psutil.process_iter(["cwd"])))
