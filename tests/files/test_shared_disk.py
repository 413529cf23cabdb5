"""What is known of the file system that a folder is on."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.files.shared_disk import file_system, is_network


def mounted(path: Path, kind: str) -> SimpleNamespace:
    return SimpleNamespace(mountpoint=str(path), fstype=kind)


def test_the_nearest_and_last_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel hides what is below."""
    mounts = [mounted(Path("/"), "ext4"), *(mounted(tmp_path, kind) for kind in ("xfs", "nfs4"))]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: mounts)
    assert (file_system(tmp_path.parent), file_system(tmp_path / "below")) == ("ext4", "nfs4")
    mounts.clear()
    assert file_system(tmp_path) == "unknown"


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        *((kind, False) for kind in ("ext4", "xfs", "zfs", "tmpfs", "overlay")),
        *((kind, True) for kind in ("nfs4", "lustre", "fuse.sshfs", "fuseblk", "9p")),
        *((kind, True) for kind in ("dvs", "wekafs", "panfs", "pvfs2", "gfs2", "virtiofs")),
    ],
)
def test_a_disk_is_local_only_if_it_is_known_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, network: bool
) -> None:
    """On any other a search waits for what another node may have written."""
    mounts = [mounted(Path("/"), kind)]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: mounts)
    assert is_network(tmp_path) is network
