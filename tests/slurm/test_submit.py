"""Snapshots of a project's code, and the version of the code in records."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.slurm.snapshot import MAX_NEW_FILES, code_files, take_snapshot
from harness.slurm.submit import check_request
from harness.system.git import code_version
from tests.conftest import PROJECT

NOBODY = 65534

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files")

GIT = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]


def git(project: Path, *words: str) -> str:
    done = subprocess.run(
        [*GIT, *words], cwd=project, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def contents(folder: Path) -> dict[str, tuple[str, object]]:
    """Return the kind and the content of every file, by path."""
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
    """Return `contents` without the files of git, Python, runs and the snapshot's record."""
    return {
        name: content
        for name, content in contents(folder).items()
        if not name.startswith((".git/", "runs/"))
        and "__pycache__" not in name
        and name != "snapshot.json"
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A minimal project in a git checkout without changes."""
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


def copy_project(project: Path) -> None:
    """Copy this project without the site's settings; the copy can train and submit."""
    for name in ("harness", "jobs", "slurm"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("site.sh"))
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(PROJECT / name, project)


def git_init(project: Path) -> None:
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=all")


def edit(project: Path) -> None:
    """Make every kind of uncommitted change, and stage one change."""
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
    os.utime(project / ".gitignore", (1e9, 1e9))  # equal content, but git would update its index


def test_snapshot_holds_the_code_as_it_is_now(project: Path) -> None:
    """The snapshot has all edits, new files, modes, links and site.sh, but no ignored files."""
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
    version = code_version(snapshot)
    assert version == {**code_version(project, project / "runs"), "snapshot": str(snapshot)}


def test_same_code_is_one_private_snapshot(project: Path, tmp_path: Path) -> None:
    """Others may have no access to the project, and can't add modules to a snapshot.

    A snapshot that is damaged, or that others could open, is replaced.
    """
    runs = tmp_path / "runs"
    umask = os.umask(0)
    try:
        first = take_snapshot(project, runs)
    finally:
        os.umask(umask)
    before = first.stat()
    assert before.st_mode & 0o777 == 0o700
    assert take_snapshot(project, runs) == first
    assert first.stat().st_ino == before.st_ino, "the snapshot is used again"
    first.chmod(0o755)
    assert take_snapshot(project, runs).stat().st_ino != before.st_ino
    (first / "jobs/lstm.toml").unlink()
    assert take_snapshot(project, runs) == first
    (first / "edited.txt").write_text("print(3)\n")
    assert take_snapshot(project, runs) == first
    assert code(first) == code(project)
    (project / "slurm/tool.sh").chmod(0o644)
    second = take_snapshot(project, runs)
    assert second != first, "another mode leads to another snapshot"
    assert take_snapshot(second, runs) == second, "a snapshot needs no snapshot"
    assert {*first.parent.iterdir()} == {first, second}, "no copy is left"


@as_root
def test_a_user_trusts_no_other_users_snapshot(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two users whose folder of runs belongs to root have different snapshots of the same code."""
    first = take_snapshot(project, tmp_path / "runs")
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    assert take_snapshot(project, tmp_path / "runs") != first


@as_root
@pytest.mark.parametrize("name", ["runs", "runs/.submissions", "link"])
def test_another_users_folder_of_runs_is_refused(project: Path, tmp_path: Path, name: str) -> None:
    """The owner of a folder or link could replace a snapshot, even if the folder is sticky."""
    (tmp_path / "runs/.submissions").mkdir(parents=True)
    (tmp_path / "link").symlink_to("runs")
    (tmp_path / "runs/.submissions").chmod(0o1777)
    os.chown(tmp_path / name, NOBODY, -1, follow_symlinks=False)
    runs = tmp_path / name.partition("/")[0]
    message = rf"{tmp_path / name}: .*belongs to nobody, .*--runs or HARNESS_RUNS"
    with pytest.raises(InputError, match=message):
        take_snapshot(project, runs)
    with pytest.raises(InputError, match=message):
        check_request([], runs)
    assert list((tmp_path / "runs/.submissions").iterdir()) == []


def test_a_sites_settings_may_be_a_link(project: Path, tmp_path: Path) -> None:
    """A snapshot contains the linked file itself; a broken link is left out."""
    site, settings = project / "slurm/site.sh", tmp_path / "site.sh"
    site.symlink_to("../../site.sh")
    assert not os.path.lexists(take_snapshot(project, tmp_path / "runs") / "slurm/site.sh")
    for text in ("A=1\n", "A=2\n"):
        settings.write_text(text)
        snapshot = take_snapshot(project, tmp_path / "runs")
        assert (snapshot / "slurm/site.sh").read_text() == text


def test_code_that_git_can_not_list_is_refused(project: Path, tmp_path: Path) -> None:
    """The line has git's error, or says that there is no checkout."""
    (project / ".git/HEAD").unlink()
    with pytest.raises(InputError, match=r"not a git repository.*; harness submit copies"):
        take_snapshot(project, tmp_path / "runs")
    shutil.rmtree(project / ".git")
    with pytest.raises(InputError, match=r"is not a git checkout; .* with sbatch"):
        take_snapshot(project, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_runs_that_git_does_not_ignore_are_no_code(project: Path) -> None:
    """Runs inside of the project are neither copied nor recorded."""
    (project / "my runs/lstm").mkdir(parents=True)
    (project / "my runs/lstm/job.toml").touch()
    snapshot = take_snapshot(project, project / "my runs")
    assert not (snapshot / "my runs").exists()
    assert code_version(project, project / "my runs")["uncommitted_diff"] == ""
    assert "my runs/lstm/job.toml" in code_version(project)["uncommitted_diff"]


def test_a_dataset_in_the_project_is_refused(project: Path, tmp_path: Path) -> None:
    """Thousands of new files can't be code; the error names their folder and the remedy."""
    (project / "aclImdb").mkdir()
    for number in range(MAX_NEW_FILES + 1):
        (project / f"aclImdb/{number}.txt").touch()
    with pytest.raises(InputError, match=r"aclImdb.*\.gitignore"):
        take_snapshot(project, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_file_that_vanishes_meanwhile_is_left_out(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor removes its temporary file between git's answer and the copy."""
    listed: tuple[list[str], list[str], dict[str, str]] = (["pyproject.toml"], ["4913"], {})
    monkeypatch.setattr("harness.slurm.snapshot.list_files", lambda *_: listed)
    assert "4913" not in code_files(project, tmp_path / "runs")[0]


def test_code_version_is_a_patch_with_new_files(project: Path, tmp_path: Path) -> None:
    """On a fresh checkout of the commit, the patch restores every byte, mode and link."""
    edit(project)
    before = contents(project)
    version = code_version(project)
    assert contents(project) == before, "git's index and objects stay as they were"
    assert version["commit"] == git(project, "rev-parse", "HEAD").strip()
    assert version["left_out_files"] == []
    fresh = tmp_path / "fresh"
    git(tmp_path, "clone", "--quiet", str(project), str(fresh))
    patch = json.loads(json.dumps(version["uncommitted_diff"])).encode(errors="surrogateescape")
    subprocess.run(["git", "apply", "-"], cwd=fresh, input=patch, timeout=60, check=True)
    assert code(fresh) == code(project)


def test_large_new_files_are_named_only(project: Path) -> None:
    """The content of a new file over a megabyte is not recorded."""
    (project / "data.bin").write_bytes(os.urandom(1_000_001))
    version = code_version(project)
    assert version["left_out_files"] == ["data.bin"]
    assert version["uncommitted_diff"] == ""


def test_a_users_settings_do_not_change_the_patch(project: Path) -> None:
    """The settings change the format of the diffs that git prints for the user."""
    edit(project)
    before = code_version(project)
    for name, value in (("noprefix", "true"), ("external", "false")):
        git(project, "config", f"diff.{name}", value)
    git(project, "config", "color.ui", "always")
    assert code_version(project) == before


def test_a_worktree_has_its_own_version(project: Path, tmp_path: Path) -> None:
    """In a worktree, `.git` is a file."""
    tree = tmp_path / "tree"
    git(project, "worktree", "add", "--quiet", "--detach", str(tree))
    edit(tree)
    assert code_version(tree)["commit"] == code_version(project)["commit"]
    assert "weights.bin" in code_version(tree)["uncommitted_diff"]
    assert code_version(project)["uncommitted_diff"] == ""


def test_outside_of_git_the_version_is_unknown(tmp_path: Path) -> None:
    """The version is also unknown in a broken checkout; there git's message is recorded, too."""
    assert set(code_version(tmp_path).values()) == {None}
    (tmp_path / ".git").mkdir()
    version = code_version(tmp_path)
    assert "fatal: " in version.pop("git_problem")
    assert set(version.values()) == {None}
