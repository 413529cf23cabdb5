"""Carries out on a disk what the courses of `harness.tuning.course` ask for."""

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import DiskError, InputError, Interrupted, RunError
from harness.files.atomic_file import write_refusal
from harness.files.lenient_json import parse_json
from harness.files.plain_file import is_of_disk
from harness.files.shared_disk import SharedDisk
from harness.ownership import owner_name
from harness.system.console import log
from harness.system.processes import has_died
from harness.system.signals import StopRequest
from harness.tuning.course import (
    LOCAL,
    Course,
    Make,
    Names,
    Operation,
    Read,
    Sleep,
    View,
    Write,
    next_stop,
)
from harness.tuning.names import make_once
from harness.tuning.records import PREPARED, STOPS, Attempt, Record, Stop

PATIENCE_S = 600.0  # with a file system that fails
POLL_S = 0.2  # between two looks for a signal
T = TypeVar("T")


class Disk:
    """A sweep's folder as a process reads and writes it."""

    def __init__(self, folder: Path, stop: StopRequest | None = None) -> None:
        """Take a folder; `stop` ends a wait."""
        self.folder, self.stop, self.disk = folder, stop, SharedDisk()
        self._failing_s: float | None = None  # since when the file system fails

    def run(self, course: Course, act: Callable[[Any], Any] | None = None) -> Any:
        """Carry out a course; returns what it does.

        Args:
            act: carries out what is no operation on the folder, such as to train.

        Raises:
            Interrupted: if a signal comes, or the file system fails for long.
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
                # Nobody who lists the trials sees a folder that goes away.
                files, temporary = {file: to_bytes(record)}, self.folder / PREPARED
                return make_once(self.folder / path, files, prepared_in=temporary)
            case Write(path, record):
                return self.disk.write(self.folder / path, to_bytes(record))
            case Sleep(time_s, failed):
                return self._sleep(time_s, failed)
        return act(operation) if act else None

    def _sleep(self, time_s: float, failed: OSError | None) -> None:
        now_s = time.monotonic()
        self._failing_s = (self._failing_s or now_s) if failed else None
        if self._failing_s and now_s - self._failing_s > PATIENCE_S:
            raise Interrupted(f"the file system: {failed}")
        while (left_s := now_s + time_s - time.monotonic()) > 0:
            if self.stop:
                self.stop.check()
            time.sleep(min(left_s, POLL_S))


def died(attempt: Attempt) -> bool:
    """Whether the worker of an attempt was a process of this machine that has ended."""
    return has_died(attempt.process, attempt.space)


def to_bytes(record: Record) -> bytes:
    """A record as a file holds it."""
    return json.dumps(record.content(), separators=(",", ":")).encode() + b"\n"


def patiently(read: Callable[[], T], stop: StopRequest) -> T:
    """What `read` returns; a disk that fails is waited for, as a process that starts may do.

    Raises:
        DiskError: if it fails for long.
    """
    since_s = time.monotonic()
    while True:
        try:
            return read()
        except (OSError, InputError, RunError) as error:
            if not is_of_disk(error):
                raise
            waited_s = time.monotonic() - since_s
            if waited_s > PATIENCE_S:
                raise DiskError(str(error)) from None
            if waited_s < 1:
                log(logging.WARNING, f"{error}; tried again for {PATIENCE_S:.0f} s")
        stop.check()
        time.sleep(1)


def stop_now(reason: str = "", failed: tuple[int, ...] = ()) -> Stop:
    """That this user stops a search now, or goes on with it.

    Args:
        reason: why it failed; none if it is cancelled.
        failed: its failed trials.
    """
    by, at = f"{owner_name(os.getuid())} on {socket.gethostname()}", datetime.now().astimezone()
    return Stop(by=by, at=at.isoformat(timespec="seconds"), reason=reason, failed=failed)


def stop_search_in(folder: Path) -> None:
    """Stop the search of a sweep's folder; it stays so until a person goes on with it.

    Raises:
        DiskError: if the disk refuses.
    """
    try:
        Disk(folder).run(next_stop(View(time.monotonic, LOCAL), stop_now()))
    except OSError as error:
        raise DiskError(write_refusal(folder / STOPS, error, "try again")) from None
