"""A new job key needs only its declaration. The tests declare one in a copy of the package."""

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


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the job key `train.patience`."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("harness", "tests", "jobs"):
        shutil.copytree(PROJECT / name, copy / name)
    path = copy / "harness/job/keys.py"
    path.write_text(path.read_text().replace(BEFORE, f"{BEFORE}\n{LINE}", 1))
    return copy


def test_the_manual_and_set_know_it(harness: Harness, copy: Path) -> None:
    """The manual has the key's type, range, default and meaning; wrong values are refused."""
    harness.environment["PYTHONPATH"] = str(copy)
    command = [sys.executable, "-m", "tests.job_keys"]
    subprocess.run(command, cwd=copy, env={"PYTHONPATH": str(copy)}, check=True)
    row = "| `train.patience` | float | 0 to 1 | `0.5` | how patient the reader is |\n"
    assert row in (copy / "jobs/README.md").read_text()
    for setting, said in (("patience=2", "less than or equal to 1"), ("patienc=1", "patience?")):
        refused = harness.train("lstm", "a", "--set", f"train.{setting}")
        assert refused.returncode == 2
        assert said in refused.stderr


def test_a_search_may_vary_it_and_records_have_it(copy: Path) -> None:
    """The job of a trial, which its run records, has the trial's value."""
    space = "[search]\ntrials = 2\n[search.space]\ntrain.patience = [0.25, 0.75]\n"
    (copy / "search.toml").write_text((copy / "jobs/gru.toml").read_text() + space)
    code = (
        "from pathlib import Path; from harness.job.search import load_search\n"
        "print(load_search(Path('search.toml')).job_of({'train.patience': 0.75}).to_toml())"
    )
    command = [sys.executable, "-c", code]
    job = subprocess.check_output(command, cwd=copy, env={"PYTHONPATH": str(copy)})
    assert tomllib.loads(job.decode())["train"]["patience"] == 0.75


@pytest.mark.full
def test_a_run_that_began_without_it_continues(harness: Harness, copy: Path) -> None:
    """The run ends with the bytes of an undisturbed run."""
    calm, run = calm_run(harness, "lstm"), killed_run(harness)
    assert "patience" not in tomllib.loads((run / "job.toml").read_text())["train"]
    harness.environment["PYTHONPATH"] = str(copy)
    done = harness.run("resume", run)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((run / "provenance.json").read_text())["starts"]) == 2
    assert "epoch 1/3" not in done.stdout
    assert results(run) == results(calm)
