"""`reproduce`: a run's code and job come back, and train to the same result."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from harness import __version__
from harness.slurm.snapshot import take_snapshot
from tests.conftest import JOBS, PROJECT, SHRUNK, Harness, results
from tests.slurm.test_submit import code, edit, git, git_init

pytestmark = pytest.mark.full

JOB = [*SHRUNK, "--set", "train.epochs=1"]


class Checkout:
    """A git checkout of this project's code, uncommitted changes in it, and a run of those."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "check out"
        for name in ("harness", "jobs", "slurm"):
            ignore = shutil.ignore_patterns("__pycache__", "site.sh")
            shutil.copytree(PROJECT / name, self.path / name, ignore=ignore)
        for name in ("pyproject.toml", ".gitignore"):
            shutil.copy(PROJECT / name, self.path)
        (self.path / "edited.txt").touch()
        (self.path / "gone.txt").touch()
        (self.path / "slurm/tool.sh").touch(mode=0o755)
        git_init(self.path)
        edit(self.path)
        version = self.path / "harness/__init__.py"
        # A change that only a new file makes whole.
        text = version.read_text().replace(
            f'__version__ = "{__version__}"', "from harness.new import __version__ as __version__"
        )
        version.write_text(text)
        (self.path / "harness/new.py").write_text('__version__ = "edited"\n')
        self.code = code(self.path)
        self.harness = Harness(folder)
        self.harness.environment["PYTHONPATH"] = str(self.path)
        done = self.harness.run("train", JOBS / "lstm.toml", "--run-id", "first", *JOB)
        assert done.returncode == 0, done.stderr
        self.run = self.harness.runs / "lstm/first"

    def copy_of_run(self, folder: Path, **changes: object) -> Path:
        """The run elsewhere, with another record."""
        run = folder / "lstm/other"
        shutil.copytree(self.run, run)
        record = json.loads((run / "provenance.json").read_text())
        (run / "provenance.json").write_text(json.dumps({**record, **changes}))
        return run


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("reproduce"))


def code_alone(folder: Path) -> dict[str, tuple[str, object]]:
    """The code without the job and the sample that came with it."""
    return {
        name: content
        for name, content in code(folder).items()
        if name != "reproduced.toml" and not name.startswith("imdb-sample/")
    }


def test_reproduced_code_is_the_same_and_trains_to_the_same(checkout: Checkout) -> None:
    """Code by every byte, new files included, and the printed command gives the same result."""
    (checkout.path / "edited.txt").write_text("edited again since\n")
    # Amended, so that no branch holds the run's commit any more.
    git(checkout.path, "commit", "--all", "--amend", "--quiet", "--message=later")
    done = checkout.harness.run("reproduce", checkout.run)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    folder = checkout.run.with_name("first-code")
    assert code_alone(folder) == checkout.code
    assert (folder / "reproduced.toml").read_bytes() == (checkout.run / "job.toml").read_bytes()
    said = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert said["code"].startswith(f"{folder}, from commit")
    assert said["job"] == str(folder / "reproduced.toml")
    # A person's shell has no path to another copy.
    environment = {
        name: value
        for name, value in checkout.harness.environment.items()
        if name not in ("PYTHONPATH", "HARNESS_RUNS")
    }
    again = subprocess.run(
        ["bash", "-c", f"{said['next']} --run-id again && python -m harness --version"],
        env={**environment, "PATH": f"{Path(checkout.harness.command()[0]).parent}:/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == "edited"
    assert results(folder / "runs/lstm/again") == results(checkout.run)


def test_a_snapshot_stands_in_for_git(checkout: Checkout, tmp_path: Path) -> None:
    """Where the project is no checkout the code comes from the snapshot of the run."""
    project = tmp_path / "no checkout"
    ignore = shutil.ignore_patterns(".git", "runs")
    shutil.copytree(checkout.path, project, ignore=ignore, symlinks=True)
    snapshot = take_snapshot(project, tmp_path / "runs")
    run = checkout.copy_of_run(tmp_path, commit=None, snapshot=str(snapshot))
    checkout.harness.environment["HARNESS_HOME"] = str(project)
    try:
        done = checkout.harness.run("reproduce", run, "--to", tmp_path / "deep/back")
    finally:
        del checkout.harness.environment["HARNESS_HOME"]
    assert done.returncode == 0, done.stderr
    assert f"from snapshot {snapshot}" in done.stdout
    assert code_alone(tmp_path / "deep/back") == code(project)


@pytest.mark.parametrize(
    ("changes", "named", "code"),
    [
        ({"commit": "0" * 40}, "its commit 000000000000 is not in", 2),
        ({"commit": "--help"}, "names neither a commit nor a snapshot", 2),
        ({"commit": None, "snapshot": "/nowhere"}, "names neither a commit nor a snapshot", 2),
        ({"uncommitted_diff": "no patch"}, "can't be put back: git apply", 1),
    ],
)
def test_code_that_is_not_to_be_had(
    checkout: Checkout, tmp_path: Path, changes: dict[str, object], named: str, code: int
) -> None:
    """One line says why, and no folder is left."""
    run = checkout.copy_of_run(tmp_path, **changes)
    done = checkout.harness.run("reproduce", run)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert [path.name for path in run.parent.iterdir()] == ["other"]


def test_a_folder_that_is_there_is_left_alone(checkout: Checkout, tmp_path: Path) -> None:
    """Even an empty folder is refused, and a run without a record too."""
    done = checkout.harness.run("reproduce", checkout.run, "--to", tmp_path)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "exists already" in done.stderr
    (tmp_path / "run").mkdir()
    shutil.copy(checkout.run / "job.toml", tmp_path / "run")
    done = checkout.harness.run("reproduce", tmp_path / "run")
    assert done.returncode == 2
    assert "no readable provenance.json" in done.stderr


def test_other_packages_are_said(checkout: Checkout, tmp_path: Path) -> None:
    """A version that differs from the run's is warned of."""
    run = checkout.copy_of_run(tmp_path, packages={"numpy": "1.0"})
    done = checkout.harness.run("reproduce", run)
    assert done.returncode == 0
    assert "warning: numpy was 1.0 in the run and is" in done.stderr
