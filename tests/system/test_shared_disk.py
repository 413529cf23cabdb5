"""What is known of the file system that a folder is on."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.system.shared_disk import file_system


def mounted(path: Path, kind: str) -> SimpleNamespace:
    return SimpleNamespace(mountpoint=str(path), fstype=kind)


def test_the_nearest_and_last_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel hides what is below."""
    mounts = [mounted(Path("/"), "ext4"), *(mounted(tmp_path, kind) for kind in ("xfs", "nfs4"))]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: mounts)
    assert (file_system(tmp_path.parent), file_system(tmp_path / "below")) == ("ext4", "nfs4")
    mounts.clear()
    assert file_system(tmp_path) == "unknown"
