"""`submit` and `reproduce`, as far as no Slurm is needed: the command, snapshots, versions."""

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.slurm.snapshot import MAX_NEW_FILES, snapshot_path, take_snapshot
from harness.system.git import code_version
from tests.conftest import JOBS, PROJECT, SHRUNK, Harness

GIT = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]


def git(project: Path, *words: str) -> str:
    done = subprocess.run(
        [*GIT, *words], cwd=project, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def contents(folder: Path) -> dict[str, tuple[str, object]]:
    """Every file by its path: what it is, and what is in it."""
    found: dict[str, tuple[str, object]] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", os.fspath(path.readlink()))
        elif path.is_file():
            kind = "program" if os.access(path, os.X_OK) else "file"
            found[name] = (kind, path.read_bytes())
    return found


def code(folder: Path) -> dict[str, tuple[str, object]]:
    """The contents that are code: not git's, Python's, or a snapshot's own."""
    return {
        name: content
        for name, content in contents(folder).items()
        if not name.startswith((".git/", "runs/"))
        and "__pycache__" not in name
        and name != "snapshot.json"
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A minimal project in a git checkout, everything committed."""
    project = tmp_path / "it's a: project"
    for name in ("slurm", "jobs"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("site.sh"))
    (project / ".gitignore").write_text("/runs/\n/slurm/site.sh\n")
    (project / "edited.txt").write_text("print(1)\n")
    (project / "gone.txt").write_text("print(2)\n")
    (project / "slurm/tool.sh").write_text("#!/bin/sh\n")
    (project / "slurm/tool.sh").chmod(0o755)
    (project / "link").symlink_to("edited.txt")
    git_init(project)
    return project


def git_init(project: Path) -> None:
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=all")


def edit(project: Path) -> None:
    """Every kind of change that can be there uncommitted, some of it staged."""
    (project / "edited.txt").write_bytes(b"print('\xff\r\n')\n \n")
    (project / "gone.txt").unlink()
    job = (project / "jobs/lstm.toml").read_text()
    (project / "jobs/lstm.toml").write_text(job.replace("limit = 0", "limit = 99"))
    (project / "new folder").mkdir()
    (project / "new folder/n\u00e9w.py").write_text("without an end of line")
    (project / "new folder/empty.py").touch()
    (project / "weights.bin").write_bytes(bytes(range(256)) * 10)
    (project / "tool").write_text("#!/bin/sh\n")
    (project / "tool").chmod(0o755)
    (project / "new link").symlink_to("nowhere")
    (project / "staged.py").write_text("staged\n")
    git(project, "add", "staged.py")
    (project / "staged.py").write_text("and edited\n")
    (project / "slurm/tool.sh").chmod(0o644)
    os.utime(project / ".gitignore", (1e9, 1e9))  # no change, but git would note it in its index


# The command


def test_dry_run_prints_everything_and_writes_nothing(harness: Harness) -> None:
    """The script and the command come out, and no folder is made; no Slurm is needed."""
    harness.environment["PATH"] = "/nowhere"
    before = contents(harness.folder)
    words = ["--seeds", "1-2", "--gpus", "2", "--dry-run", "--", "--mem=4G"]
    done = harness.run_here("submit", JOBS / "lstm.toml", *SHRUNK, *words)
    assert done.returncode == 0, done.stderr
    assert contents(harness.folder) == before
    assert not harness.runs.exists()
    assert f"export HARNESS_RUNS={harness.runs}\n" in done.stdout
    assert "--array=1-2 --gres=gpu:2 --mem=4G" in done.stdout.strip().splitlines()[-1]
    assert "packaged SAMPLE; get it first by: harness data fetch" in done.stderr


@pytest.mark.parametrize("job", ["lstm", "tune_lstm"])
def test_texts_that_are_not_there_wait_in_no_queue(harness: Harness, job: str) -> None:
    """A job's and a search's are looked at before either is submitted."""
    done = harness.run_here("submit", JOBS / f"{job}.toml", "--set", "data.source=no.csv")
    assert (done.returncode, "no.csv" in done.stderr) == (2, True)


def test_a_submission_waits_for_no_numpy(harness: Harness) -> None:
    """Nor for anything else that training alone needs."""
    harness.environment["PYTHONPROFILEIMPORTTIME"] = "1"
    done = harness.run("submit", JOBS / "lstm.toml", "--dry-run")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "harness.slurm.submit" in imported
    assert not imported & {"tensorflow", "keras", "numpy", "sklearn"}


def test_data_that_are_there_need_no_warning(harness: Harness) -> None:
    """With the dataset's files in the folder named, nothing is said of the sample."""
    (harness.folder / "imdb.npz").touch()
    harness.environment["HARNESS_DATA"] = str(harness.folder)
    done = harness.run_here("submit", JOBS / "lstm.toml", "--dry-run")
    assert (done.returncode, "SAMPLE" in done.stderr) == (0, False)
    assert f"export HARNESS_DATA={harness.folder}\n" in done.stdout


def test_an_environment_without_harness_is_warned_of(harness: Harness) -> None:
    """A job installs nothing, so an environment that lacks the program is named beforehand."""
    harness.environment["HARNESS_VENV"] = str(harness.folder)
    words = ["submit", JOBS / "lstm.toml", "--dry-run"]
    assert f"warning: {harness.folder}/bin/harness is not there" in harness.run_here(*words).stderr
    (harness.folder / "bin").mkdir()
    (harness.folder / "bin/harness").touch()
    assert "bin/harness" not in harness.run_here(*words).stderr


def test_a_checkout_that_git_refuses_is_warned_of(harness: Harness, project: Path) -> None:
    """Then the whole folder is copied, and that the commit is unknown is said beforehand."""
    harness.environment["HARNESS_HOME"] = str(project)
    words = ["submit", project / "jobs/lstm.toml", "--dry-run"]
    assert "git can't" not in harness.run_here(*words).stderr
    (project / ".git/HEAD").unlink()
    done = harness.run_here(*words)
    assert done.returncode == 0
    assert f"warning: git can't tell the commit of {project}" in done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--all"),
        (["lstn.toml"], "lstn.toml"),
        ([JOBS / "lstm.toml", "--set", "model.unit=8"], "model.units"),
        ([JOBS / "lstm.toml", "--seeds", "1,2147483648"], "--seed 2147483648"),
        ([JOBS / "lstm.toml", "--gpu", "2"], "--gpus"),
        ([JOBS / "lstm.toml", "--reservation=x"], "--reservation; an option of sbatch goes after"),
        ([JOBS / "lstm.toml", JOBS / "gru.toml"], "--all"),
        ([JOBS / "lstm.toml", "--runs", PROJECT], "--runs"),
        ([JOBS / "lstm.toml", "--partition", "x"], "--partition; an option of sbatch goes after"),
        ([JOBS / "tune_lstm.toml", "--retry-memory"], "--retry-memory"),
        ([JOBS / "lstm.toml", "--seeds", "1-2", "--pack", "--retry-memory"], "--retry-memory"),
        ([JOBS / "lstm.toml", "--", "--array=1-2"], "--seeds"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    harness: Harness, words: list[object], named: str
) -> None:
    """What can't be submitted is refused before anything is written, with the remedy."""
    before = contents(harness.folder)
    done = harness.run_here("submit", *words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert contents(harness.folder) == before
    assert not harness.runs.exists()


def test_without_slurm_nothing_is_written(harness: Harness) -> None:
    """No sbatch on the PATH: refused with the remedy, and no snapshot is made."""
    harness.environment["PATH"] = "/nowhere"
    done = harness.run_here("submit", JOBS / "lstm.toml")
    assert done.returncode == 2
    assert "sbatch: is not on the PATH" in done.stderr
    assert not harness.runs.exists()


def test_a_refusing_sbatch_leaves_no_submission(harness: Harness) -> None:
    """All that it says comes out in one line, exit code 2, and the submission's folder is gone."""
    harness.program(
        "sbatch",
        "case $1 in --version | --test-only) exit ;; esac\n"
        "echo warming up >&2; echo 'sbatch: error: no way' >&2; exit 1",
    )
    done = harness.run_here("submit", JOBS / "lstm.toml")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "harness: lstm: was not submitted: warming up; sbatch: error: no way"
    )
    left = [path.name for path in (harness.runs / ".submissions").iterdir()]
    assert [name for name in left if not name.startswith("code-")] == []


# The code


def test_snapshot_holds_the_code_as_it_is_now(project: Path) -> None:
    """Edits, new files, modes and links are in it, with the site's settings and no ignored file."""
    edit(project)
    (project / "runs").mkdir()
    (project / "runs/ignored").touch()
    (project / "slurm/site.sh").write_text("SECRET=1\n")
    (project / "slurm/site.sh").chmod(0o600)
    before = contents(project)
    snapshot = take_snapshot(project, project / "runs")
    assert code(snapshot) == code(project)
    assert "runs/ignored" not in contents(snapshot)
    assert (snapshot / "slurm/site.sh").stat().st_mode & 0o777 == 0o600
    after = {k: v for k, v in contents(project).items() if ".submissions" not in k}
    assert after == before, "the checkout, its index and its objects stay as they were"
    assert [path.name for path in snapshot.parent.iterdir()] == [snapshot.name]


def test_same_code_is_one_snapshot(project: Path, tmp_path: Path) -> None:
    """Its name tells its content: the same again is the same folder, an edit makes another."""
    runs = tmp_path / "runs"
    first = take_snapshot(project, runs)
    assert snapshot_path(project, runs) == first
    assert take_snapshot(project, runs) == first
    (project / "slurm/tool.sh").chmod(0o644)
    second = take_snapshot(project, runs)
    assert second != first
    assert snapshot_path(project, runs) == second
    assert take_snapshot(second, runs) == second, "a snapshot needs none of itself"
    assert {*first.parent.iterdir()} == {first, second}, "no copy is left"


def test_nobody_else_may_write_where_python_keeps_compiled_code(
    project: Path, tmp_path: Path
) -> None:
    """Whatever the umask of the job: the folders are there, so the same snapshot is used again."""
    (project / "new.py").write_text("x = 1\n")
    umask = os.umask(0o002)
    try:
        snapshot = take_snapshot(project, tmp_path / "runs")
        (snapshot / "__pycache__").mkdir(exist_ok=True)  # as Python does in a job
    finally:
        os.umask(umask)
    assert stat.S_IMODE((snapshot / "__pycache__").stat().st_mode) & 0o022 == 0
    before = snapshot.stat().st_ino
    assert take_snapshot(project, tmp_path / "runs") == snapshot
    assert snapshot.stat().st_ino == before


def test_a_damaged_snapshot_is_made_anew(project: Path, tmp_path: Path) -> None:
    """A cleaner of old files took one away, and something changed another."""
    snapshot = take_snapshot(project, tmp_path / "runs")
    (snapshot / "jobs/lstm.toml").unlink()
    (snapshot / "edited.txt").write_text("print(3)\n")
    assert take_snapshot(project, tmp_path / "runs") == snapshot
    assert code(snapshot) == code(project)


def test_snapshot_of_a_folder_without_git(project: Path) -> None:
    """Everything but environments, caches and runs is copied, and no commit is named."""
    shutil.rmtree(project / ".git")
    wanted = code(project)
    (project / "my env").mkdir()
    for name in (".venv-1/x", "__pycache__/x", "out/x", "my env/pyvenv.cfg", "1.out"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).touch()
    snapshot = take_snapshot(project, project / "out")
    assert code(snapshot) == wanted
    assert json.loads((snapshot / "snapshot.json").read_text())["commit"] is None


def test_runs_that_git_does_not_ignore_are_no_code(project: Path) -> None:
    """Runs inside the project are neither copied nor part of its version."""
    (project / "my runs/lstm").mkdir(parents=True)
    (project / "my runs/lstm/job.toml").touch()
    snapshot = take_snapshot(project, project / "my runs")
    assert not (snapshot / "my runs").exists()
    assert code_version(project, project / "my runs")["uncommitted_diff"] == ""
    assert "my runs/lstm/job.toml" in code_version(project)["untracked_files"]


def test_a_dataset_in_the_project_is_refused(project: Path, tmp_path: Path) -> None:
    """Thousands of new files are no code: the refusal names their folder and the remedy."""
    (project / "aclImdb").mkdir()
    for number in range(MAX_NEW_FILES + 1):
        (project / f"aclImdb/{number}.txt").touch()
    with pytest.raises(InputError, match=r"aclImdb.*\.gitignore"):
        take_snapshot(project, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    assert len(code_version(project)["untracked_files"]) == 1001, "a record stays small"


def test_code_version_is_a_patch_with_new_files(project: Path, tmp_path: Path) -> None:
    """The patch on a fresh checkout of the commit gives every byte, mode and link back."""
    edit(project)
    before = contents(project)
    version = code_version(project)
    assert contents(project) == before, "git's index and objects stay as they were"
    assert version["commit"] == git(project, "rev-parse", "HEAD").strip()
    assert version["left_out_files"] == []
    assert "new folder/n\u00e9w.py" in version["untracked_files"]
    fresh = tmp_path / "fresh"
    git(tmp_path, "clone", "--quiet", str(project), str(fresh))
    patch = json.loads(json.dumps(version["uncommitted_diff"])).encode(errors="surrogateescape")
    subprocess.run(["git", "apply", "-"], cwd=fresh, input=patch, timeout=60, check=True)
    assert code(fresh) == code(project)


def test_an_edit_within_the_same_tick_as_gits_last_look_is_seen(project: Path) -> None:
    """Same length, same time: git tells only by its index being no younger than the file."""
    git(project, "config", "core.trustctime", "false")
    path, index = project / "edited.txt", project / ".git/index"
    path.write_text("2\n")
    os.utime(path, (1e9, 1e9))
    git(project, "commit", "--all", "--quiet", "--message=again")
    path.write_text("3\n")
    os.utime(path, (1e9, 1e9))
    os.utime(index, (1e9, 1e9))
    assert "-2\n+3\n" in code_version(project)["uncommitted_diff"]


def test_large_new_files_are_named_and_left_out(project: Path) -> None:
    """A new file over a megabyte is named, not recorded; a tracked one is recorded whole."""
    (project / "data.bin").write_bytes(os.urandom(1_000_001))
    version = code_version(project)
    assert version["untracked_files"] == version["left_out_files"] == ["data.bin"]
    assert version["uncommitted_diff"] == ""


@pytest.mark.parametrize(
    "setting",
    [
        *("diff.noprefix=true", "diff.mnemonicPrefix=true", "diff.external=false"),
        *("diff.context=0", "color.ui=always"),
    ],
)
def test_a_users_settings_do_not_change_the_patch(project: Path, setting: str) -> None:
    """What a user's own git prints is not what a record needs."""
    edit(project)
    before = code_version(project)
    name, _, value = setting.partition("=")
    git(project, "config", name, value)
    assert code_version(project) == before


def test_a_worktree_has_its_own_version(project: Path, tmp_path: Path) -> None:
    """Where .git is a file, commit and changes are those of the worktree."""
    tree = tmp_path / "tree"
    git(project, "worktree", "add", "--quiet", "--detach", str(tree))
    edit(tree)
    assert code_version(tree)["commit"] == code_version(project)["commit"]
    assert "weights.bin" in code_version(tree)["uncommitted_diff"]
    assert code_version(project)["uncommitted_diff"] == ""


def test_code_version_of_a_snapshot_is_that_of_its_source(project: Path, tmp_path: Path) -> None:
    """A run from a snapshot records commit, changes and new files, and the snapshot itself."""
    edit(project)
    snapshot = take_snapshot(project, tmp_path / "runs")
    assert code_version(snapshot) == {**code_version(project), "snapshot": str(snapshot)}
    assert code_version(project)["snapshot"] is None


def test_code_version_knows_nothing_outside_git(tmp_path: Path) -> None:
    """In a folder without git, or with a broken one, every part is None."""
    assert set(code_version(tmp_path).values()) == {None}
    (tmp_path / ".git").mkdir()
    version = code_version(tmp_path)
    assert "fatal: " in version.pop("git_problem")
    assert set(version.values()) == {None}
