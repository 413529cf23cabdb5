"""Ends this process where its main thread can't, because it waits for a device in TensorFlow.

Python handles no signal and raises nothing there. A thread of its own does two things: it ends the
process some time after the first signal that asks it to stop, and where nothing has come from the
devices for long.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from harness.errors import Interrupted, RunError
from harness.system import stderr_filter
from harness.system.console import error_line
from harness.system.processes import STOPPING, end_at_once
from harness.system.site_settings import number_setting

STALL, STALL_MIN = "HARNESS_STALL_MIN", 10.0
NODES_STALL_MIN = 1.5  # on several nodes, of which one that hangs holds all
STOP, STOP_S = "HARNESS_STOP_S", 60.0
FIRST_USE = 6.0  # times as long, until the first step on a card whose kernels the driver compiles
STEPS_AT_ONCE = 100  # steps of one execution that share the limit of one
ASK_AFTER = 0.1  # of the limit without a result, when the loop should wait for one
TICKS = 20  # looks in the time of a limit
LONGEST_TICK_S = 30.0
RECORD_S = 10.0  # to record the end, on a disk that may not answer either

Record = Callable[[Interrupted], int]


def nothing(reason: Interrupted) -> int:
    """Record no end; the exit code."""
    return reason.exit_code


@dataclass
class Watched:
    """What is waited for."""

    where: str  # devices and node, for people
    next_step: str  # how to go on, for people
    record: Record = nothing  # records the end, and gives the exit code
    num_steps: int = 1  # of one execution
    first_use: float = 1.0  # times the limit, until a step is done
    has_stepped: bool = False


class Watchdog:
    """Counts the time without progress and since a signal; a context manager."""

    def __init__(
        self,
        stall_s: float,
        stop_s: float,
        end: Callable[[str, int], None],
        *,
        stepped_stall_s: float | None = None,
    ) -> None:
        """Make a watchdog; it begins with the block.

        Args:
            stall_s: without progress while something is watched, 0 for no limit.
            stop_s: after the first signal that asks to stop, 0 for no limit.
            end: ends the process with a line and an exit code.
            stepped_stall_s: `stall_s` from the first step on, if it is another.
        """
        self.stall_s, self.stop_s, self._end = stall_s, stop_s, end
        self.stepped_stall_s = stall_s if stepped_stall_s is None else stepped_stall_s
        self.watched: Watched | None = None
        self.asks = False  # for a result of the steps at work
        self._progress = self._seen = 0
        self._still_s = self._stopping_s = 0.0
        self._signal: signal.Signals | None = None
        self._num_pressed = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        global current
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # Python writes the number of each signal there at once, whatever the main thread does.
        self._other = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread.start()
        current = self
        return self

    def __exit__(self, *_: object) -> None:
        global current
        current = None
        signal.set_wakeup_fd(self._other)
        os.close(self._writer)  # the thread reads the end of the file
        self._thread.join()
        os.close(self._reader)

    def progress(self) -> None:
        """Something came from the devices."""
        self._progress += 1
        self.asks = False

    @contextlib.contextmanager
    def watching(self, watched: Watched) -> Iterator[None]:
        """Expect progress within the block."""
        self.watched = watched
        self.progress()
        os.write(self._writer, b"\0")  # wakes the thread, which begins to count
        try:
            yield
        finally:
            self.watched = None

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Expect none for a while: other code than ours is at work."""
        watched, self.watched = self.watched, None
        try:
            yield
        finally:
            self.watched = watched
            self.progress()

    # The thread

    @property
    def limit_s(self) -> float:
        """The time without progress at which the process ends."""
        watched = self.watched or Watched("", "")
        if watched.has_stepped:
            return self.stepped_stall_s * max(watched.num_steps / STEPS_AT_ONCE, 1.0)
        return self.stall_s * max(watched.first_use, watched.num_steps / STEPS_AT_ONCE, 1.0)

    def _watch(self) -> None:
        while True:
            tick_s, began_s = self._tick_s(), time.monotonic()
            is_called = bool(select.select([self._reader], [], [], tick_s)[0])
            # What is longer than a tick was a suspension, of which the process knows nothing.
            self.count(min(time.monotonic() - began_s, (tick_s or 0.0) + 1.0))
            numbers = os.read(self._reader, 64) if is_called else b"\0"
            if not numbers:
                return
            for number in numbers:
                self.note(number)

    def _tick_s(self) -> float | None:
        """How long to sleep, at least a second; None without anything to count."""
        limits = [self.stop_s] if self._signal and self.stop_s else []
        limits += [self.stepped_stall_s] if self.watched and self.stepped_stall_s else []
        return max(1.0, min(LONGEST_TICK_S, min(limits) / TICKS)) if limits else None

    def note(self, number: int) -> None:
        """A signal has come."""
        if number == signal.SIGINT:
            self._num_pressed += 1
            if self._num_pressed > 1:
                end_at_once()  # the main thread may not handle it
        if number in STOPPING and self._signal != signal.SIGTERM:  # a cancel stays one
            self._signal = signal.Signals(number)

    def count(self, passed_s: float) -> None:
        """Add a time to those without progress and since a signal, and end what took too long."""
        watched = self.watched
        if watched is None or self._progress != self._seen:
            self._seen, self._still_s = self._progress, 0.0
        else:
            self._still_s += passed_s
        self.asks = 0 < ASK_AFTER * self.limit_s <= self._still_s
        self._stopping_s += passed_s if self._signal else 0.0
        where = watched.where if watched else "this process"
        goes_on = f"; {watched.next_step}" if watched else ""
        if self._signal and 0 < self.stop_s <= self._stopping_s:
            line = f"interrupted by {self._signal.name}; {where} did not answer for "
            line += f"{self.stop_s:.0f} s, so only the last checkpoint is kept{goes_on}"
            self._finish(line, Interrupted(self._signal.name))
        elif watched and 0 < self.limit_s <= self._still_s:
            line = f"{where}: no step, batch or compilation has ended for "
            line += f"{self.limit_s / 60:g} min ({STALL}); the process ends{goes_on}"
            self._finish(line, Interrupted(f"a step that did not end on {where}"))

    def _finish(self, line: str, reason: Interrupted) -> None:
        codes = [reason.exit_code]
        lines = [line]

        def record() -> None:
            if self.watched:
                try:
                    codes.append(self.watched.record(reason))
                except RunError as refusal:  # such as a run that another process took over
                    codes.append(refusal.exit_code)
                    lines.append(str(refusal))

        # In a thread, since the disk may not answer either.
        thread = threading.Thread(target=record, daemon=True)
        thread.start()
        thread.join(RECORD_S)
        self.watched = self._signal = None
        self._end(lines[-1], codes[-1])


current: Watchdog | None = None  # of this process; only one can learn of signals


def progress() -> None:
    """Tell the watchdog, if there is one, that something came from the devices."""
    if current:
        current.progress()


def first_step_done() -> None:
    """Tell the watchdog, if there is one, that the kernels of a step are compiled."""
    if current and current.watched:
        current.watched.has_stepped = True
        current.progress()


def asks() -> bool:
    """Whether the loop should wait for a result of its steps: none has come for a while."""
    return current is not None and current.asks


def watching(watched: Watched) -> contextlib.AbstractContextManager[None]:
    """Expect progress within the block."""
    return current.watching(watched) if current else contextlib.nullcontext()


def pausing() -> contextlib.AbstractContextManager[None]:
    """Expect none within the block, whose code is the user's."""
    return current.pausing() if current else contextlib.nullcontext()


def from_settings(
    environment: Mapping[str, str] = os.environ, *, on_nodes: bool = False
) -> Watchdog:
    """The watchdog with the limits of the site.

    Args:
        on_nodes: of a process that trains a model with others, which wait for it in each step.

    Raises:
        InputError: for a limit that is no number.
    """
    stall_min = number_setting(STALL, "minutes", STALL_MIN, environment)
    usual_min = NODES_STALL_MIN if on_nodes else STALL_MIN
    stepped_min = number_setting(STALL, "minutes", usual_min, environment)
    stop_s = number_setting(STOP, "seconds", STOP_S, environment)
    return Watchdog(60 * stall_min, stop_s, end, stepped_stall_s=60 * stepped_min)


def end(line: str, code: int) -> None:
    """End the process with a line of its log."""
    end_at_once(error_line(line, stderr_filter.descriptor), code)
