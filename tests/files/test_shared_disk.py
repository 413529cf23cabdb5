"""What is known of the file system that a folder is on."""

import os
from pathlib import Path

import pytest

from harness.files import shared_disk
from harness.files.shared_disk import file_system, is_network


def test_a_kind_with_any_name_hides_no_other(tmp_path: Path) -> None:
    """Its path may be no UTF-8 and hold what splits lines elsewhere; any user may make one."""
    table = tmp_path / "mounts"
    names = [b"caf\xe9", "line\u2028separator".encode(), b"form\x0cfeed", rb"a\040\011\012\134011"]
    lines = [
        b"server:/ %s/%s nfs%d rw 0 0" % (os.fsencode(tmp_path), name, n)
        for n, name in enumerate(names)
    ]
    table.write_bytes(b"\n".join([b"/dev/sda / ext4 rw 0 0", *lines, b""]))
    assert file_system(tmp_path, table) == "ext4"
    for number, name in enumerate(names):
        path = tmp_path / os.fsdecode(name.replace(rb"\040\011\012\134", b" \t\n\\"))
        assert file_system(path / "below", table) == f"nfs{number}"


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
    table, read = tmp_path / "mounts", file_system
    table.write_text(f"device / {kind} rw 0 0\n")
    monkeypatch.setattr(shared_disk, "file_system", lambda path: read(path, table))
    assert is_network(tmp_path) is network
