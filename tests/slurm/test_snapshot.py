"""Snapshots of the code: what they hold of a site's settings, and whose they are."""

import os
import time
from pathlib import Path

import pytest

from harness.slurm.snapshot import snapshot_path, take_snapshot
from tests.slurm.test_submit import project

__all__ = ["project"]  # a fixture


def test_a_sites_settings_may_be_a_link(project: Path, tmp_path: Path) -> None:
    """A snapshot holds what it leads to, and nothing of a link that leads nowhere."""
    site, settings = project / "slurm/site.sh", tmp_path / "site.sh"
    site.symlink_to("../../site.sh")
    assert not os.path.lexists(take_snapshot(project, tmp_path / "runs") / "slurm/site.sh")
    for text in ("A=1\n", "A=2\n"):
        settings.write_text(text)
        snapshot = take_snapshot(project, tmp_path / "runs")
        assert (snapshot / "slurm/site.sh").read_text() == text
        assert snapshot_path(project, tmp_path / "runs") == snapshot


def test_users_who_share_runs_have_each_a_snapshot(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They trust only their own, so that one would replace the other's."""
    mine = take_snapshot(project, tmp_path / "runs")
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert snapshot_path(project, tmp_path / "runs") != mine


def test_what_a_killed_submission_left_is_removed(project: Path, tmp_path: Path) -> None:
    """Once it is a day old; another may be at work on a newer one."""
    folders = [tmp_path / f"runs/.submissions/.code-{name}.tmp" for name in ("old", "new")]
    for folder, age_s in zip(folders, (90_000, 80_000), strict=True):
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age_s,) * 2)
    take_snapshot(project, tmp_path / "runs")
    assert [folder.exists() for folder in folders] == [False, True]
