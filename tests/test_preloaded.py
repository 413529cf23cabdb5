"""The forks in which the tests run commands."""

import subprocess

import psutil
import pytest

from tests.conftest import Harness, wait_for


def test_a_command_has_its_own_input_output_and_code(harness: Harness) -> None:
    """It says what a process of its own says, in the folder that it is given."""
    forked = harness.run("data", "describe", "none.csv")
    harness.environment["PYTHONHASHSEED"] = "7"  # which no fork can be given
    own = harness.run("data", "describe", "none.csv")
    assert own.returncode == 2
    assert (forked.returncode, forked.stdout, forked.stderr) == (2, own.stdout, own.stderr)


def test_a_command_that_takes_too_long_is_killed(harness: Harness) -> None:
    """It leaves no process."""
    with pytest.raises(subprocess.TimeoutExpired):
        harness.run(*harness.train_words("lstm", "long", "--set", "train.epochs=200"), timeout_s=3)
    assert not (harness.runs / "lstm/long/result.json").exists()
    folder = str(harness.folder)
    wait_for(lambda: all(each.info["cwd"] != folder for each in psutil.process_iter(["cwd"])))
