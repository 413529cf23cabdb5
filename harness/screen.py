"""What a run says: progress bars on a terminal, one plain line an epoch anywhere else."""

import contextlib
import functools
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class Screen:
    """Standard output for the course of a run, standard error for warnings.

    A context manager: the bar is taken away on the way out, whatever happens.
    """

    def __init__(self) -> None:
        self.silent = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    @functools.cached_property
    def console(self) -> "Console":
        """Standard output; made when it is used, for commands that only warn answer at once."""
        from rich.console import Console

        return Console(highlight=False, soft_wrap=True, emoji=False)

    def __enter__(self) -> "Screen":
        if self.console.is_terminal and not self.silent:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self.console,
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

    def say(self, text: str) -> None:
        """Print a line."""
        if self.silent:
            return
        # A full disk under the log file is no reason to end a run that writes elsewhere.
        with contextlib.suppress(OSError):
            self.console.print(text, markup=False)
            self.console.file.flush()  # a log file is read while the run goes on

    def warn(self, text: str) -> None:
        """Print a line of warning on standard error."""
        if self.silent:
            return
        print(f"warning: {text}", file=sys.stderr)  # noqa: T201

    def advance(self, what: str, done: int, total: int, figures: str = "") -> None:
        """Move the bar, where there is one."""
        if not self._bar:
            return
        if self._task is None:
            self._task = self._bar.add_task(what, total=total, figures=figures)
        self._bar.update(self._task, description=what, completed=done, total=total, figures=figures)

    def epoch(self, line: Mapping[str, Any], num_epochs: int) -> None:
        """Print an epoch's line of metrics."""
        text = (
            f"epoch {line['epoch']}/{num_epochs}  loss {line['loss']:.4f}  "
            f"accuracy {line['accuracy']:.4f}"
        )
        if "val_loss" in line:
            text += f"  val_loss {line['val_loss']:.4f}  val_accuracy {line['val_accuracy']:.4f}"
        self.say(f"{text}  {line['epoch_s']:.1f} s  {line['reviews_per_s']:.0f} reviews/s")
