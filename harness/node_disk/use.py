"""Who uses a folder on a node's own disk, and the removal of those that nobody has used for a week.

Such a folder is a staged dataset or an unpacked environment. Each process that uses it marks it and
holds a lock on it as long as it lives.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from harness.files.scratch import lock_folder, own_prefix

MARK = ".last-used"  # its time of change; the folder's own would tell readers of a change in it
MAX_UNUSED_S = 7 * 86_400.0

_held: dict[Path, int] = {}  # descriptors that stay open until the process ends


def staged_data(scratch: Path) -> Path:
    """The folder of this user's dataset on a node's disk, as the job scripts name it.

    That of a dataset which `HARNESS_DATA` names has a checksum of its path behind this name.
    """
    return scratch / f"harness-imdb-{os.getuid()}"


def environments(scratch: Path) -> Path:
    """The folder of this user's unpacked environments on a node's disk."""
    return scratch / f"harness-env-{os.getuid()}"


def mark_used(folder: Path) -> bool:
    """Note that a folder is used now; False if it is not there.

    It waits for a removal that has begun, after which the folder is gone.
    """
    try:
        descriptor = _open(folder)
    except OSError:
        return False
    try:
        with contextlib.suppress(OSError):  # no locks there, so nothing is removed there
            _hold(descriptor)
        _touch(descriptor)
        return folder.is_dir()
    finally:
        os.close(descriptor)


def is_in_use(folder: Path) -> bool:
    """Whether a living process holds a folder."""
    with contextlib.suppress(OSError):
        if (held := lock_folder(folder)) is None:
            return True
        os.close(held)
    return False


def hold_own(environment: Mapping[str, str] = os.environ, prefix: str = sys.prefix) -> None:
    """Keep the marked folders that this process uses, its environment and its data, from removal.

    They are held until the process ends.
    """
    for name in (prefix, environment.get("HARNESS_DATA", "")):
        if name:
            hold(Path(name))


def hold(folder: Path) -> None:
    """Keep a folder, if it is marked, from removal and from other data until the process ends."""
    with contextlib.suppress(OSError):  # what can't be entered is refused where it is read
        if (folder / MARK).exists():
            earlier, descriptor = _held.get(folder), _open(folder)
            _held[folder] = descriptor
            _hold(descriptor)
            _touch(descriptor)
            if earlier is not None:  # perhaps of a folder that has been replaced since
                os.close(earlier)


def remove_unused(scratch: Path) -> list[Path]:
    """Remove this user's folders on a node's disk that nobody has used for long; returns them.

    What a living process holds, links, and what belongs to others stay.
    """
    return [each for each in _candidates(scratch) if _remove(each, scratch)]


def _candidates(scratch: Path) -> Iterator[Path]:
    data, folder = staged_data(scratch), environments(scratch)
    yield data
    # The last two are copies that a killed process has begun: `atomic_directory` names them so.
    for name in (f"{data.name}-*", f".*.{data.name}.tmp", f".*.{data.name}-*.tmp"):
        with contextlib.suppress(OSError):
            yield from sorted(scratch.glob(name))
    with contextlib.suppress(OSError):
        if _is_own_folder(folder):
            yield from sorted(folder.iterdir())


def _remove(folder: Path, scratch: Path) -> bool:
    with contextlib.suppress(OSError):
        if not _is_own_folder(folder) or _unused_s(folder) <= MAX_UNUSED_S:
            return False
        if (held := lock_folder(folder)) is None:
            return False
        try:
            # It may have been marked, or removed, before it was locked.
            is_same = os.path.samestat(folder.lstat(), os.fstat(held))
            if _unused_s(folder) <= MAX_UNUSED_S or not is_same:
                return False
            # Under this name a later process removes it if this one is killed.
            doomed = scratch / f"{own_prefix()}{uuid.uuid4().hex}"
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            return True
        finally:
            os.close(held)
    return False


def _is_own_folder(folder: Path) -> bool:
    status = folder.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _unused_s(folder: Path) -> float:
    mark = folder / MARK
    try:
        status = mark.lstat()
    except FileNotFoundError:  # of an earlier version, or killed before it was marked
        status = folder.lstat()
    return time.time() - status.st_mtime


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _hold(descriptor: int) -> None:
    """Hold a folder, and wait for that only where it is this user's: others could never let go.

    Raises:
        OSError: if its file system has no locks, or another user's folder can't be held now.
    """
    is_own = os.fstat(descriptor).st_uid == os.getuid()
    fcntl.flock(descriptor, fcntl.LOCK_SH | (0 if is_own else fcntl.LOCK_NB))


def _touch(descriptor: int) -> None:
    """Set the time of the mark in an open folder; a mark of somebody else's is left alone."""
    # Opening a FIFO would wait for a reader.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        mark = os.open(MARK, flags, 0o600, dir_fd=descriptor)
        os.utime(mark)
        os.close(mark)
