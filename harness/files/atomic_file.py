"""Files that are whole or absent, never half-written."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from harness.errors import RunError


def atomic_write(target: Path, fill: Callable[[BinaryIO], object], mode: int = 0o666) -> None:
    """Write a file beside and rename it, whoever may write here; `fill` gets it open for bytes.

    Raises:
        RunError: if the disk refuses.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(exist_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise RunError(write_refusal(target, error)) from None


def write_refusal(path: Path, error: OSError) -> str:
    """The message for a file that the system refuses to write."""
    return f"{path}: can't be written: {error.strerror or error}; free or choose another --runs"
