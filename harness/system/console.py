"""What a run reports: progress bars on a terminal; anywhere else log lines with time and level.

The lines go through the standard `logging` module, so that a Slurm log shows when a job stalled.
"""

import functools
import logging
import os
import re
import stat
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress, TaskID

STAMPED = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
PREFIX = re.compile(r"harness: |[0-9-]{10} [0-9:]{8} [A-Z]+ ")  # of a message among other output


class Console:
    """Standard output for the course of a run, standard error for warnings and errors.

    A context manager: the bar is removed on the way out, whatever happens.
    """

    def __init__(self) -> None:
        self.silent = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    @functools.cached_property
    def terminal(self) -> "RichConsole":
        """Standard output; made when it is used, so that commands that only warn start fast."""
        from rich.console import Console as RichConsole

        return RichConsole(highlight=False, soft_wrap=True, emoji=False)

    def __enter__(self) -> "Console":
        if not self.silent and self.terminal.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self.terminal,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def info(self, text: str) -> None:
        """Print a line on standard output."""
        if self.silent:
            return
        if self._bar:
            self._bar.console.print(text, markup=False)
        else:
            log(logging.INFO, text)

    def warning(self, text: str) -> None:
        """Print a warning on standard error."""
        if not self.silent:
            log(logging.WARNING, text)

    def advance(self, what: str, done: int, total: int, figures: str = "") -> None:
        """Move the bar, where there is one."""
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


def log(level: int, text: str) -> None:
    """Write a line of the log: information on standard output, all else on standard error.

    A file, a job's log among them, gets date, time and level; a terminal or a pipe the text, with
    its level in front if that is a warning or an error.

    Args:
        level: of the `logging` module.
        text: one line.
    """
    stream = sys.stdout if level < logging.WARNING else sys.stderr
    record = logging.LogRecord("harness", level, "", 0, text, None, None)
    _Handler(stream).handle(record)


def strip_prefix(line: str) -> str:
    """The message of a line from a log, or from the standard error of a command of ours."""
    line = line.strip()
    prefix = PREFIX.match(line)
    return line[prefix.end() :] if prefix else line


def _is_file(stream: TextIO) -> bool:
    # Under srun it is a pipe that ends in the job's log, which our job scripts name.
    if "HARNESS_LOG" in os.environ:
        return True
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # closed, or no file at all
        return False


class _Handler(logging.StreamHandler[TextIO]):
    """Flushes each line, since a log file is read while the run goes on."""

    def format(self, record: logging.LogRecord) -> str:
        if _is_file(self.stream):
            return STAMPED.format(record)
        prefixes = {logging.WARNING: "warning: ", logging.ERROR: "harness: "}
        return prefixes.get(record.levelno, "") + record.getMessage()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of the base class
        """Go on: a full disk under the log is no reason to end a run that writes elsewhere."""
