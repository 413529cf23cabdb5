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
from harness.slurm import client
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import Slot, needs_steps, srun_args
from harness.system.console import Console
from harness.system.signals import StopRequest

POLL_S = 0.2
SAVE_S = 60.0  # that processes have to save
AGAIN = 76  # the exit code of a worker that wants to be started anew


@dataclass
class ManagedProcess:
    """A process of the crew."""

    name: str
    slot: Slot | None  # None for the chief
    log: Path
    popen: "subprocess.Popen[bytes] | None" = None
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
        return self.popen is not None and self.popen.poll() is None

    @property
    def code(self) -> int | None:
        """How it ended, None while it runs."""
        return self.popen.poll() if self.popen else None

    def start(self, args: Sequence[str]) -> None:
        """Start it, its output at the end of its log; it ends when this process does."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(  # noqa: S603 - a list of arguments, no shell
                args,
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
        if self.popen:
            with contextlib.suppress(ProcessLookupError):
                self.popen.send_signal(number)

    def kill(self) -> None:
        """End it at once, wherever it is."""
        if self.in_step:
            _kill_step(self.name)
        self.tell(signal.SIGKILL)

    def last_line(self) -> str:
        """The last line of its log that says something."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            said = [line for line in lines if line.strip()]
            if said:
                return said[-1].removeprefix("harness: ").strip()
        return f"it ended with exit code {self.code}"


def ask_to_save(processes: Iterable[ManagedProcess], number: signal.Signals) -> None:
    """Have those that are alive save and end, and give them the time for it."""
    at_work = [process for process in processes if process.alive]
    for process in at_work:
        process.tell(number)
    wait_for(lambda: not any(process.alive for process in at_work), SAVE_S)


def end_all(processes: Iterable[ManagedProcess]) -> None:
    """End those that are alive at once; no process is left then."""
    processes = list(processes)
    for process in processes:
        if process.alive:
            process.kill()
    for process in processes:
        if process.popen:
            process.popen.wait()


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until the condition holds, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _kill_step(name: str) -> None:
    allocation = SlurmEnvironment.from_environment()
    job = allocation.job_id if allocation else ""
    with contextlib.suppress(InputError, RunError):
        for line in client.ask(
            "squeue", "--steps", f"--jobs={job}", "--noheader", "--format=%i %j"
        ).splitlines():
            step, _, step_name = line.strip().partition(" ")
            if step_name == name:
                client.ask("scancel", "--signal=KILL", step)


@dataclass(frozen=True)
class Task:
    """A run that is to be made."""

    name: str  # unique, such as lstm-seed1
    args: Sequence[str]  # the command
    log: Path  # what it prints


def child_args(*args: str) -> list[str]:
    """The command of a `harness …` that ends with the process that started it."""
    return [sys.executable, "-m", "harness", "--exit-with-parent", *args]


class ProcessPool:
    """Runs tasks, as many at a time as there are slots; no process is left when it ends."""

    def __init__(
        self,
        tasks: Sequence[Task],
        slots: Sequence[Slot],
        allocation: SlurmEnvironment | None,
        console: Console,
    ) -> None:
        self.waiting, self.free = list(tasks), list(slots)
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
                    process = self.at_work.pop(name)
                    self._note_end(process)
                    assert process.slot  # noqa: S101 - it was given one
                    self.free.append(process.slot)
                time.sleep(POLL_S)
        finally:
            ask_to_save(self.at_work.values(), self.stop.signal or signal.SIGTERM)
            end_all(self.at_work.values())
        if self.failures:
            raise RunError(f"{len(self.failures)} of {self.num_tasks}: {'; '.join(self.failures)}")

    def _start(self, task: Task, slot: Slot) -> None:
        process = ManagedProcess(task.name, slot, task.log, in_step=self.steps)
        variables = {**slot.variables(), "HARNESS_LOG": str(task.log.absolute())}
        args = ["env", *(f"{name}={value}" for name, value in variables.items())]
        args += task.args
        process.start([*srun_args(slot, task.name), *args] if self.steps else args)
        self.at_work[task.name] = process
        self.console.info(f"{task.name}: begins, log {task.log}")

    def _note_end(self, process: ManagedProcess) -> None:
        code = process.code
        if code == 0:
            self.num_done += 1
            self.console.info(f"{process.name}: done, {self.num_done} of {self.num_tasks}")
        elif code == InputError.exit_code:
            raise InputError(f"{process.name}: {process.last_line()}")
        elif code == Interrupted.exit_code:
            raise Interrupted(f"a signal to {process.name}")
        else:
            by_signal = code is not None and code < 0
            why = f"was ended by signal {-(code or 0)}" if by_signal else process.last_line()
            self.failures.append(f"{process.name}: {why} (log {process.log})")
            self.console.warning(self.failures[-1])
