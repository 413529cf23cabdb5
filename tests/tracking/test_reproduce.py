"""`harness reproduce` restores the code and the job of a run; training gives the same result."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Harness, results
from tests.slurm.test_submit import code, copy_project, edit, git, git_init


@pytest.mark.full
def test_reproduced_code_is_equal_and_trains_to_the_same_result(
    harness: Harness, tmp_path: Path
) -> None:
    """All bytes are equal, also of new files; the printed command trains the job."""
    project = tmp_path / "check out"
    copy_project(project)
    (project / "edited.txt").touch()
    (project / "gone.txt").touch()
    (project / "slurm/tool.sh").touch(mode=0o755)
    git_init(project)
    edit(project)
    with (project / "harness/__init__.py").open("a") as file:
        file.write("from harness.new import __version__ as __version__\n")
    (project / "harness/new.py").write_text('__version__ = "edited"\n')
    expected = code(project)
    harness.environment["PYTHONPATH"] = str(project)
    run = harness.trained("lstm", "first", "--set", "train.epochs=1")
    (project / "edited.txt").write_text("edited again since\n")
    # After this, no branch contains the commit of the run.
    git(project, "commit", "--all", "--amend", "--quiet", "--message=later")
    done = harness.run("reproduce", run)
    assert (done.returncode, done.stderr) == (0, "")
    folder = run.with_name("first-code")
    restored = code(folder)
    assert {name: restored[name] for name in expected} == expected
    others = {name.partition("/")[0] for name in restored.keys() - expected.keys()}
    assert others == {"reproduced.toml", "imdb-sample"}
    assert (folder / "reproduced.toml").read_bytes() == (run / "job.toml").read_bytes()
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert said["code"].startswith(f"{folder}, from commit")
    assert said["job"] == str(folder / "reproduced.toml")
    # As in a user's shell, no variable names another copy of the project.
    hidden = ("PYTHONPATH", "HARNESS_RUNS")
    environment = {k: v for k, v in harness.environment.items() if k not in hidden}
    again = subprocess.run(
        ["bash", "-c", f"{said['next']} --run-id again"],
        env={**environment, "PATH": f"{Path(harness.command()[0]).parent}:/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 0, again.stderr
    repeated = folder / "runs/lstm/again"
    assert json.loads((repeated / "provenance.json").read_text())["harness"] == "edited"
    assert results(repeated) == results(run)
