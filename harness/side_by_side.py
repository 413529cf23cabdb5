"""Runs side by side: each a process of its own, on its share of the CPUs and GPUs given."""

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.cluster import Allocation
from harness.crew import POLL_S, Member, ask_to_save, end_all
from harness.errors import InputError, Interrupted, RunError
from harness.places import Place, needs_steps, step_words
from harness.screen import Screen
from harness.signals import StopRequest


@dataclass(frozen=True)
class Task:
    """A run that is to be made."""

    name: str  # unique, such as lstm-seed1
    words: Sequence[str]  # the command
    log: Path  # what it prints


def child_words(*words: str) -> list[str]:
    """The command of a `harness …` that ends with the process that started it."""
    return [sys.executable, "-m", "harness.child", *words]


class SideBySide:
    """Runs tasks, as many at a time as there are places; no process is left when it ends."""

    def __init__(
        self,
        tasks: Sequence[Task],
        places: Sequence[Place],
        allocation: Allocation | None,
        screen: Screen,
    ) -> None:
        self.waiting, self.free = list(tasks), list(places)
        self.num_tasks, self.num_done = len(tasks), 0
        self.steps = needs_steps(allocation)
        self.screen, self.stop = screen, StopRequest()
        self.at_work: dict[str, Member] = {}
        self.failures: list[str] = []

    def run(self) -> None:
        """Run all; one that fails stops no other.

        Raises:
            InputError: a run's input was refused, which ends the others too.
            Interrupted: a signal came; those at work have saved and can go on.
            RunError: some failed: which, and why.
        """
        self.stop.listen()
        try:
            while self.waiting or self.at_work:
                self.stop.check()
                while self.waiting and self.free:
                    self._start(self.waiting.pop(0), self.free.pop(0))
                for name in [name for name, each in self.at_work.items() if not each.alive]:
                    member = self.at_work.pop(name)
                    self._note_end(member)
                    assert member.place  # noqa: S101 - it was given one
                    self.free.append(member.place)
                time.sleep(POLL_S)
        finally:
            ask_to_save(self.at_work.values(), self.stop.signal or signal.SIGTERM)
            end_all(self.at_work.values())
        if self.failures:
            raise RunError(f"{len(self.failures)} of {self.num_tasks}: {'; '.join(self.failures)}")

    def _start(self, task: Task, place: Place) -> None:
        member = Member(task.name, place, task.log, in_step=self.steps)
        variables = {**place.variables(), "HARNESS_LOG": str(task.log.absolute())}
        words = ["env", *(f"{name}={value}" for name, value in variables.items())]
        words += task.words
        member.start([*step_words(place, task.name), *words] if self.steps else words)
        self.at_work[task.name] = member
        self.screen.say(f"{task.name}: begins, log {task.log}")

    def _note_end(self, member: Member) -> None:
        code = member.code
        if code == 0:
            self.num_done += 1
            self.screen.say(f"{member.name}: done, {self.num_done} of {self.num_tasks}")
        elif code == InputError.exit_code:
            raise InputError(f"{member.name}: {member.last_words()}")
        elif code == Interrupted.exit_code:
            raise Interrupted(f"a signal to {member.name}")
        else:
            by_signal = code is not None and code < 0
            why = f"was ended by signal {-(code or 0)}" if by_signal else member.last_words()
            self.failures.append(f"{member.name}: {why} (log {member.log})")
            self.screen.warn(self.failures[-1])
