"""One line adds a key to jobs. The tests add it to a copy of the project."""

import csv
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Harness, calm_run, results
from tests.training.kills import killed_run

BEFORE = '''    """`[train]`: how to train."""
'''
LINE = """    patience: float = Field(0.5, ge=0, le=1, description="how patient the reader is")
"""


@pytest.fixture
def added(tmp_path: Path) -> Path:
    """A copy of the project with one more line."""
    copy = tmp_path / "project"
    for name in ("harness", "tests", "jobs"):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "harness/job/keys.py"
    path.write_text(path.read_text().replace(BEFORE, f"{BEFORE}\n{LINE}", 1))
    return copy


def of_copy(harness: Harness, copy: Path) -> Harness:
    harness.environment["PYTHONPATH"] = str(copy)
    return harness


def test_it_is_in_the_manual(added: Path) -> None:
    """The manual has its type, range, default and meaning."""
    command = [sys.executable, "-m", "tests.job_keys"]
    subprocess.run(command, cwd=added, env={"PYTHONPATH": str(added)}, check=True)
    row = "| `train.patience` | float | 0 to 1 | `0.5` | how patient the reader is |\n"
    assert row in (added / "jobs/README.md").read_text()


def test_it_is_checked_by_its_name(harness: Harness, added: Path) -> None:
    """One line names the rule, or the nearest key."""
    of_copy(harness, added)
    for setting, said in (("patience=2", "less than or equal to 1"), ("patienc=1", "patience?")):
        refused = harness.train("lstm", "a", "--set", f"train.{setting}")
        assert refused.returncode == 2
        assert said in refused.stderr


@pytest.mark.slow
def test_a_search_varies_it(harness: Harness, added: Path) -> None:
    """The job.toml of a trial and the leaderboard have its value."""
    job = harness.folder / "search.toml"
    job.write_text(
        "[model]\narchitecture = 'rnn'\nunits = 2\n[data]\nlimit = 50\nmaxlen = 5\n"
        "[train]\nepochs = 1\nxla = 'off'\n[search]\ntuner = 'grid'\n"
        "[search.space]\ntrain.patience = [0.25, 0.75]\n"
    )
    done = of_copy(harness, added).run("tune", job, "--sweep-id", "a", "--workers", 1)
    assert done.returncode == 0, done.stderr
    sweep = harness.runs / "search/a"
    jobs = [tomllib.loads(path.read_text()) for path in sweep.glob("trials/**/job.toml")]
    assert sorted(each["train"]["patience"] for each in jobs) == [0.25, 0.75]
    with (sweep / "leaderboard.csv").open() as file:
        assert sorted(row["train.patience"] for row in csv.DictReader(file)) == ["0.25", "0.75"]


@pytest.mark.full
def test_a_run_without_it_resumes(harness: Harness, added: Path) -> None:
    """The run has the bytes of an undisturbed run."""
    calm, run = calm_run(harness, "lstm"), killed_run(harness, "lstm")
    assert "patience" not in tomllib.loads((run / "job.toml").read_text())["train"]
    done = of_copy(harness, added).run("resume", run)
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "provenance.json").read_text())
    assert len(record["starts"]) == 2
    assert "epoch 3/3" in done.stdout  # a kill within the second epoch
    assert "epoch 1/3" not in done.stdout
    assert results(run) == results(calm)
