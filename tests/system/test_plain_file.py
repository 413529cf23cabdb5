"""Plain files, and what stands in their place."""

import os
from pathlib import Path

import pytest

from harness.system.plain_file import read_plain_file


def test_a_plain_file_is_read_through_links(tmp_path: Path) -> None:
    """All its bytes, also where a link names it."""
    (tmp_path / "file").write_bytes(b"a\0b" * 1000)
    (tmp_path / "link").symlink_to("file")
    assert read_plain_file(tmp_path / "link", limit=3000) == b"a\0b" * 1000


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    """A FIFO without a writer, an endless device and a folder."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="plain file"):
            read_plain_file(path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A sparse file of a terabyte takes no memory."""
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="it has over 256,000,000 bytes"):
        read_plain_file(tmp_path / "huge")
