"""The folder of a sweep on a disk: names that are made once, and the operations of a course.

A name that is made once is the only way in which processes of a search agree on anything. A folder
is prepared with its content under a temporary name and renamed onto its own. rename(2) never
replaces a folder that holds something: of several processes exactly one makes the name, and all
others are told that it is there. After an error nobody knows who made it; the content says so.
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
from harness.system.files import SharedDisk, owner_name, sync_entry, write_refusal
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

POLL_S = 0.2  # between two looks for a signal
TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


def make_once(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Make a folder with its content, whose parent is there; False if another process made it.

    Args:
        files: at least one, by name.

    Raises:
        OSError: if the disk fails. The folder may be made then.
    """
    temporary = folder.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir()
        for name, content in files.items():
            SharedDisk().write(temporary / name, content, synced=True)
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
    """A sweep's folder as a process reads and writes it."""

    def __init__(self, folder: Path, stop: StopRequest | None = None) -> None:
        """Take a folder; `stop` ends a wait."""
        self.folder, self.stop, self.disk = folder, stop, SharedDisk()
        self._fails = False

    def run(self, course: Course, act: Callable[[Any], Any] | None = None) -> Any:
        """Carry out a course; returns what it does.

        Args:
            act: carries out what is no operation on the folder, such as to train.

        Raises:
            Interrupted: if a signal comes.
            OSError, RunError, InputError: where the course lets them pass.
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
            except Exception as failed:  # the course decides
                error = failed

    def _carry_out(self, operation: Operation, act: Callable[[Any], Any] | None) -> Any:
        match operation:
            case Read(path):
                content = self.disk.read(self.folder / path)
                return None if content is None else parse_json(content) or None
            case Names(path):
                return self.disk.names(self.folder / path)
            case Make(path, file, record):
                return make_once(self.folder / path, {file: to_bytes(record)})
            case Write(path, record):
                return self.disk.write(self.folder / path, to_bytes(record))
            case Sleep(time_s, failed):
                return self._sleep(time_s, failed)
        return act(operation) if act else None

    def _sleep(self, time_s: float, failed: OSError | None) -> None:
        if failed and not self._fails:
            log(logging.WARNING, f"{failed}; tried again")
        self._fails = failed is not None
        end_s = time.monotonic() + time_s
        while (left_s := end_s - time.monotonic()) > 0:
            if self.stop:
                self.stop.check()
            time.sleep(min(left_s, POLL_S))


def to_bytes(record: Record) -> bytes:
    """A record as a file holds it."""
    content = record.model_dump(exclude_defaults=True)
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def stop_now(reason: str = "") -> Stop:
    """That this user stops a search now; without a reason, it is cancelled."""
    by, at = f"{owner_name(os.getuid())} on {socket.gethostname()}", datetime.now().astimezone()
    return Stop(by=by, at=at.isoformat(timespec="seconds"), reason=reason)


def stop_search_in(folder: Path) -> None:
    """Stop the search of a sweep's folder; it stays so until a person goes on with it.

    Raises:
        DiskError: if the disk refuses.
    """
    try:
        Disk(folder).run(change_stop(View(), stop_now()))
    except OSError as error:
        raise DiskError(write_refusal(folder / STOP, error, "try again")) from None
