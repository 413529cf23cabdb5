"""Finds a run's log, removes escape sequences from its lines, and follows new lines."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.errors import InputError, RunError
from harness.system.files import open_plain_file
from harness.system.lenient_json import read_json, text
from harness.tracking.records import RunStatus

POLL_S = 1.0  # seconds between two reads of a log
QUIET_POLLS = 3  # after this many reads without a new line, the log of an ended run is complete
ASK_EVERY_S = 10.0  # seconds between two calls of squeue, which shows whether a job is requeued

# Escape sequences by which programs move the cursor of a terminal, or set colours or titles.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?")


def log_of(status: RunStatus) -> Path:
    """Return the path of a run's log: the current job's log if it exists, else the previous job's.

    If a seed of a job with several seeds has no log yet, return the log of the job itself.

    Raises:
        InputError: if the run has no log.
    """
    earlier = text(read_json(status.folder / "state.json").get("log"))
    for log in (status.log, earlier, status.job_log):
        if log and os.path.exists(log):  # noqa: PTH110 - `Path.exists` may raise an error
            return Path(log)
    raise _without_log(status)


def _without_log(status: RunStatus) -> InputError:
    why = "the run printed to a terminal or a pipe"
    if status.log or status.phase is None:
        why = f"{status.log or 'the log file'} does not exist"
    note = f" ({status.note})" if status.note else ""
    return InputError(f"run {status.run}: has no log: {why}; the run is {status.state}{note}")


def clean(line: bytes) -> str:
    """Return the text that a terminal shows for a line of a log, without escape sequences."""
    shown = line.decode(errors="replace").rstrip("\r\n")
    shown = shown.rpartition("\r")[2]  # keep only the last state of a progress bar
    return _ESCAPES.sub("", shown)


class Follower:
    """Reads the new lines of a log."""

    def __init__(self, path: Path | None) -> None:
        self.path = path  # None if the path is not known yet
        self._inode = 0
        self._position = 0  # offset in bytes of the end of the last line that was read

    def new_lines(self, *, at_end: bool = False) -> Iterator[str]:
        """Yield the lines that were written since the last call.

        If `at_end` is true, also yield a last line without a line break.
        A truncated or replaced file is read from its beginning. Every call opens the file again,
        because otherwise NFS does not show the lines that another node wrote.

        Raises:
            RunError: if the log can't be read.
        """
        if self.path is None:
            return
        try:
            with open_plain_file(self.path) as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._inode or now.st_size < self._position:
                    self._inode, self._position = now.st_ino, 0
                file.seek(self._position)
                for line in file:
                    if not (at_end or line.endswith(b"\n")):
                        break
                    self._position += len(line)
                    yield clean(line)
        except FileNotFoundError:  # the job has not started
            pass
        except OSError as error:
            why = error.strerror or error
            raise RunError(f"log {self.path}: can't be read: {why}") from None


def follow(follower: Follower, look: Callable[[], RunStatus]) -> Iterator[str]:
    """Yield the new lines of a run's log until the run ends; `look` returns the run's status.

    Raises:
        InputError: if the run has no log and will not write one.
        RunError: if the log can't be read.
    """
    while True:
        status = look()
        if status.log:
            follower.path = Path(status.log)
        elif status.phase is not None or is_over(status):
            raise _without_log(status)
        if is_over(status):
            break
        yield from follower.new_lines()
        time.sleep(POLL_S)
    num_quiet = 0  # the last lines may follow seconds after the result
    while num_quiet < QUIET_POLLS:
        time.sleep(POLL_S)
        lines = list(follower.new_lines())
        num_quiet = 0 if lines else num_quiet + 1
        yield from lines
    yield from follower.new_lines(at_end=True)


def is_over(status: RunStatus) -> bool:
    """Whether the run has ended and will not be requeued."""
    if status.state == "finished":
        return True
    return not status.alive and status.state != "stale" and not status.job_lives
