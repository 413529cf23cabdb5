"""What goes along with the training loop: Keras's own callbacks, and the heartbeat."""

import os
import shlex
import socket
import time
from collections.abc import Callable
from typing import Any

import keras

from harness.cluster import Allocation
from harness.errors import Interrupted, RunError
from harness.job import TrainTable
from harness.run import HEARTBEAT_S, Run


def keras_callbacks(train: TrainTable, model: keras.Model) -> keras.callbacks.CallbackList:
    """Early stopping and learning-rate cuts as the job wants them, on `model` and its optimizer.

    They see epochs alone, and everything they know they have from the epochs' logs: a resumed run
    plays its history to them again and has them as they were.
    """
    mode = "min" if train.monitor == "val_loss" else "max"
    callbacks: list[keras.callbacks.Callback] = []
    if train.early_stopping_patience > 0:
        patience = train.early_stopping_patience
        callbacks.append(keras.callbacks.EarlyStopping(train.monitor, patience=patience, mode=mode))
    if train.reduce_lr_patience > 0:
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                train.monitor,
                factor=train.reduce_lr_factor,
                patience=train.reduce_lr_patience,
                mode=mode,
            )
        )
    return keras.callbacks.CallbackList(callbacks, model=model)


class Heartbeat:
    """Keeps `state.json`: what the run is doing, for people and programs that watch from afar."""

    def __init__(
        self,
        run: Run,
        allocation: Allocation | None,
        every_s: float = HEARTBEAT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run, self.every_s, self.clock = run, every_s, clock
        before = run.read_json("state.json")
        self.state: dict[str, Any] = {
            "restarts": int(before.get("restarts") or 0) + 1 if before else 0,
            "requeues": int(before.get("requeues") or 0),
            "host": socket.gethostname(),
            "process": os.getpid(),
            "slurm_job": allocation.job_id if allocation else None,
            "log": allocation.log if allocation else None,
        }
        self.max_requeues = allocation.max_requeues if allocation else None
        self._last = float("-inf")

    def beat(self, phase: str, **values: object) -> None:
        """Note where the run is; written at a change of phase and every few seconds.

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

    def interrupted(self, reason: Interrupted) -> None:
        """Note that the run is saved and stops, and whether its job may go back into the queue.

        Raises:
            RunError: if it has been there too often.
        """
        requeues = int(self.state["requeues"])
        # The job scripts put a job back that was warned; not one that somebody cancelled.
        if self.max_requeues is not None and not reason.by_cancel:
            if requeues >= self.max_requeues:
                raise RunError(
                    f"interrupted by {reason}, checkpoint saved; not requeued: that was done "
                    f"{requeues} times, HARNESS_MAX_REQUEUES is {self.max_requeues}; give more "
                    f"--time, and go on by: harness resume {shlex.quote(str(self.run.folder))}"
                )
            requeues += 1
        self.beat("interrupted", signal=str(reason), requeues=requeues)
