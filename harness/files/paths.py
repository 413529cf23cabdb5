"""The folders for files that can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache, for datasets and more; it may be removed at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"


def private_cache(name: str) -> Path | None:
    """A folder of the cache for code that is run, None if others could put code into it."""
    folder = cache_folder() / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    return folder if status.st_uid == os.getuid() and status.st_mode & 0o077 == 0 else None
