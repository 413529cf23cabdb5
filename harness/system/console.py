"""Prints messages, and a progress bar on a terminal.

If the output goes to a file, each message begins with its time and level. In a Slurm log the times
show when a job stalled and when it ended.
"""

import contextlib
import io
import logging
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress, TaskID

PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "harness: "}
UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
STAMPED = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
# Matches the prefix that `log` writes: `harness: ` before an error on a terminal or in a pipe, or
# date, time and level before each line in a file.
PREFIX = re.compile(r"harness: |[0-9-]{10} [0-9:]{8} [A-Z]+ ")

WORKS_ON = ContextVar("works_on", default=False)  # see `to_the_end`

# The descriptor of the original standard error: 2, or a copy of 2 while 2 is redirected.
error_descriptor = 2


class Console:
    """Shows the progress of a run on standard output, and warnings on standard error.

    The console's `with` block shows a progress bar if standard output is a terminal.
    """

    def __init__(self) -> None:
        self.silent = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Console":
        terminal = None if self.silent else rich_console(soft_wrap=True)
        if terminal and terminal.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[figures]}"),
                TimeRemainingColumn(),
                console=terminal,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def info(self, text: str) -> None:
        """Print a line to standard output."""
        if self.silent:
            return
        if self._bar:
            self._bar.console.print(text, markup=False)
        else:
            log(logging.INFO, text)

    def warning(self, text: str) -> None:
        """Print a warning to standard error."""
        if not self.silent:
            log(logging.WARNING, text)

    def advance(self, what: str, done: int, total: int, *, figures: str) -> None:
        """Update the label and position of the progress bar, and the numbers beside it."""
        if not self._bar:
            return
        if self._task is None:
            self._task = self._bar.add_task(what, total=total, figures=figures)
        self._bar.update(self._task, description=what, completed=done, total=total, figures=figures)

    def epoch(self, line: Mapping[str, Any], num_epochs: int) -> None:
        """Print the metrics of an epoch."""
        text = (
            f"epoch {line['epoch']}/{num_epochs}  loss {line['loss']:.4f}  "
            f"accuracy {line['accuracy']:.4f}"
        )
        if "val_loss" in line:
            text += f"  val_loss {line['val_loss']:.4f}  val_accuracy {line['val_accuracy']:.4f}"
        self.info(f"{text}  {line['epoch_s']:.1f} s  {line['reviews_per_s']:.0f} reviews/s")


def quoted(path: Path | str) -> str:
    """Quote a path for a command that the user pastes into a shell."""
    return shlex.quote(str(path))


def printable(text: str) -> str:
    """Replace each character that would control a terminal; ESC becomes the text `\\x1b`.

    Four kinds of characters are replaced: control characters (but not tabs and newlines), Unicode's
    separators of lines and paragraphs, marks that change the direction of text, and lone
    surrogates, which can't be encoded.
    """
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def take_any_text() -> None:
    """Let standard output print an escape, such as `\\u2603`, for a character it can't encode."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def settle_output() -> None:
    """Write all buffered output, or discard it if that fails; call this before the process ends.

    Otherwise Python's flush at exit could fail, which replaces the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _discard(stream)


def _discard(stream: TextIO) -> None:
    """Empty the buffer of a stream that can't be written. Otherwise each later flush would fail."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as null:
        descriptor = stream.fileno()
        kept = os.dup(descriptor)
        os.dup2(null.fileno(), descriptor)
        try:
            stream.flush()
        finally:
            os.dup2(kept, descriptor)
            os.close(kept)


def echo(text: str = "", *, err: bool = False, end: str = "\n") -> None:
    """Print text, and escape its control characters.

    All text that a command prints for users goes through `echo`, `log` or `rich_console`.

    Raises:
        SystemExit: (code 0) if the program that reads the output, such as `head`, has ended, except
            in a function with the decorator `to_the_end()`.
    """
    stream = sys.stderr if err else sys.stdout
    try:
        print(f"{printable(text)}{end}", file=stream, end="", flush=True)
    except BrokenPipeError:
        if not err:  # like `log`, ignore that no program reads standard error
            end_output()


def end_output() -> None:
    """End the process with code 0, because the program that read its standard output has ended."""
    # Redirect standard output to /dev/null; otherwise Python's flush at exit would fail.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not WORKS_ON.get():
        raise SystemExit(0) from None


@contextlib.contextmanager
def to_the_end() -> Iterator[None]:
    """Execute the `with` block to its end, even if the program that reads the output ends first."""
    token = WORKS_ON.set(True)
    try:
        yield
    finally:
        WORKS_ON.reset(token)


def rich_console(**options: Any) -> "RichConsole":
    """Return a Rich console that escapes control characters in text."""
    from rich.console import Console as RichConsole
    from rich.segment import Segment

    class Printable(RichConsole):
        # Rich calls this method if the program that reads the output has ended. Rich's own version
        # ends the process with code 1.
        def on_broken_pipe(self) -> None:
            end_output()

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text = segment.text if segment.control else printable(segment.text)
                yield Segment(text, segment.style, segment.control)

    return Printable(**{"highlight": False, "emoji": False, **options})


def log(level: int, text: str) -> None:
    """Write a line: information to standard output, warnings and errors to standard error.

    In a file, such as a job's log, the line begins with date, time and level. On a terminal or in
    a pipe, a warning begins with `warning: `, an error with `harness: `.

    Args:
        level: a level of the `logging` module.
    """
    LOGGER.log(level, "%s", text)


def log_last_error(text: str) -> None:
    """Write an error line without `sys.stderr`, because another thread may hold its lock."""
    record = LOGGER.makeRecord(LOGGER.name, logging.ERROR, "", 0, printable(text), (), None)
    with contextlib.suppress(OSError):
        os.write(error_descriptor, f"{_line(record, error_descriptor)}\n".encode())


def is_error(line: str) -> bool:
    """Whether a line of a log, or of a command's output, reports an error."""
    prefix = PREFIX.match(line.strip())
    return prefix is not None and prefix[0].split()[-1] in ("harness:", "ERROR")


def strip_prefix(line: str) -> str:
    """Remove `harness: `, or the date, time and level, from the beginning of a line."""
    line = line.strip()
    prefix = PREFIX.match(line)
    return line[prefix.end() :] if prefix else line


def _goes_to_file(stream: TextIO | int) -> bool:
    # Under srun the stream is a pipe, although srun writes the output to the job's log. Therefore
    # the job scripts set HARNESS_LOG, which tells this process that the output goes to a log file.
    if "HARNESS_LOG" in os.environ:
        return True
    try:
        descriptor = stream if isinstance(stream, int) else stream.fileno()
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except (OSError, ValueError):  # the stream is closed or has no file descriptor
        return False


def _line(record: logging.LogRecord, stream: TextIO | int) -> str:
    if _goes_to_file(stream):
        return STAMPED.format(record)
    return PREFIXES.get(record.levelno, "") + record.getMessage()


class _LineHandler(logging.Handler):
    """Writes to the current `sys.stdout` or `sys.stderr`, and flushes every line."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        line = _line(record, stream)
        # If the log's disk is full, the run continues, because its files may be on another disk.
        try:
            stream.write(f"{line}\n")
            stream.flush()
        except (OSError, ValueError):
            _discard(stream)


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True


LOGGER = logging.getLogger("harness")
LOGGER.addFilter(_make_printable)  # escapes the text for all handlers
LOGGER.addHandler(_LineHandler())
LOGGER.setLevel(logging.INFO)
LOGGER.propagate = False  # handlers of TensorFlow and Keras would print the lines twice
