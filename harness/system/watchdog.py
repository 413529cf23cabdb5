"""Ends this process if its main thread hangs while TensorFlow waits for a device.

While the main thread waits for a device, it runs no Python signal handler, so a second thread
watches the process. The second thread ends the process some time after the first signal that
asks the run to stop, or after a long time without a result from the devices.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from harness.errors import InputError, Interrupted, RunError, TakenOver
from harness.system.processes import STOPPING, StopRequest, call_within, end_at_once
from harness.system.stderr_filter import show_rest_soon

STALL, STALL_MIN = "HARNESS_STALL_MIN", 10.0
LARGEST = 1440.0  # the largest HARNESS_STALL_MIN, in minutes, and HARNESS_STOP_S, in seconds
NODES_STALL_MIN = 1.5  # default on several nodes: if one node hangs, all others wait
STOP, STOP_S = "HARNESS_STOP_S", 60.0
# The limit before the first step is this many times longer if the driver compiles the kernels.
FIRST_USE = 6.0
# After this fraction of the limit without progress, the training loop waits for a result of the
# devices before it starts more steps.
ASK_AFTER = 0.1
TICK_S = 1.0  # time between two checks
RECORD_S = 10.0  # how long to wait for the record of the end, because the disk may not answer


@dataclass
class Watched:
    """The work whose progress the watchdog checks."""

    where: str  # the devices and the node, for the message
    next_step: str  # how to continue the work, for the message
    # A function that records why the watchdog ends the process.
    record: Callable[[Interrupted], object] | None = None
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
            stall_s: the longest time in seconds without progress; 0 means no limit.
            stop_s: how many seconds the process may still run after the first signal that asks the
                run to stop; 0 means no limit.
            end: a function that ends the process; its arguments are a message and an exit code.
            stepped_stall_s: the limit that replaces `stall_s` after the first step; None keeps
                `stall_s`.
        """
        self.stall_s, self.stop_s, self._end = stall_s, stop_s, end
        self.stepped_stall_s = stall_s if stepped_stall_s is None else stepped_stall_s
        self.first_use = 1.0  # how many times longer the limit is before the first step
        self.watched: Watched | None = None
        self.asks = False  # whether the training loop should wait for a result
        self._progress = self._seen = 0
        self._still_s = self._stopping_s = 0.0
        self._request = StopRequest()
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
        current = IDLE
        signal.set_wakeup_fd(self._other)
        os.close(self._writer)  # the thread ends when the pipe is closed
        self._thread.join()
        os.close(self._reader)

    def progress(self) -> None:
        """Record that the devices have returned a result."""
        self._progress += 1
        self.asks = False

    def first_step_done(self) -> None:
        """Record the end of the first step, during which all kernels have been compiled."""
        if self.watched:
            self.watched.has_stepped = True
        self.progress()

    @contextlib.contextmanager
    def watching(self, watched: Watched) -> Iterator[None]:
        """Expect progress while the `with` block runs."""
        self.watched = watched
        self.progress()
        try:
            yield
        finally:
            self.watched = None

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Expect no progress while the `with` block runs; the block calls the user's code."""
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
        if self.watched and self.watched.has_stepped:
            return self.stepped_stall_s
        return self.stall_s * self.first_use

    def _watch(self) -> None:
        while True:
            began_s = time.monotonic()
            is_called = bool(select.select([self._reader], [], [], TICK_S)[0])
            # If far more than TICK_S has passed, the process was suspended; don't count that time.
            self.count(min(time.monotonic() - began_s, TICK_S + 1.0))
            numbers = os.read(self._reader, 64) if is_called else b"\0"
            if not numbers:
                return
            for number in numbers:
                self.note(number)

    def note(self, number: int) -> None:
        """Store a signal that asks the run to stop. At the second Ctrl-C, end the process."""
        if number in STOPPING:
            self._request.note(number)  # here, because the main thread may hang

    def count(self, passed_s: float) -> None:
        """Add `passed_s` to the time without progress and to the time since the first signal.

        End the process if the time without progress, or the time since the first signal, reaches
        its limit.

        Args:
            passed_s: the time in seconds since the last call.
        """
        watched = self.watched
        if watched is None or self._progress != self._seen:
            self._seen, self._still_s = self._progress, 0.0
        else:
            self._still_s += passed_s
        self.asks = 0 < ASK_AFTER * self.limit_s <= self._still_s
        asked = self._request.signal
        self._stopping_s += passed_s if asked else 0.0
        where = watched.where if watched else "this process"
        goes_on = f"; {watched.next_step}" if watched else ""
        if asked and 0 < self.stop_s <= self._stopping_s:
            line = f"interrupted by {asked.name}; {where} did not answer for "
            line += f"{self.stop_s:.0f} s, so only the last checkpoint is kept{goes_on}"
            self._finish(line, Interrupted(asked.name))
        elif watched and 0 < self.limit_s <= self._still_s:
            line = f"{where}: no step, batch or compilation has ended for "
            line += f"{self.limit_s / 60:g} min ({STALL}); the process ends{goes_on}"
            self._finish(line, Interrupted(f"a hang of {where}"))

    def _finish(self, line: str, reason: Interrupted) -> None:
        ends = [(line, reason.exit_code)]

        def record() -> None:
            if self.watched and self.watched.record:
                try:
                    self.watched.record(reason)
                except TakenOver as taken:  # a requeue would take the run back
                    ends.append((str(taken), taken.exit_code))
                except RunError:  # for example, the disk is full
                    pass

        # Record the end in another thread, because the disk may not answer.
        call_within(RECORD_S, record)
        show_rest_soon()  # TensorFlow's messages may explain the hang
        self.watched = self._request.signal = None
        self._end(*ends[-1])


def from_settings(*, on_nodes: bool = False) -> Watchdog:
    """Return a watchdog with the limits from the site's settings.

    Args:
        on_nodes: whether the run has processes on several nodes, which wait for each other in every
            step.

    Raises:
        InputError: if a setting is not a number or out of its range.
    """
    stall_min = read_limit(STALL, "minutes", STALL_MIN)
    usual_min = NODES_STALL_MIN if on_nodes else STALL_MIN
    stepped_min = read_limit(STALL, "minutes", usual_min)
    stop_s = read_limit(STOP, "seconds", STOP_S)
    return Watchdog(60 * stall_min, stop_s, end_at_once, stepped_stall_s=60 * stepped_min)


def read_limit(name: str, unit: str, default: float) -> float:
    """Read a time limit of the site from the environment; 0 means no limit.

    Raises:
        InputError: if the value is not a number from 0 to LARGEST.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= LARGEST:
        raise InputError(
            f"{name}={text[:40]}: should be a number of {unit} from 0 to {LARGEST:.0f}, 0 = no "
            "limit; correct it in slurm/site.sh or your shell"
        )
    return number


IDLE = Watchdog(0, 0, end_at_once)  # a watchdog without a thread and without a limit
current = IDLE  # the process's only watchdog; two watchdogs could not both receive signals
