"""The processes that a supervisor keeps: how each is started, ended, and watched."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import scheduler
from harness.cluster import Allocation
from harness.errors import InputError, RunError
from harness.places import Place
from harness.sweep import Sweep

POLL_S = 0.2
SAVE_S = 60.0  # that members have to save
AGAIN = 76  # the exit code of a worker that wants to be started anew


@dataclass
class Member:
    """A process of the crew."""

    name: str
    place: Place | None  # None for the chief
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


def ask_to_save(members: Iterable[Member], number: signal.Signals) -> None:
    """Have those that are alive save and end, and give them the time for it."""
    at_work = [member for member in members if member.alive]
    for member in at_work:
        member.tell(number)
    wait_for(lambda: not any(member.alive for member in at_work), SAVE_S)


def end_all(members: Iterable[Member]) -> None:
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


def chief_words(sweep: Sweep, host: str, port: int) -> list[str]:
    """The command of the chief: a child of the supervisor, on its node."""
    words = [sys.executable, "-m", "harness.chief", str(sweep.folder)]
    return [*words, "--host", host, "--port", str(port)]


def worker_words(
    sweep: Sweep, name: str, place: Place, devices: str | None, data: Path | None
) -> list[str]:
    """The command of a worker."""
    words = [sys.executable, "-m", "harness.worker", str(sweep.folder), name]
    words += ["--threads", str(place.threads)]
    if place.gpu is not None:
        words += ["--gpu", str(place.gpu)]
    else:
        words += ["--devices", "cpu"]
    if devices and place.gpu is not None:
        words += ["--devices", devices]
    if data:
        words += ["--data", str(data)]
    return words


def _kill_step(name: str) -> None:
    allocation = Allocation.from_environment()
    job = allocation.job_id if allocation else ""
    with contextlib.suppress(InputError, RunError):
        for line in scheduler.ask(
            "squeue", "--steps", f"--jobs={job}", "--noheader", "--format=%i %j"
        ).splitlines():
            step, _, step_name = line.strip().partition(" ")
            if step_name == name:
                scheduler.ask("scancel", "--signal=KILL", step)
