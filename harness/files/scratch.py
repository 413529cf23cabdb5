"""Folders for temporary files, which outlive no process for long.

A killed process can't remove its folder. So each holds a lock on its folder as long as it lives,
and the next one removes the folders of this user that nobody holds.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MIN_AGE_S = 60.0  # a younger folder may be about to be locked


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A new folder below `TMPDIR` for this user alone, removed at the end."""
    prefix = f"harness-{os.getuid()}-"
    _remove_abandoned(prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as name:
        held = _lock(Path(name))
        try:
            yield Path(name)
        finally:
            if held is not None:
                os.close(held)


def _remove_abandoned(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if not is_own or time.time() - status.st_ctime < MIN_AGE_S:
                continue
            if (held := _lock(folder)) is not None:
                shutil.rmtree(folder)
                os.close(held)


def _lock(folder: Path) -> int | None:
    """A descriptor that locks the folder until it is closed, None if a living process has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # or the file system has no locks: nothing is removed there
        os.close(descriptor)
        return None
    return descriptor
