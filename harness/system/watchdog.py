"""Ends this process if its main thread can't end it, because TensorFlow waits for a device.

While the main thread waits, no Python signal handler runs. So a second thread ends the process some
time after the first signal to stop, or after a long time without a result from the devices.
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
NODES_STALL_MIN = 1.5  # default on several nodes: if one node hangs, all others wait
STOP, STOP_S = "HARNESS_STOP_S", 60.0
# The limit before the first step is this many times longer if the driver compiles the kernels.
FIRST_USE = 6.0
STEPS_AT_ONCE = 100  # for an execution of more steps, the limit grows in proportion
ASK_AFTER = 0.1  # share of the limit after which the training loop waits for a result
TICKS = 20  # number of checks within a limit
LONGEST_TICK_S = 30.0
RECORD_S = 10.0  # longest time to record the end, because the disk may not answer

Record = Callable[[Interrupted], int]


def nothing(reason: Interrupted) -> int:
    """Return the exit code of an interruption without recording the interruption."""
    return reason.exit_code


@dataclass
class Watched:
    """The work whose progress the watchdog checks."""

    where: str  # the devices and the node, for the message
    next_step: str  # how to continue the work, for the message
    record: Record = nothing  # a function that records the end and returns the exit code
    num_steps: int = 1  # training steps per execution
    first_use: float = 1.0  # the factor of the limit before the first step
    has_stepped: bool = False


class Watchdog:
    """A context manager that ends this process if it makes no progress or ignores a signal."""

    def __init__(
        self,
        stall_s: float,
        stop_s: float,
        end: Callable[[str, int], None],
        *,
        stepped_stall_s: float | None = None,
    ) -> None:
        """Make a watchdog. The watchdog starts at the beginning of its `with` block.

        Args:
            stall_s: the longest time without progress; 0 means no limit.
            stop_s: the longest time after the first signal to stop; 0 means no limit.
            end: a function that ends the process; its arguments are a message and an exit code.
            stepped_stall_s: the value of `stall_s` after the first step, if it differs.
        """
        self.stall_s, self.stop_s, self._end = stall_s, stop_s, end
        self.stepped_stall_s = stall_s if stepped_stall_s is None else stepped_stall_s
        self.watched: Watched | None = None
        self.asks = False  # whether the training loop should wait for a result
        self._progress = self._seen = 0
        self._still_s = self._stopping_s = 0.0
        self._signal: signal.Signals | None = None
        self._num_pressed = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        global current
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # Python writes a signal's number into the pipe at once, even if the main thread waits in C.
        self._other = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread.start()
        current = self
        return self

    def __exit__(self, *_: object) -> None:
        global current
        current = None
        signal.set_wakeup_fd(self._other)
        os.close(self._writer)  # the thread ends when the pipe is closed
        self._thread.join()
        os.close(self._reader)

    def progress(self) -> None:
        """Note that the devices have returned a result."""
        self._progress += 1
        self.asks = False

    @contextlib.contextmanager
    def watching(self, watched: Watched) -> Iterator[None]:
        """Expect progress while the `with` block runs."""
        self.watched = watched
        self.progress()
        os.write(self._writer, b"\0")  # wakes the thread
        try:
            yield
        finally:
            self.watched = None

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Expect no progress while the `with` block runs, because it calls the user's code."""
        watched, self.watched = self.watched, None
        try:
            yield
        finally:
            self.watched = watched
            self.progress()

    # The watchdog's thread

    @property
    def limit_s(self) -> float:
        """The longest time in seconds that may pass without progress."""
        watched = self.watched or Watched("", "")
        if watched.has_stepped:
            return self.stepped_stall_s * max(watched.num_steps / STEPS_AT_ONCE, 1.0)
        return self.stall_s * max(watched.first_use, watched.num_steps / STEPS_AT_ONCE, 1.0)

    def _watch(self) -> None:
        while True:
            tick_s, began_s = self._tick_s(), time.monotonic()
            is_called = bool(select.select([self._reader], [], [], tick_s)[0])
            # If far more than a tick has passed, the process was suspended; don't count that time.
            self.count(min(time.monotonic() - began_s, (tick_s or 0.0) + 1.0))
            numbers = os.read(self._reader, 64) if is_called else b"\0"
            if not numbers:
                return
            for number in numbers:
                self.note(number)

    def _tick_s(self) -> float | None:
        """The seconds until the next check, at least one; None if there is no limit."""
        limits = [self.stop_s] if self._signal and self.stop_s else []
        limits += [self.stepped_stall_s] if self.watched and self.stepped_stall_s else []
        return max(1.0, min(LONGEST_TICK_S, min(limits) / TICKS)) if limits else None

    def note(self, number: int) -> None:
        """Store a signal to stop. At the second Ctrl-C, end the process."""
        if number == signal.SIGINT:
            self._num_pressed += 1
            if self._num_pressed > 1:
                end_at_once()  # the main thread may be unable to end the process
        if number in STOPPING and self._signal != signal.SIGTERM:  # SIGTERM (a cancel) stays
            self._signal = signal.Signals(number)

    def count(self, passed_s: float) -> None:
        """Count the time without progress and the time since a signal; at a limit, end the process.

        `passed_s` is the time since the last call.
        """
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
            self._finish(line, Interrupted(f"a hang of {where}"))

    def _finish(self, line: str, reason: Interrupted) -> None:
        codes = [reason.exit_code]
        lines = [line]

        def record() -> None:
            if self.watched:
                try:
                    codes.append(self.watched.record(reason))
                except RunError as refusal:  # for example, a newer process has taken the run over
                    codes.append(refusal.exit_code)
                    lines.append(str(refusal))

        # Record the end in a thread, because the disk may not answer either.
        thread = threading.Thread(target=record, daemon=True)
        thread.start()
        thread.join(RECORD_S)
        self.watched = self._signal = None
        self._end(lines[-1], codes[-1])


current: Watchdog | None = None  # at most one per process can receive signals


def progress() -> None:
    """Report a result of the devices to the watchdog, if there is one."""
    if current:
        current.progress()


def first_step_done() -> None:
    """Report the end of the first step, during which all kernels have been compiled."""
    if current and current.watched:
        current.watched.has_stepped = True
        current.progress()


def asks() -> bool:
    """Whether the training loop should wait for a result, because none has come for a while."""
    return current is not None and current.asks


def watching(watched: Watched) -> contextlib.AbstractContextManager[None]:
    """Expect progress while the `with` block runs."""
    return current.watching(watched) if current else contextlib.nullcontext()


def pausing() -> contextlib.AbstractContextManager[None]:
    """Expect no progress while the `with` block runs, because it calls the user's code."""
    return current.pausing() if current else contextlib.nullcontext()


def from_settings(
    environment: Mapping[str, str] = os.environ, *, on_nodes: bool = False
) -> Watchdog:
    """Return a watchdog with the limits from the site's settings.

    Args:
        on_nodes: whether processes of several nodes wait for each other in every step.

    Raises:
        InputError: if a setting is not a number or out of its range.
    """
    stall_min = number_setting(STALL, "minutes", STALL_MIN, environment)
    usual_min = NODES_STALL_MIN if on_nodes else STALL_MIN
    stepped_min = number_setting(STALL, "minutes", usual_min, environment)
    stop_s = number_setting(STOP, "seconds", STOP_S, environment)
    return Watchdog(60 * stall_min, stop_s, end, stepped_stall_s=60 * stepped_min)


def end(line: str, code: int) -> None:
    """Write a line to the process's log, and end the process."""
    end_at_once(error_line(line, stderr_filter.descriptor), code)
