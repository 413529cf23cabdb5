"""Whether a GPU lies idle for so long that its site may end the job."""

import os
import socket
import time
from collections.abc import Callable, Mapping

from harness.errors import InputError

IDLE_BELOW = 0.05  # share of the time in which a kernel runs
DEFAULT_MIN = 10.0
LONGEST_MIN = 1440.0
ADVICE = (
    "and some sites end such jobs: where step/input_wait_share in TensorBoard is high ask for more "
    "CPUs, else raise train.batch_size or train.steps_per_execution, or take fewer GPUs"
)
GAP_S = 60.0  # between two looks, after which nothing is known of the time between


def idle_warning_min(environment: Mapping[str, str] = os.environ) -> float:
    """The minutes after which an idle GPU is told of, 0 for never: HARNESS_IDLE_WARNING_MIN.

    Raises:
        InputError: if it is no such number.
    """
    text = environment.get("HARNESS_IDLE_WARNING_MIN", "").strip()
    if not text:
        return DEFAULT_MIN
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1.0
    if not 0 <= minutes <= LONGEST_MIN:
        raise InputError(
            f"HARNESS_IDLE_WARNING_MIN={text[:40]}: should be minutes, 0 to {LONGEST_MIN:.0f}, 0 "
            "for no warning; mend it in slurm/site.sh or your shell"
        )
    return minutes


class IdleWatch:
    """Follows the use of GPUs, and knows which of them were idle for a whole window."""

    def __init__(self, window_min: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin to watch; nothing is idle before a window has passed.

        Args:
            window_min: minutes, above 0.
            clock: gives seconds.
        """
        self._window_s, self._clock = 60 * window_min, clock
        self._busy: dict[str, float] = {}  # when each was last seen at work
        self._told: dict[str, float] = {}
        self._looked = clock()
        self.warning: str | None = None  # of those that are idle now

    def look(self, shares: Mapping[str, float | None]) -> str | None:
        """Take a new reading of each GPU's use; returns the warning where it is due.

        It is due when a GPU has been idle for a window, and again after each further one.

        Args:
            shares: by the GPU's name, 0 to 1, None where unknown, which does not count as idle.
        """
        now = self._clock()
        # A suspended job did not look, so it can't tell.
        blind, self._looked = now - self._looked > GAP_S, now
        idle_s = {}
        due = False
        for name, share in shares.items():
            if blind or share is None or share >= IDLE_BELOW:
                self._busy[name] = self._told[name] = now
                continue
            span_s = now - self._busy.setdefault(name, now)
            if span_s >= self._window_s:
                idle_s[name] = span_s
                due |= now - self._told.setdefault(name, self._busy[name]) >= self._window_s
        self.warning = _text(idle_s) if idle_s else None
        if due:
            self._told |= dict.fromkeys(idle_s, now)
        return f"{self.warning}, {ADVICE}" if due else None


def _text(idle_s: Mapping[str, float]) -> str:
    minutes = int(min(idle_s.values()) // 60)
    names = f"GPU{'s' if len(idle_s) > 1 else ''} {', '.join(idle_s)}"
    return f"{names} of {socket.gethostname()} idle for {minutes} min"
