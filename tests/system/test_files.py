"""Files and folders are complete or absent, and only plain files are read."""

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import InputError, RunError
from harness.system.files import (
    ABANDONED_S,
    SCRATCH,
    atomic_directory,
    atomic_write,
    distrust,
    owner_name,
    read_plain_file,
    replaced_directory,
    scratch_directory,
)


def test_content_and_permissions(tmp_path: Path) -> None:
    """Text, bytes and a function write the same file with the permissions of `mode`."""
    target = tmp_path / "new/file"
    for content in ("é\n", "é\n".encode(), lambda file: file.write("é\n".encode())):
        for mode in (0o600, 0o400):
            atomic_write(target, content, mode=mode)
            assert target.read_bytes() == b"\xc3\xa9\n"
            assert target.stat().st_mode & 0o777 == mode
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """No temporary file stays, and only a disk error becomes one line with a remedy."""
    target, full = tmp_path / "file", Path("/dev/full")
    atomic_write(target, "old")
    with pytest.raises(RunError) as raised:
        atomic_write(target, lambda _: full.write_text("new"), remedy="free space")
    assert str(raised.value) == f"{target}: can't be written: No space left on device; free space"
    with pytest.raises(KeyError):
        atomic_write(target, lambda _: os.environ["BUG"], remedy="free space")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_complete_or_absent(tmp_path: Path) -> None:
    """The folder appears with all its files or not at all, and replaces no folder with content."""
    target = tmp_path / "deep/folder"
    with atomic_directory(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    with pytest.raises(OSError, match="not empty"), atomic_directory(target) as temporary:
        (temporary / "b").touch()
    with pytest.raises(KeyError), atomic_directory(tmp_path / "deep/other"):
        raise KeyError
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "deep", "deep/folder", "deep/folder/a",
    ]  # fmt: skip


def test_a_folder_is_replaced_when_the_new_one_is_complete(tmp_path: Path) -> None:
    """An error leaves the existing folder as it was."""
    (target := tmp_path / "folder").mkdir()
    (target / "a").write_text("1")
    with pytest.raises(KeyError), replaced_directory(target, lambda _: None):
        raise KeyError
    with (
        pytest.raises(FileNotFoundError),  # the new folder disappears after the old one moved
        replaced_directory(target, lambda _: shutil.rmtree(temporary)) as temporary,
    ):
        pass
    assert (target / "a").read_text() == "1"
    with replaced_directory(target, lambda _: None) as temporary:
        (temporary / "a").write_text("2")
    assert (target / "a").read_text() == "2"
    assert [*tmp_path.iterdir()] == [target]


def test_folders_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New folders, folders in use and folders of other programs or nodes stay; so do links."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    of_node = f"{SCRATCH}killed_1".replace(os.uname().nodename, "other-node")
    names = [f"{SCRATCH}killed_1", f"{SCRATCH}of-a-user", of_node, "harness-venv", "target"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / f"{SCRATCH}link0000").symlink_to("target")
    with scratch_directory() as used:
        for path in tmp_path.iterdir():
            os.utime(path, (1, 1), follow_symlinks=False)
        with scratch_directory() as other, scratch_directory() as new:
            assert all(each.is_dir() for each in (used, other, new))
    assert {path.name for path in tmp_path.iterdir()} == {*names[1:], f"{SCRATCH}link0000"}
    assert ABANDONED_S >= 60  # a new folder is not locked at once


def test_a_broken_link_is_not_replaced(tmp_path: Path) -> None:
    """The user who made the link must not decide where the folder is written."""
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(InputError, match="out: is a broken link; remove the link"),
        replaced_directory(link, lambda path: None),
    ):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_a_plain_file_is_read(tmp_path: Path) -> None:
    """A link to a plain file is followed; a FIFO, a device, a folder or a huge file is refused."""
    (tmp_path / "file").write_bytes(b"a\0b" * 1000)
    (tmp_path / "link").symlink_to("file")
    assert read_plain_file(tmp_path / "link", limit=3000) == b"a\0b" * 1000
    with pytest.raises(OSError, match="it has over 2,999 bytes"):
        read_plain_file(tmp_path / "link", limit=2999)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="plain file"):
            read_plain_file(path)


@pytest.mark.parametrize(
    ("mode", "group", "members", "reason"),
    [
        (0o664, "", [], ""),  # the owner's private group
        (0o664, "", ["ann"], "others can write to it"),
        (0o664, "students", [], "others can write to it"),
        (0o646, "", [], "others can write to it"),
        (0o1777, "", [], ""),  # a sticky folder
    ],
)
def test_a_path_is_trusted_if_no_other_user_can_write_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, group: str, members: list[str],
    reason: str,
) -> None:  # fmt: skip
    """Members of a group with write permission count as others, except the owner."""
    name = group or owner_name(os.getuid())
    entry = SimpleNamespace(gr_name=name, gr_mem=members)
    monkeypatch.setattr("grp.getgrgid", lambda _: entry)
    path = tmp_path / "path"
    path.mkdir() if mode & 0o1000 else path.touch()
    path.chmod(mode)
    assert distrust(path) == reason
