"""Folders for temporary files."""

from pathlib import Path

import pytest

from harness.system.scratch import scratch_directory


def test_a_folder_is_private_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that is in it, in TMPDIR or where it is wanted."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for parent in (None, tmp_path):
        with scratch_directory(parent) as folder:
            assert folder.parent == tmp_path
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "file").touch()
        assert not list(tmp_path.iterdir())
