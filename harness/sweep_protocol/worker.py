"""A worker of a sweep: it reads its task, trains it, and writes its state.

It works in folders of its own, one for each attempt, so a worker that was taken for lost, or that
comes back late, harms nobody.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Protocol

from harness.errors import DiskError, Interrupted, TakenOver
from harness.sweep_protocol.mailbox import (
    BEAT,
    LONGEST_LOOK_S,
    STATE,
    TASK,
    Beat,
    Clock,
    Report,
    SharedFolder,
    Task,
    Work,
    WorkerState,
)
from harness.system.processes import process_space
from harness.system.signals import StopRequest

# Exit codes: asks to be started again; the node is at fault; nobody supervises the sweep.
RESTART_CODE, NODE_FAULT_CODE, ALONE_CODE = 76, 77, 78
LEAVE_S = 20.0  # for the last state to be written
MAX_TRIALS = 50  # of a process: each leaves some megabytes behind


class Superseded(Interrupted):
    """The attempt at hand is not in the worker's task any more."""


class Alone(Interrupted):
    """Nobody supervises the sweep."""


def nothing() -> None:
    """What a stop looks at between two attempts."""


class TrialStop(StopRequest):
    """A stop by a signal, or by the supervisor, which needs the attempt at hand no more."""

    def __init__(self) -> None:
        super().__init__()
        self.look: Callable[[], None] = nothing

    def check(self) -> None:
        """Called between steps.

        Raises:
            Interrupted: by a signal, or as `Superseded`.
        """
        super().check()
        self.look()


class StopClock(Clock):
    """Time in which a signal is noticed."""

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def sleep(self, time_s: float) -> None:
        """Wait.

        Raises:
            Interrupted: if a signal comes.
        """
        end_s = self.now() + time_s
        while (left_s := end_s - self.now()) > 0:
            self.stop.check()
            super().sleep(min(left_s, 0.2))


class Runner(Protocol):
    """What trains the trials."""

    def run(self, work: Work, check: Callable[[], None]) -> Report:
        """Train an attempt to its report; `check` is called between steps and may raise.

        Raises:
            Interrupted: `check` raised it; a checkpoint is saved.
            OSError, DiskError: the file system fails.
        """

    def saved(self, attempt: str) -> int:
        """The steps that the newest checkpoint of an attempt holds."""

    def clean(self, attempt: str) -> None:
        """Remove the checkpoints of an accepted attempt that no other will need."""

    def has_grown(self) -> bool:
        """Whether this process holds so much memory that a new one should go on."""


class Worker:
    """One worker process, from its folder to its last state."""

    def __init__(self, shared: SharedFolder, uuid: str, runner: Runner, **about: object) -> None:
        """Make a worker; nothing is written yet.

        Args:
            uuid: names it, and no other process ever.
            about: fields of `WorkerState` for people.
        """
        self.shared, self.uuid, self.runner = shared, uuid, runner
        self.task = Task(generation=0, number=0)
        where = {"host": socket.gethostname(), "process": os.getpid(), "space": process_space()}
        self._state = WorkerState.model_validate({"count": 0, **where, **about})
        self._lock = threading.Lock()
        self._poke, self._has_left = threading.Event(), threading.Event()
        self._synced: set[str] = set()  # attempts whose results are on the disk
        self._looked_s = self._listened_s = shared.clock.now()  # for a task, for a beat
        self._alone_s = 0.0  # since the newest beat
        self._failing_s: float | None = None  # since when the file system fails
        self._heard: tuple[int, int] = (0, 0)  # generation and count of the newest beat
        self._num_trials = 0

    def run(self) -> int:
        """Work until the sweep ends; returns the exit code of the process.

        Raises:
            Interrupted: a signal came; the attempt at hand is saved.
            RunError: this process can train no trial.
        """
        while not self._try(self._enter):
            pass
        self.shared.clock.spawn(self._beat)
        try:
            while (code := self._try(self._work_once)) is None:
                pass
        finally:
            self._update(leaves=True)
            self._poke.set()
            # A worker whose last state can't be written is lost after its term.
            self.shared.clock.wait(self._has_left, LEAVE_S)
        return int(code)

    # The state

    def _enter(self) -> bool:
        """Make the folder with an empty task: before the first state, so nobody writes it yet."""
        shared, folder = self.shared, self.shared.path("workers", self.uuid)
        if not self._state.count:  # else the state may be there, and a task that was written since
            shared.disk.make_folder(folder)
            shared.write(self.task, "workers", self.uuid, TASK)
        self._write_state()
        return True

    def _update(self, **fields: object) -> None:
        """Change the state, which is written with the next beat."""
        with self._lock:
            self._state = self._state.model_copy(update=fields)

    def _write_state(self) -> None:
        saved = self.runner.saved(self._state.attempt) if self._state.attempt else 0
        self._update(saved=saved, count=self._state.count + 1)
        state = self._state
        is_new = not state.results.keys() <= self._synced
        self.shared.write(state, "workers", self.uuid, STATE, synced=is_new)
        self._synced = set(state.results)
        if state.leaves:
            self._has_left.set()

    def _beat(self) -> None:
        """Write the state again and again: that this process lives."""
        while not self._has_left.is_set():
            self.shared.clock.wait(self._poke, self.shared.terms.beat_s)
            self._poke.clear()
            with contextlib.suppress(OSError):  # tried again
                self._write_state()

    # The task

    def _look(self) -> None:
        """Read the task and obey it, if it is a later one."""
        task = self.shared.read(Task, "workers", self.uuid, TASK)
        self._looked_s = self.shared.clock.now()
        if not task or task.order <= self.task.order:
            return
        self.task = task
        wanted = {work.attempt for work in task.work}
        results = {k: v for k, v in self._state.results.items() if k in wanted}
        done = self._state.results.keys() - wanted
        self._update(obeys=task.order, results=results)
        self._poke.set()
        for attempt in done:
            self.runner.clean(attempt)

    def check(self) -> None:
        """Called between steps: count them, and look at the task from time to time.

        Raises:
            Superseded: if the attempt at hand is not in it any more.
        """
        self._update(step=self._state.step + 1)
        if self.shared.clock.now() - self._looked_s < self.shared.terms.look_s:
            return
        with contextlib.suppress(OSError):  # nothing new
            self._look()
        if self._state.attempt not in {work.attempt for work in self.task.work}:
            raise Superseded("the supervisor, which needs this attempt no more")

    # The work

    def _try(self, act: Callable[[], int | bool | None]) -> int | bool | None:
        """Act; an error of the file system is waited for, since it says nothing of a trial.

        Raises:
            Interrupted: if the file system fails for long.
        """
        clock, terms = self.shared.clock, self.shared.terms
        try:
            result = act()
        except (OSError, DiskError, TakenOver) as error:  # no lease is ever taken over here
            if self._failing_s is None:
                self._failing_s = clock.now()
            if clock.now() - self._failing_s > terms.patience_s:
                raise Interrupted(f"the file system: {error}") from None
            clock.sleep(terms.idle_s)
            return None
        self._failing_s = None
        return result

    def _work_once(self) -> int | None:
        """Train an attempt, or wait for a task; returns an exit code to end the process."""
        self._look()
        if self.task.over:
            return 0
        if self._num_trials >= MAX_TRIALS or self.runner.has_grown():
            return RESTART_CODE
        results = self._state.results
        if not (work := next((w for w in self.task.work if w.attempt not in results), None)):
            return self._idle()
        self._alone_s = 0.0
        if work.attempt != self._state.attempt:
            self._update(attempt=work.attempt, step=0)
            self._poke.set()  # if it ends this process, the supervisor should know which it was
            self._num_trials += 1
        try:
            report = self.runner.run(work, self.check)
        except Superseded:
            self._update(attempt="")
            return None
        self._update(results={**self._state.results, work.attempt: report}, attempt="")
        self._poke.set()
        return None

    def _idle(self) -> int | None:
        """Wait for a task.

        Raises:
            Alone: if there is no supervisor for long.
        """
        shared, now_s = self.shared, self.shared.clock.now()
        if shared.is_over():
            return 0
        generation = max(self._heard[0], self.task.generation)
        while shared.disk.opens(shared.path("journal", str(generation + 1))):
            generation += 1
        beat = shared.read(Beat, "journal", str(generation), BEAT)
        heard = generation, beat.count if beat else 0
        self._alone_s += min(now_s - self._listened_s, LONGEST_LOOK_S)
        self._listened_s = now_s
        if heard != self._heard:
            self._heard, self._alone_s = heard, 0.0
        if self._alone_s > shared.terms.patience_s:
            raise Alone(f"the loss of the supervisor, none for {shared.terms.patience_s:.0f} s")
        shared.clock.sleep(shared.terms.idle_s)
        return None
