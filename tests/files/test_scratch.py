"""Folders for temporary files, and those of killed processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness.files import scratch
from harness.files.scratch import scratch_directory

HOLD = """
import sys
from harness.files.scratch import scratch_directory
with scratch_directory() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(scratch, "MIN_AGE_S", 0.0)
    return tmp_path


def test_a_folder_is_private_and_removed(temporary: Path) -> None:
    """With all that is in it."""
    with scratch_directory() as folder:
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
    assert not list(temporary.iterdir())


def test_the_folders_of_killed_processes_are_removed_and_those_of_living_ones_stay(
    temporary: Path,
) -> None:
    """A killed process leaves its folder behind; the next start removes it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    left = Path(holder.stdout.readline().strip())
    (left / "file").touch()
    with scratch_directory():
        assert left.exists()
    holder.kill()
    holder.communicate()
    assert left.exists()
    with scratch_directory():
        assert not left.exists()


def test_nothing_but_own_old_folders_is_removed(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link, a file, another name, another user's folder and one that is made just now."""
    prefix = scratch.own_prefix()
    (temporary / "elsewhere").mkdir()
    (temporary / f"{prefix}link").symlink_to("elsewhere")
    (temporary / f"{prefix}file").touch()
    (temporary / f"{prefix}new").mkdir()
    (temporary / f"harness-{os.getuid()}-other").mkdir()  # of another host
    expected = set(temporary.iterdir())
    monkeypatch.setattr(scratch, "MIN_AGE_S", 3600.0)
    with scratch_directory():
        pass
    assert set(temporary.iterdir()) == expected
    monkeypatch.setattr(scratch, "MIN_AGE_S", 0.0)
    if os.getuid() == 0:
        os.chown(temporary / f"{prefix}new", 65534, 65534)
        with scratch_directory():
            pass
        assert set(temporary.iterdir()) == expected
