"""Executes the operations that the generators of `harness.tuning.protocol` yield.

The processes of a search coordinate only through folders that exactly one process can create. A
process writes a folder with its content under a temporary name, then renames the folder. rename(2)
never replaces a non-empty folder, so the rename fails in all processes but one. After an I/O error
only the folder's content shows which process has created the folder.
"""

import errno
import json
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.errors import DiskError
from harness.system.console import log
from harness.system.files import (
    names_in,
    owner_name,
    read_if_there,
    replace_file,
    sync_entry,
    write_refusal,
)
from harness.system.lenient_json import parse_json
from harness.system.processes import StopRequest
from harness.tuning.protocol import (
    STOP,
    Course,
    Make,
    Names,
    Operation,
    Read,
    Record,
    Sleep,
    Stop,
    View,
    Write,
    change_stop,
)

POLL_S = 0.2  # time between two checks for a signal
TAKEN = (errno.EEXIST, errno.ENOTEMPTY)  # errors of `rename` if the folder already exists


def make_once(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Create a folder with its content; return False if another process has created it.

    Args:
        folder: the new folder; its parent must exist.
        files: the name and the content of each file; at least one, because the rename by a second
            process would replace an empty folder.

    Raises:
        OSError: if the disk fails; even then the folder may have been created.
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


class Disk:
    """Executes generators of operations in the folder of a sweep."""

    def __init__(self, folder: Path, stop: StopRequest | None = None) -> None:
        """Set the sweep's folder, and the `StopRequest` whose signals interrupt every `Sleep`."""
        self.folder, self.stop = folder, stop
        self._fails = False

    def run(self, course: Course, act: Callable[[Any], Any] | None = None) -> Any:
        """Execute the operations that a generator yields; return the generator's result.

        Args:
            course: the generator, which yields operations and receives their results.
            act: the function that executes `Train`; `run` executes all other operations.

        Raises:
            Interrupted: after a signal.
            OSError, RunError, InputError: if an operation fails, unless the generator handles it.
        """
        answer: Any = None
        error: Exception | None = None
        while True:
            try:
                operation = course.throw(error) if error else course.send(answer)
            except StopIteration as end:
                return end.value
            error = None
            try:
                answer = self._carry_out(operation, act)
            except Exception as failed:  # raised in the generator, which may handle the error
                error = failed

    def _carry_out(self, operation: Operation, act: Callable[[Any], Any] | None) -> Any:
        match operation:
            case Read(path):
                content = read_if_there(self.folder / path)
                return None if content is None else parse_json(content) or None
            case Names(path):
                return names_in(self.folder / path)
            case Make(path, file, record):
                return make_once(self.folder / path, {file: to_bytes(record)})
            case Write(path, record):
                return replace_file(self.folder / path, to_bytes(record), synced=False)
            case Sleep(time_s, failed):
                return self._sleep(time_s, failed)
        return act(operation) if act else None

    def _sleep(self, time_s: float, failed: OSError | None) -> None:
        if failed and not self._fails:
            log(logging.WARNING, f"{failed}; trying again")
        self._fails = failed is not None
        end_s = time.monotonic() + time_s
        while (left_s := end_s - time.monotonic()) > 0:
            if self.stop:
                self.stop.check()
            time.sleep(min(left_s, POLL_S))


def to_bytes(record: Record) -> bytes:
    """Return a record as a line of JSON."""
    content = record.model_dump(exclude_defaults=True)
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def stop_now(reason: str = "") -> Stop:
    """Make a `Stop` by the current user; the reason is empty unless the search has failed."""
    by, at = f"{owner_name(os.getuid())} on {socket.gethostname()}", datetime.now().astimezone()
    return Stop(by=by, at=at.isoformat(timespec="seconds"), reason=reason)


def stop_search_in(folder: Path) -> None:
    """Cancel a sweep's search; `harness resume` can continue it.

    Raises:
        DiskError: if `stop.json` can't be written.
    """
    try:
        Disk(folder).run(change_stop(View(), stop_now()))
    except OSError as error:
        raise DiskError(write_refusal(folder / STOP, error, "try again")) from None
