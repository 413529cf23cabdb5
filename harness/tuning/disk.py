"""Coordinates the processes of a search through files on a shared disk.

The processes of a search create folders to agree, for example, on which worker trains a trial: if
several processes try to create the same folder, exactly one succeeds. A process writes a folder
with its content under a temporary name, then renames the folder. rename(2) never replaces a
non-empty folder, so the rename fails in all processes but one. After an I/O error, only the
folder's content shows which process created the folder.
"""

import errno
import json
import logging
import shutil
import time
import uuid
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.system.console import log
from harness.system.files import names_in, read_if_there, replace_file, sync_entry
from harness.system.lenient_json import parse_json
from harness.system.processes import StopRequest

POLL_S = 0.2  # time between two checks for a signal
TAKEN = (errno.EEXIST, errno.ENOTEMPTY)  # errors of `rename` if the folder already exists


def make_once(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Create a folder with its content; return False if the folder already exists.

    Args:
        folder: the new folder; its parent must exist.
        files: the name and the content of each file. At least one file is required: if the new
            folder were empty, a second process could replace it.

    Raises:
        OSError: if the disk fails; even after this error, the new folder may exist.
    """
    temporary = folder.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir()
        for name, content in files.items():
            replace_file(temporary / name, content)
        temporary.rename(folder)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_entry(folder)
    return True


class Record(BaseModel):
    """The content of a JSON file in a sweep's folder; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @classmethod
    def of(cls, content: object) -> Self | None:
        """Make a record from a file's content; return None if the content is missing or invalid."""
        try:
            return cls.model_validate(content)
        except ValidationError:
            return None


def to_bytes(record: Record) -> bytes:
    """Return a record as a line of JSON."""
    content = record.model_dump(exclude_defaults=True)
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Disk:
    """Reads and writes records in a sweep's folder; the methods raise OSError if the disk fails."""

    def __init__(self, folder: Path, stop: StopRequest | None = None) -> None:
        """Set the sweep's folder, and the `StopRequest` whose signals interrupt every `sleep`."""
        self.folder, self.stop = folder, stop
        self._fails = False

    async def read(self, kind: type[R], path: str) -> R | None:
        """Read a record; return None if the file is missing or invalid."""
        content = read_if_there(self.folder / path)
        return kind.of(parse_json(content)) if content else None

    async def names(self, path: str) -> list[str]:
        """List the names in a folder; a shared disk may not list the newest names yet."""
        return names_in(self.folder / path)

    async def make(self, path: str, file: str, record: Record) -> bool:
        """Create a folder with one file; return False if the folder already exists."""
        return make_once(self.folder / path, {file: to_bytes(record)})

    async def write(self, path: str, record: Record) -> None:
        """Write a file, or replace the file if it exists."""
        replace_file(self.folder / path, to_bytes(record), synced=False)

    async def sleep(self, time_s: float, error: OSError | None = None) -> None:
        """Wait for `time_s`; log `error`, unless the previous call had an error too.

        Raises:
            Interrupted: after a signal.
        """
        if error and not self._fails:
            log(logging.WARNING, f"{error}; trying again")
        self._fails = error is not None
        end_s = time.monotonic() + time_s
        while (left_s := end_s - time.monotonic()) > 0:
            if self.stop:
                self.stop.check()
            time.sleep(min(left_s, POLL_S))


def execute(course: Coroutine[Any, Any, T]) -> T:
    """Execute a coroutine that awaits only methods of a `Disk`; return the coroutine's result."""
    try:
        course.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("the coroutine awaits something that is not a method of `Disk`")
