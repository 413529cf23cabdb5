"""A run's log: whole, its last lines, or followed while the run goes on."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.errors import InputError, RunError
from harness.system.files import open_plain_file
from harness.system.lenient_json import path, read_json
from harness.tracking.records import RunStatus

MAX_LINE_BYTES = 1_000_000  # a longer line is cut into several
POLL_S = 1.0
QUIET_POLLS = 3  # without a new line, after which a run that is over has said all
ASK_EVERY_S = 10.0  # the queue, which alone knows whether an interrupted run will be requeued

# What would move a terminal's cursor or change its colours.
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def log_of(status: RunStatus, *, yet_to_come: bool = False, earlier_too: bool = False) -> Path:
    """The file that a run prints into.

    Args:
        status: of the run.
        yet_to_come: it need not exist yet.
        earlier_too: where its next job has none yet, that of its last job is meant.

    Raises:
        InputError: if there is none.
    """
    if status.log and (yet_to_come or Path(status.log).exists()):
        return Path(status.log)
    earlier = path(read_json(status.folder / "state.json").get("log")) if earlier_too else None
    if earlier and os.path.exists(earlier):  # noqa: PTH110 - never raises
        return Path(earlier)
    if status.log:
        what = f"its log {status.log} is not there" if status.phase else "it has no log yet"
        note = f" ({status.note})" if status.note else ""
        raise InputError(f"run {status.run}: {what}; it is {status.state}{note}")
    if status.phase is None:
        raise InputError(f"run {status.run}: its log is not known yet; it is {status.state}")
    raise InputError(
        f"run {status.run}: has no log, it printed to the terminal where it was started; "
        f"its figures are in {status.folder / 'metrics.jsonl'}"
    )


def await_log(look: Callable[[], RunStatus], sleep: Callable[[float], None] = time.sleep) -> Path:
    """Wait until it is known where a run prints to: a job that waits may have said nothing yet.

    Raises:
        InputError: if it will print nowhere.
    """
    while True:
        status = look()
        if status.log or is_over(status) or status.phase is not None:
            return log_of(status, yet_to_come=True)
        sleep(POLL_S)


def clean(line: bytes) -> str:
    """A line as a terminal would finally show it, without control characters."""
    text = line.decode(errors="replace").rstrip("\r\n")
    text = text.rpartition("\r")[2]  # a progress bar: its last state
    return _CONTROLS.sub("", _ESCAPES.sub("", text))


class Follower:
    """Reads what was added to a log since the last time, in complete lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = 0
        self._position = 0
        self._rest = b""

    def new_lines(self, *, at_end: bool = False) -> Iterator[str]:
        """The new lines; with `at_end` also a last one without a line end.

        A file that was cut or replaced is read from its beginning. It is opened again each time,
        because only then does NFS show what another node wrote.
        """
        try:
            with open_plain_file(self.path) as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._inode or now.st_size < self._position:
                    self._inode, self._position, self._rest = now.st_ino, 0, b""
                file.seek(self._position)
                for part in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
                    self._position += len(part)
                    self._rest += part
                    if part.endswith(b"\n") or len(self._rest) >= MAX_LINE_BYTES:
                        line, self._rest = self._rest, b""
                        yield clean(line)
        except FileNotFoundError:  # the job has yet to start
            pass
        except OSError as error:
            why = error.strerror or error
            raise RunError(f"log {self.path}: can't be read: {why}") from None
        if at_end and self._rest:
            line, self._rest = self._rest, b""
            yield clean(line)


def follow(
    follower: Follower,
    look: Callable[[], RunStatus],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """The new lines of a run's log until the run is over, whose current state `look` reads."""
    while not is_over(look()):
        yield from follower.new_lines()
        sleep(POLL_S)
    num_quiet = 0  # its last lines come after its result, on a busy node some seconds
    while num_quiet < QUIET_POLLS:
        sleep(POLL_S)
        lines = list(follower.new_lines())
        num_quiet = 0 if lines else num_quiet + 1
        yield from lines
    yield from follower.new_lines(at_end=True)


def is_over(status: RunStatus) -> bool:
    """Whether nothing more can come: the run has ended and will not be requeued."""
    if status.state == "finished":
        return True
    return not status.alive and status.state != "stale" and not status.job_lives
