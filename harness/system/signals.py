"""Signals that ask a run to save and stop: they set a flag, the loop acts on it between steps."""

import signal
from types import FrameType

from harness.errors import Interrupted

# TERM from schedulers, INT from the keyboard, USR1 and USR2 as sites send them before a time
# limit (NCCL takes USR1 for itself, so our own job scripts ask for USR2).
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Whether one of the stopping signals has come, to this process or to another of the run.

    Several workers must stop after the same step, or the rest wait in a collective operation for
    ever. So each step carries every worker's vote, and all look at the sum at the same steps.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.alone = alone
        self.signal: signal.Signals | None = None

    @property
    def vote(self) -> float:
        """1 to stop, 0 to go on."""
        return float(self.signal is not None)

    def listen(self) -> None:
        """Handle the signals from now on.

        Call it again once the strategy is made: the C++ side of a multi-worker strategy puts its
        own handler for TERM over one that was there before.
        """
        for number in STOPPING:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            # Who presses Ctrl-C twice does not want to wait; a run survives any end.
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def check(self) -> None:
        """Raise if a signal has come, where this worker may stop by itself.

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
