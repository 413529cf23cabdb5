"""The heartbeat: what a run or a sweep is doing, for people and programs that watch it."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from harness.errors import Interrupted
from harness.slurm.environment import SlurmEnvironment
from harness.system.files import atomic_write
from harness.system.leased_dir import LeasedDirectory, to_json
from harness.system.processes import process_space

HEARTBEAT_S = 5.0  # between two writes of state.json


class Heartbeat:
    """Keeps `state.json` of a run, or of a sweep."""

    def __init__(
        self,
        run: LeasedDirectory,
        allocation: SlurmEnvironment | None,
        every_s: float = HEARTBEAT_S,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run, self.every_s, self.clock = run, every_s, clock
        previous = run.read_json("state.json")
        self.state: dict[str, Any] = {
            "restarts": int(previous.get("restarts") or 0) + 1 if previous else 0,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "space": process_space(),
            "slurm_job": allocation.job_id if allocation else None,
            "slurm_own_id": allocation.own_id if allocation else None,
            # Whether the job scripts began it; else its job may be a session for more than a run.
            "owns_job": allocation is not None and allocation.max_requeues is not None,
            "log": allocation.log if allocation else os.environ.get("HARNESS_LOG"),
        }
        self._last = float("-inf")

    def beat(self, phase: str, **values: object) -> None:
        """Record where the run is; written when the phase changes, and every few seconds.

        Args:
            phase: starting, training, validating, testing, finished, interrupted or failed.
            values: epoch, step, reviews_per_s, eta_s and whatever else is known.
        """
        changed = phase != self.state.get("phase")
        now = self.clock()
        self.state.update(phase=phase, **values)
        if changed or now - self._last >= self.every_s:
            self._last = now
            self.run.write_json("state.json", {**self.state, "time_s": round(now, 3)})

    def note(self, **values: object) -> None:
        """Record values with the next beat."""
        self.state.update(values)

    def interrupted(self, reason: Interrupted) -> None:
        """Record that the run is saved and stops."""
        self.beat("interrupted", signal=str(reason))


def record_death(run: LeasedDirectory, process: int, error: str) -> None:
    """Record that the process that trained a run died, in its place.

    Nothing is written if another process has taken the run over, or this one had not begun it.
    """
    if run.read_json("lease.json").get("process") == process:
        state = run.read_json("state.json")
        died = {**state, "phase": "failed", "error": error, "time_s": round(time.time(), 3)}
        atomic_write(run.path("state.json"), to_json(died))
