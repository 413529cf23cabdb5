"""What is removed from a node's disk after a week, and what stays."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.files.atomic_file import atomic_directory
from harness.files.scratch import lock_folder
from harness.node_disk.use import (
    MARK,
    MAX_UNUSED_S,
    environments,
    is_in_use,
    mark_used,
    remove_unused,
    staged_data,
)
from tests.conftest import PROJECT, Harness

HOLD = """
import sys
from harness.node_disk.use import hold_own
hold_own({"HARNESS_DATA": sys.argv[2]}, sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""
AS_ANOTHER = HOLD.replace("import sys", "import os, sys; os.getuid = lambda: -1", 1)
BEFORE = time.time() - MAX_UNUSED_S - 60


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A staged dataset that nobody has used for more than a week."""
    folder = staged_data(tmp_path)
    folder.mkdir()
    (folder / "words.txt").touch()
    make_old(folder)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """An environment that nobody has used for more than a week."""
    folder = environments(tmp_path) / "0123456789abcdef"
    (folder / "bin").mkdir(parents=True)
    make_old(folder)
    return folder


@pytest.fixture
def holder(environment: Path, data: Path) -> Iterator[None]:
    """A process that uses both."""
    with used(environment, data):
        yield


@contextlib.contextmanager
def used(environment: Path, data: Path, script: str = HOLD) -> Iterator[None]:
    """Let a process use both, until the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", script, environment, data],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        yield


def make_old(folder: Path) -> None:
    mark_used(folder)
    os.utime(folder / MARK, (BEFORE, BEFORE))


def test_what_nobody_used_for_a_week_is_removed(
    tmp_path: Path, data: Path, environment: Path
) -> None:
    """Both kinds, and nothing is left of them."""
    assert remove_unused(tmp_path) == [data, environment]
    assert list(tmp_path.iterdir()) == [environments(tmp_path)]


def test_what_is_in_use_stays(tmp_path: Path, data: Path, environment: Path, holder: None) -> None:
    """A process that lives for more than a week keeps what it uses."""
    for folder in (data, environment):
        os.utime(folder / MARK, (BEFORE, BEFORE))
    assert remove_unused(tmp_path) == []


def test_use_is_noted_by_each_process(
    tmp_path: Path, data: Path, environment: Path, holder: None
) -> None:
    """Holding a folder marks it, without a change of its own time, which its readers watch."""
    assert time.time() - (data / MARK).stat().st_mtime < 60
    before = data.stat()
    assert mark_used(data)
    assert data.stat() == before
    assert remove_unused(tmp_path) == []


def test_a_folder_without_a_mark_counts_by_its_own_time(tmp_path: Path, data: Path) -> None:
    """As those of an earlier version do."""
    (data / MARK).unlink()
    assert remove_unused(tmp_path) == []
    os.utime(data, (BEFORE, BEFORE))
    assert remove_unused(tmp_path) == [data]


def test_a_named_datasets_copy_is_removed_too(tmp_path: Path, data: Path) -> None:
    """Its name goes on with a checksum of the dataset's path."""
    named = data.with_name(f"{data.name}-4294967295")
    data.rename(named)
    assert remove_unused(tmp_path) == [named]


@pytest.mark.parametrize("end", ["", "-4294967295"])
def test_a_copy_that_a_killed_process_began_is_removed_too(tmp_path: Path, end: str) -> None:
    """Once it is a week old; until then somebody may be making it."""
    with (
        contextlib.suppress(KeyboardInterrupt),
        atomic_directory(staged_data(tmp_path).with_name(f"{staged_data(tmp_path).name}{end}")),
    ):
        (begun,) = tmp_path.iterdir()
        assert remove_unused(tmp_path) == []
        os.utime(begun, (BEFORE, BEFORE))
        assert remove_unused(tmp_path) == [begun]
        raise KeyboardInterrupt


def test_nothing_is_removed_that_is_not_ours(
    tmp_path: Path, data: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links, files, folders of others, and what is named otherwise stay, however old."""
    target = tmp_path / "elsewhere"
    data.rename(target)
    data.symlink_to(target)
    other = tmp_path / "harness-imdb-1"
    other.mkdir()
    link = environment.parent / "link"
    link.symlink_to(target)
    file = environment.parent / "file"
    file.touch()
    for path in (other, file, link, data):
        os.utime(path, (BEFORE, BEFORE), follow_symlinks=False)
    assert remove_unused(tmp_path) == [environment]
    assert all(os.path.lexists(each) for each in (target / MARK, data, other, link, file))


def test_the_folders_of_another_user_stay(
    tmp_path: Path, data: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where one of them has taken our names."""
    ours = os.getuid()
    for folder in (data, environments(tmp_path)):
        folder.rename(folder.with_name(folder.name.replace(f"-{ours}", f"-{ours + 1}")))
    monkeypatch.setattr("os.getuid", lambda: ours + 1)
    assert remove_unused(tmp_path) == []


def test_a_marked_folder_that_goes_meanwhile_is_told(tmp_path: Path, data: Path) -> None:
    """So that it is made again."""
    assert remove_unused(tmp_path) == [data]
    assert not mark_used(data)


def test_the_folder_of_another_user_is_held_while_it_is_used(tmp_path: Path, data: Path) -> None:
    """Its owner neither replaces nor removes it meanwhile."""
    with used(tmp_path, data, AS_ANOTHER):
        assert is_in_use(data)
    assert not is_in_use(data)


@pytest.mark.parametrize("way", ["lock", "fifo"])
def test_nobody_else_can_let_a_command_wait(tmp_path: Path, data: Path, way: str) -> None:
    """Neither by a lock on a folder of theirs that it uses, nor by a FIFO in the mark's place."""
    if way == "lock":
        held = lock_folder(data)
        script = AS_ANOTHER
    else:
        held, script = None, HOLD
        (data / MARK).unlink()
        os.mkfifo(data / MARK)
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path, data],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=PROJECT,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"held\n")
    if held is not None:
        os.close(held)


def test_data_that_can_not_be_looked_at_stop_no_command(harness: Harness) -> None:
    """Those that read them refuse them; the others have nothing to do with them."""
    harness.environment["HARNESS_DATA"] = "x" * 5000
    done = harness.run_here("status")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
