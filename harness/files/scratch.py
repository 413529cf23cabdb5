"""Folders for temporary files, which outlive no process for long.

A killed process can't remove its folder. So each holds a lock on its folder as long as it lives,
and the next one removes the folders of this user that nobody holds. Of several processes that make
the same thing, such a lock lets one go first.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MIN_AGE_S = 60.0  # a younger folder may be about to be locked


@contextlib.contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """A new folder below `parent`, or else `TMPDIR`, for this user alone, removed at the end."""
    parent = parent or Path(tempfile.gettempdir())
    _remove_abandoned(parent)
    with tempfile.TemporaryDirectory(
        prefix=own_prefix(), dir=parent, ignore_cleanup_errors=True
    ) as name:
        held = _lock_folder(Path(name))
        try:
            yield Path(name)
        finally:
            if held is not None:
                os.close(held)


def own_prefix() -> str:
    """What the names of this user's folders on this host begin with.

    On some network disks a lock holds on one host alone, so none removes what another one holds.
    """
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]  # short, for a socket
    return f"harness-{os.getuid()}-{host}-"


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{own_prefix()}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if not is_own or time.time() - status.st_ctime < MIN_AGE_S:
                continue
            if (held := _lock_folder(folder)) is not None:
                shutil.rmtree(folder)
                os.close(held)


def _lock_folder(folder: Path) -> int | None:
    """A descriptor that locks a folder until it is closed.

    None if a living process has locked it, or if its file system has no locks.

    Raises:
        OSError: if it is no folder, or can't be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def turn_at(path: Path) -> Iterator[bool]:
    """Wait until nobody else makes a file or folder; False where its disk has no locks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path.with_name(f".{path.name}.lock"), flags, 0o600)
    except OSError:
        yield False
        return
    alone = False
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # which a process loses when it ends
            alone = True
        yield alone
    finally:
        os.close(descriptor)
