"""A user's quota, from what the programs of file systems print."""

from pathlib import Path

import pytest

from harness.files import quota
from harness.files.quota import Quota, parse, read_quota

LUSTRE = """     /lustre/home
                 41943040* 40000000 50000000 6d23h59m41s  182000       0  200000       -
"""
NFS = """Disk quotas for user me (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
other:/scratch   10       20      30      0       1       2       3       0
server:/home     [1000000] 0      50000000 0      61204   0       0       0
"""


def test_lustre() -> None:
    """A long name has a line of its own, and a star marks what is over."""
    found = parse(LUSTRE)
    assert found == Quota(42.94967296, 51.2, 182_000, 200_000)
    assert str(found) == "you use 42.9 of 51.2 GB and 182,000 of 200,000 files there"
    assert found.is_nearly_full


def test_the_line_of_the_folders_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other file systems' quotas are not meant."""
    program = tmp_path / "quota"
    program.write_text(f"#!/bin/sh\n/bin/cat <<'E'\n{NFS}E\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(quota, "mount_of", lambda _: ("server:/home", "/home"))
    found = read_quota(tmp_path)
    assert str(found) == "you use 1.0 of 51.2 GB and 61,204 files there"
    assert found
    assert not found.is_nearly_full
    monkeypatch.setattr(quota, "mount_of", lambda _: ("/dev/sda", "/"))
    assert read_quota(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "Disk quotas for user me (uid 0): none", "/home 1 0 0 - 5 0 0 -", "/home - - -"]
)
def test_no_quota(text: str) -> None:
    """No limit, no program, or an answer in other words."""
    assert parse(text) is None


@pytest.mark.parametrize(
    ("found", "is_nearly_full"),
    [
        (Quota(90.0, 100.0, 1, 0), False),
        (Quota(90.1, 100.0, 1, 0), True),
        (Quota(85.0, 100.0, 1, 1000), False),
        (Quota(1.0, 0.0, 901, 1000), True),
    ],
)
def test_a_quota_of_which_nine_tenths_are_used_is_nearly_full(
    found: Quota, is_nearly_full: bool
) -> None:
    """Of space or of files; a limit of 0 is none."""
    assert found.is_nearly_full is is_nearly_full
