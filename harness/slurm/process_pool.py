"""The processes that a supervisor keeps: how each is started, ended, and watched."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError, Interrupted, RunError
from harness.slurm import client as scheduler
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import Slot, needs_steps, step_words
from harness.system.console import Console
from harness.system.signals import StopRequest

POLL_S = 0.2
SAVE_S = 60.0  # that members have to save
AGAIN = 76  # the exit code of a worker that wants to be started anew


@dataclass
class ManagedProcess:
    """A process of the crew."""

    name: str
    place: Slot | None  # None for the chief
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    started_s: float = 0.0
    num_starts: int = 0
    num_failures: int = 0  # by itself, one after another
    noted_start: int = 0  # whose failure was counted
    not_before_s: float = 0.0  # to start it again
    seen: object = None  # the last sign of progress
    seen_s: float = 0.0
    retired: bool = False  # there was nothing more to do for it
    in_step: bool = False

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def code(self) -> int | None:
        """How it ended, None while it runs."""
        return self.process.poll() if self.process else None

    def start(self, words: Sequence[str]) -> None:
        """Start it, its output at the end of its log; it ends when this process does."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - a list of words, no shell
                words,
                # A pipe that nobody writes to: its end is this process's end.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is this process's to pass on
            )
        self.started_s = self.seen_s = time.monotonic()
        self.num_starts += 1
        self.retired = False

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal; srun passes it on."""
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def kill(self) -> None:
        """End it at once, wherever it is."""
        if self.in_step:
            _kill_step(self.name)
        self.tell(signal.SIGKILL)

    def last_words(self) -> str:
        """The last line of its log that says something."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            said = [line for line in lines if line.strip()]
            if said:
                return said[-1].removeprefix("harness: ").strip()
        return f"it ended with exit code {self.code}"


def ask_to_save(members: Iterable[ManagedProcess], number: signal.Signals) -> None:
    """Have those that are alive save and end, and give them the time for it."""
    at_work = [member for member in members if member.alive]
    for member in at_work:
        member.tell(number)
    wait_for(lambda: not any(member.alive for member in at_work), SAVE_S)


def end_all(members: Iterable[ManagedProcess]) -> None:
    """End those that are alive at once; no process is left then."""
    members = list(members)
    for member in members:
        if member.alive:
            member.kill()
    for member in members:
        if member.process:
            member.process.wait()


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until the condition holds, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _kill_step(name: str) -> None:
    allocation = SlurmEnvironment.from_environment()
    job = allocation.job_id if allocation else ""
    with contextlib.suppress(InputError, RunError):
        for line in scheduler.ask(
            "squeue", "--steps", f"--jobs={job}", "--noheader", "--format=%i %j"
        ).splitlines():
            step, _, step_name = line.strip().partition(" ")
            if step_name == name:
                scheduler.ask("scancel", "--signal=KILL", step)


@dataclass(frozen=True)
class Task:
    """A run that is to be made."""

    name: str  # unique, such as lstm-seed1
    words: Sequence[str]  # the command
    log: Path  # what it prints


def child_words(*words: str) -> list[str]:
    """The command of a `harness …` that ends with the process that started it."""
    return [sys.executable, "-m", "harness", "--exit-with-parent", *words]


class ProcessPool:
    """Runs tasks, as many at a time as there are places; no process is left when it ends."""

    def __init__(
        self,
        tasks: Sequence[Task],
        places: Sequence[Slot],
        allocation: SlurmEnvironment | None,
        console: Console,
    ) -> None:
        self.waiting, self.free = list(tasks), list(places)
        self.num_tasks, self.num_done = len(tasks), 0
        self.steps = needs_steps(allocation)
        self.console, self.stop = console, StopRequest()
        self.at_work: dict[str, ManagedProcess] = {}
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

    def _start(self, task: Task, place: Slot) -> None:
        member = ManagedProcess(task.name, place, task.log, in_step=self.steps)
        variables = {**place.variables(), "HARNESS_LOG": str(task.log.absolute())}
        words = ["env", *(f"{name}={value}" for name, value in variables.items())]
        words += task.words
        member.start([*step_words(place, task.name), *words] if self.steps else words)
        self.at_work[task.name] = member
        self.console.info(f"{task.name}: begins, log {task.log}")

    def _note_end(self, member: ManagedProcess) -> None:
        code = member.code
        if code == 0:
            self.num_done += 1
            self.console.info(f"{member.name}: done, {self.num_done} of {self.num_tasks}")
        elif code == InputError.exit_code:
            raise InputError(f"{member.name}: {member.last_words()}")
        elif code == Interrupted.exit_code:
            raise Interrupted(f"a signal to {member.name}")
        else:
            by_signal = code is not None and code < 0
            why = f"was ended by signal {-(code or 0)}" if by_signal else member.last_words()
            self.failures.append(f"{member.name}: {why} (log {member.log})")
            self.console.warning(self.failures[-1])
