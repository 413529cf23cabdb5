"""Files that are whole or absent, and files that may be anything."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import InputError, RunError
from harness.system.files import (
    atomic_directory,
    atomic_save,
    atomic_write,
    file_system,
    make_folder,
    read_plain_file,
    replaced_directory,
    scratch_directory,
)


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize(("mode", "expected"), [(0o666, 0o644), (0o600, 0o600)])
def test_content_and_permissions(tmp_path: Path, mode: int, expected: int) -> None:
    """Text, bytes and a writing function give the same file, which replaces an open one."""
    target = tmp_path / "new/file"
    for content in ("é\n", "é\n".encode(), lambda file: file.write("é\n".encode())):
        atomic_write(target, "old", mode=0o640)
        atomic_write(target, content, mode=mode)
        assert target.read_bytes() == b"\xc3\xa9\n"
        assert target.stat().st_mode & 0o777 == expected
    assert list(target.parent.iterdir()) == [target]


def test_a_library_sees_the_suffix_of_its_file(tmp_path: Path) -> None:
    """It gets a path next to the target that ends alike, and the target is what it saved."""
    seen: list[Path] = []

    def save(path: Path) -> None:
        seen.append(path)
        path.write_text("saved")

    atomic_save(tmp_path / "model.keras", save)
    assert (seen[0].parent, seen[0].suffix) == (tmp_path, ".keras")
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a bug")])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, error: Exception) -> None:
    """Neither a refusing disk nor another error harms it, and no temporary file is left."""
    target = tmp_path / "file"
    atomic_write(target, "old")

    def fail(file: object) -> None:
        raise error

    expected = RunError if isinstance(error, OSError) else KeyError
    with pytest.raises(expected) as raised:
        atomic_write(target, fail, remedy="free space")
    if expected is RunError:
        said = f"{target}: can't be written: No space left on device; free space"
        assert str(raised.value) == said
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_complete_or_absent(tmp_path: Path) -> None:
    """It appears with all its files, never replaces one with content, and vanishes on an error."""
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


def test_what_a_kill_left_goes_a_day_later(tmp_path: Path) -> None:
    """Whatever its target was; what may still be written stays, and so does what looks alike."""
    old, new = (tmp_path / f".{letter * 32}.other.tmp" for letter in "ab")
    (mine := tmp_path / ".mine.other.tmp").mkdir()
    for folder in (old, new):
        folder.mkdir()
        (folder / "part").touch()
    for folder in (old, mine):
        os.utime(folder, (0, 0))
    with atomic_directory(target := tmp_path / "target"):
        pass
    assert {*tmp_path.iterdir()} == {new, mine, target}


def test_what_another_user_left_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group's folder it may be removable, and still be theirs."""
    (theirs := tmp_path / f".{'a' * 32}.other.tmp").mkdir()
    os.utime(theirs, (0, 0))
    monkeypatch.setattr(os, "getuid", lambda: -1)
    with atomic_directory(target := tmp_path / "target"):
        pass
    assert {*tmp_path.iterdir()} == {theirs, target}


def test_what_a_kill_moved_away_comes_back(tmp_path: Path) -> None:
    """The earlier folder stays until the new one is whole, whenever the process is killed."""
    target, left = tmp_path / "export", tmp_path / ".export.7.old"
    left.mkdir()
    (left / "a").write_text("1")
    with pytest.raises(KeyError), replaced_directory(target, lambda _: None):
        raise KeyError
    assert (target / "a").read_text() == "1"
    left.mkdir()
    with replaced_directory(target, lambda _: None) as temporary:
        (temporary / "a").write_text("2")
    assert (target / "a").read_text() == "2"
    assert [*tmp_path.iterdir()] == [target]
    (tmp_path / ".export.v2.7.old").mkdir()  # of another target
    shutil.rmtree(target)
    with replaced_directory(target, lambda _: None):
        pass
    assert (tmp_path / ".export.v2.7.old").is_dir()


def test_a_new_name_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content before its name, and the name before the write ends: a power cut keeps both."""
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        events.append("content" if path.is_file() else path.name)
        sync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    atomic_write(tmp_path / "run/result.json", "{}")
    assert events == [tmp_path.name, "content", "rename", "run"]
    events.clear()
    with atomic_directory(tmp_path / "run/model") as folder:
        (folder / "weights").write_text("1")
    assert events == ["run"]
    events.clear()
    make_folder(tmp_path / "runs/lstm/a")
    assert events == ["lstm", "runs", tmp_path.name]


def test_nothing_is_made_where_a_link_leads_nowhere(tmp_path: Path) -> None:
    """Who put the link there would choose where the folder comes to be."""
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(InputError, match="out: is a link that leads nowhere; remove it"),
        replaced_directory(link, lambda path: None),
    ):
        raise AssertionError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


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


def test_a_folder_is_private_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that is in it, in TMPDIR or where it is wanted."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for parent in (None, tmp_path):
        with scratch_directory(parent) as folder:
            assert folder.parent == tmp_path
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "file").touch()
        assert not list(tmp_path.iterdir())


def mounted(path: Path, kind: str) -> SimpleNamespace:
    return SimpleNamespace(mountpoint=str(path), fstype=kind)


def test_the_nearest_and_last_mount_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel hides what is below."""
    mounts = [mounted(Path("/"), "ext4"), *(mounted(tmp_path, kind) for kind in ("xfs", "nfs4"))]
    monkeypatch.setattr("psutil.disk_partitions", lambda **_: mounts)
    assert (file_system(tmp_path.parent), file_system(tmp_path / "below")) == ("ext4", "nfs4")
    mounts.clear()
    assert file_system(tmp_path) == "unknown"
