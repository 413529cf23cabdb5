"""The folders for files that can be made again."""

import os
from pathlib import Path

from harness.ownership import others_can_write


def cache_folder() -> Path:
    """The user's cache, for datasets and more; it may be removed at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def private_cache(name: str) -> Path | None:
    """A folder of the cache for code that is run, None if others could put code into it."""
    folder = (cache_folder() / name).absolute()
    try:
        for each in (*reversed(folder.parents), folder):
            each.mkdir(mode=0o700, exist_ok=True)  # not by the umask, as parents are otherwise
        if others_can_write(folder.parent.stat()):  # made with a lax umask
            folder.parent.chmod(0o700)
        status = folder.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077 or _can_be_replaced(folder):
            return None
    except OSError:
        return None
    return folder


def _can_be_replaced(folder: Path) -> bool:
    """Whether others could put another folder in its place, by a folder above it."""
    for above in reversed(folder.parents):
        status = above.stat()
        if others_can_write(status):
            return True
        if status.st_uid == os.getuid() and not status.st_mode & 0o011:
            return False  # nobody else comes further
    return False
