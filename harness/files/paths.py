"""The folders for files that can be made again."""

import os
from pathlib import Path

from harness.ownership import others_can_write


def cache_folder() -> Path:
    """The user's cache, for datasets and more; it may be removed at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def private_cache(name: str) -> Path | None:
    """A folder of the cache for code that is run, None if others could put code into it."""
    top = cache_folder()
    folder = top / name
    try:
        top.mkdir(mode=0o700, parents=True, exist_ok=True)
        if others_can_write(top.stat()):  # it was made by the umask
            top.chmod(0o700)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        # Who can write to a folder above could put another one in this one's place.
        if any(others_can_write(each.stat()) for each in folder.absolute().parents):
            return None
    except OSError:
        return None
    return folder if status.st_uid == os.getuid() and status.st_mode & 0o077 == 0 else None
