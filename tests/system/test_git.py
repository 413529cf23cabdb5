"""The recorded version of the code does not depend on the user's settings of git."""

from pathlib import Path

import pytest

from harness.system.git import code_version, write_version
from tests.slurm.test_submit import project as project


@pytest.mark.parametrize("setting", ["input\nsafecrlf = true", "true"])
def test_line_ends_are_recorded_and_put_back_as_they_are(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """The files of the commit and new files keep LF and CRLF."""
    (tmp_path / "settings").write_text(f"[core]\nautocrlf = {setting}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "settings"))
    new = {"new.csv": b"a\r\nb\r\n", "new.txt": b"a\nb\n"}
    for name, content in new.items():
        (project / name).write_bytes(content)
    version = code_version(project)
    write_version(project, version["commit"], version["uncommitted_diff"], folder=tmp_path / "back")
    for name, content in {**new, "edited.txt": b"print(1)\n"}.items():
        assert (tmp_path / "back" / name).read_bytes() == content


def test_variables_of_git_select_no_other_repository(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook of git, for example, sets GIT_DIR for the programs that it starts."""
    commit = code_version(project)["commit"]
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert code_version(project)["commit"] == commit
