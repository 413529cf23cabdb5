"""Secrets in a checkout are neither copied into a snapshot nor written into a record."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.slurm.snapshot import left_out, take_snapshot
from harness.system.git import code_version
from harness.tracking.run_dir import RunDirectory
from tests.slurm.test_submit import git
from tests.slurm.test_submit import project as project

VALUE = "hf_abcdefghijklmnop"
SECRETS = [
    *("my_token.txt", "Secrets.yaml", "cloud-credentials.json", "db_password", "server.pem"),
    *("id_rsa", "id_ed25519.old", ".env", ".env.local", "api.key", "keys/.netrc", "secrets/a.txt"),
    *("my_secrets.py", "HF_TOKEN"),
]
CODE = ["tokenizer.py", "keyboard.py", "environment.toml", "my.py", "monkey"]


def texts_below(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_text(errors="replace")


def write(project: Path, names: list[str]) -> None:
    for name in names:
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(f"{VALUE}\n")


@pytest.mark.parametrize("staged", [False, True])
def test_a_secret_is_known_by_its_name(project: Path, tmp_path: Path, staged: bool) -> None:
    """A secret is also left out if it is in git's index; its content appears nowhere."""
    write(project, SECRETS)
    if staged:
        git(project, "add", "--all", "--force")
    snapshot = take_snapshot(project, tmp_path / "runs")
    assert VALUE not in "".join(texts_below(snapshot))
    version = code_version(project)
    assert VALUE not in json.dumps(version)
    assert set(version["left_out_files"]) == set(SECRETS)
    (line,) = left_out(project, tmp_path / "runs")
    assert all(name in line for name in SECRETS)
    assert "my_token.txt (its name)" in line


def test_code_is_no_secret(project: Path, tmp_path: Path) -> None:
    """Files with similar names are copied, and so is a committed file with a secret's name."""
    write(project, CODE)
    snapshot = take_snapshot(project, tmp_path / "runs")
    assert all((snapshot / name).is_file() for name in CODE)
    assert code_version(project)["left_out_files"] == []
    assert list(left_out(project, tmp_path / "runs")) == []
    write(project, ["token_table.txt"])
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=deliberately")
    assert (take_snapshot(project, tmp_path / "runs") / "token_table.txt").is_file()


def test_the_change_of_a_committed_secret_is_not_recorded(project: Path) -> None:
    """The record contains the secret's name only; the diff contains all other changes.

    A file whose content is unchanged is not named, even if its time differs from git's index.
    """
    write(project, ["token.txt"])
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=an old one")
    os.utime(project / "token.txt", (1, 1))
    assert code_version(project)["left_out_files"] == []
    (project / "token.txt").write_text("hf_new\n")
    (project / "edited.txt").write_text("changed\n")
    version = code_version(project)
    assert "hf_" not in version["uncommitted_diff"]
    assert "changed" in version["uncommitted_diff"]
    assert version["left_out_files"] == ["token.txt"]


def test_a_private_file_in_an_open_checkout_is_left_out(project: Path, tmp_path: Path) -> None:
    """Mode 0600 means a private file, except in a checkout that is private itself."""
    write(project, ["notes.txt", "public.txt"])
    (project / "notes.txt").chmod(0o600)
    snapshot = take_snapshot(project, tmp_path / "runs")
    assert not (snapshot / "notes.txt").exists()
    assert (snapshot / "public.txt").is_file()
    assert code_version(project)["left_out_files"] == ["notes.txt"]
    (line,) = left_out(project, tmp_path / "runs")
    assert "notes.txt (its mode 0600)" in line
    project.chmod(0o700)
    write(project, ["token.txt"])
    snapshot = take_snapshot(project, tmp_path / "runs")
    assert (snapshot / "notes.txt").is_file()
    assert not (snapshot / "token.txt").exists()


def test_a_file_in_a_private_folder_is_left_out(project: Path, tmp_path: Path) -> None:
    """A user who closes a folder need not close the files and the folders inside."""
    names = ["mine/notes.txt", "mine/deep/notes.txt"]
    (project / "mine/deep").mkdir(parents=True)
    write(project, [*names, "ours/public.txt"])
    (project / "mine").chmod(0o700)
    snapshot = take_snapshot(project, tmp_path / "runs")
    assert VALUE not in "".join(texts_below(snapshot / "mine"))
    assert (snapshot / "ours/public.txt").is_file()
    assert sorted(code_version(project)["left_out_files"]) == sorted(names)
    (line,) = left_out(project, tmp_path / "runs")
    assert "mine/deep/notes.txt (mine/ has mode 0700)" in line


def test_records_with_a_diff_are_private(project: Path, tmp_path: Path) -> None:
    """A diff may contain a secret that no file name reveals."""
    run = RunDirectory(tmp_path / "run")
    run.take_lease()
    before = os.umask(0o022)
    try:
        for diff, mode in (("+password", 0o600), ("", 0o644), (None, 0o644)):
            run.write_json("provenance.json", {"uncommitted_diff": diff})
            assert run.path("provenance.json").stat().st_mode & 0o777 == mode
        record = take_snapshot(project, tmp_path / "runs") / "snapshot.json"
        assert record.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
