"""The runs that `harness status` is asked for: by job, state and age."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import InputError, suggest
from harness.tracking.records import ALIVE, RunStatus

STATES = (
    *(*ALIVE, "finished", "interrupted", "failed", "cancelled", "lost", "dead", "gone", "unknown"),
)
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class RunFilter:
    """Which runs are wanted; empty = all."""

    jobs: Sequence[str] = ()
    states: Sequence[str] = ()
    newer: str | None = None  # than this age, such as 2h

    def __post_init__(self) -> None:
        for state in self.states:
            if state not in STATES:
                raise InputError(f"--state {state}: is no state of a run{suggest(state, STATES)}")
        if self.newer is not None:
            age_s(self.newer)

    def __bool__(self) -> bool:
        return bool(self.jobs or self.states or self.newer)

    def choose(self, statuses: Sequence[RunStatus], now: float | None = None) -> list[RunStatus]:
        """The runs that are wanted, in their order.

        Raises:
            InputError: for a job that none of them is of.
        """
        known = sorted({each.job for each in statuses if each.job})
        for job in self.jobs:
            if job not in known:
                raise InputError(f"--job {job}: no run is of this job{suggest(job, known)}")
        now = time.time() if now is None else now
        since_s = now - age_s(self.newer) if self.newer else float("-inf")
        return [
            each
            for each in statuses
            if (not self.jobs or each.job in self.jobs)
            and (not self.states or each.state in self.states)
            and (each.time_s >= since_s or each.alive)
        ]


def age_s(text: str) -> float:
    """An age such as 90m, 2h or 3d in seconds.

    Raises:
        InputError: if it is none.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])", text.strip())
    if not found:
        raise InputError(f"--newer {text}: should be a number and s, m, h, d or w, such as 2h")
    return float(found[1]) * UNITS_S[found[2]]
