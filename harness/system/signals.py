"""Signals that ask a run to save and stop: they set a flag, the loop acts on it between steps."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from harness.errors import Interrupted
from harness.system import stderr_filter

# TERM from schedulers, INT from the keyboard, USR1 and USR2 as sites send them before a time
# limit (NCCL takes USR1 for itself, so our own job scripts ask for USR2).
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SHOW_CURSOR = b"\x1b[?25h\n"


class StopRequest:
    """Whether this process or another of the run has received one of the stopping signals.

    All workers must stop after the same step, or the rest would wait in a collective operation
    for ever. So each step carries every worker's vote, and all read the sum at the same steps.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.alone = alone
        self.signal: signal.Signals | None = None

    @property
    def vote(self) -> float:
        """1 to stop, 0 to continue."""
        return float(self.signal is not None)

    def listen(self) -> None:
        """Handle the signals from now on.

        Call it again after making the strategy: the C++ side of a multi-worker strategy replaces
        the handler for TERM with its own.
        """
        for number in STOPPING:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            end_at_once()  # the user does not want to wait, and a run survives any end
        if self.signal != signal.SIGTERM:  # a cancel stays one, whatever else comes
            self.signal = signal.Signals(number)

    def check(self) -> None:
        """Raise if a signal has come and this worker may stop by itself.

        Raises:
            Interrupted: with the signal's name.
        """
        if self.alone:
            self.agree(self.vote)

    def agree(self, votes: float) -> None:
        """Raise if any worker has voted to stop.

        Raises:
            Interrupted: with the signal's name.
        """
        if votes > 0:
            raise Interrupted(self.signal.name if self.signal else "a signal to another worker")


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Let Ctrl-C take effect at the end, for what may lose its exception; a second one at once.

    An import does: Python drops an exception that is raised in a callback of a weak reference, of
    which each module has one. Outside the main thread nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before in (signal.SIG_IGN, None):  # ignored; another language's
        yield
        return
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            end_at_once()
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


AT_ONCE = "harness: interrupted at once; what was saved before stays"


def end_at_once(line: str = AT_ONCE, code: int = Interrupted.exit_code) -> NoReturn:
    """End this process and all that it started, with one line and the code of an interruption.

    Not by an exception: code that runs while it is raised, such as an import of TensorFlow, may
    turn it into a traceback or lose it.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    if sys.stdout.isatty():
        os.write(1, SHOW_CURSOR)  # which a progress bar hides
    with contextlib.suppress(OSError):
        os.write(stderr_filter.descriptor, f"{line}\n".encode(errors="backslashreplace"))
    os._exit(code)
