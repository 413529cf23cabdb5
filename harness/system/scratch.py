"""Folders for temporary files, and turns at making what others may make at the same time."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_directory(parent: Path | None = None) -> Iterator[Path]:
    """A new folder below `parent`, or else `TMPDIR`, for this user alone, removed at the end."""
    with tempfile.TemporaryDirectory(
        prefix="harness-", dir=parent, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


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
