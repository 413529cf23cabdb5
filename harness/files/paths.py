"""The folder for files that can be made again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache, for datasets and more; it may be removed at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness"
