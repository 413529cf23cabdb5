"""What is known of the file system that a folder is on."""

import os
from pathlib import Path

from harness.files.shared_disk import _mount


def test_a_mount_with_any_name_hides_no_other(tmp_path: Path) -> None:
    """Its path may be no UTF-8 and hold what splits lines elsewhere; any user may make one."""
    table = tmp_path / "mounts"
    names = [b"caf\xe9", "line\u2028separator".encode(), b"form\x0cfeed", b"with\\040space"]
    lines = [
        b"server:/%d %s/%s nfs4 rw 0 0" % (n, os.fsencode(tmp_path), name)
        for n, name in enumerate(names)
    ]
    table.write_bytes(b"\n".join([b"/dev/sda / ext4 rw 0 0", *lines, b""]))
    assert _mount(tmp_path, table) == ("/dev/sda", "/", "ext4")
    for number, name in enumerate(names):
        path = tmp_path / os.fsdecode(name.replace(b"\\040", b" "))
        assert _mount(path / "below", table) == (f"server:/{number}", str(path), "nfs4")
