"""The processes of a sweep: where each worker is put, how it is started, ended, and watched."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import scheduler
from harness.cluster import Allocation, given_cpus, given_gpus, job_nodes, visible_gpus
from harness.errors import InputError, RunError
from harness.sweep import Sweep

MAX_WORKERS = 1000
AGAIN = 76  # the exit code of a worker that wants to be started anew


@dataclass(frozen=True)
class Place:
    """Where a worker runs: a GPU of a node, or some of its CPUs."""

    node: str | None  # as Slurm names it, None for this machine without Slurm
    gpu: int | None  # its place among those given on the node
    threads: int


def places(
    allocation: Allocation | None,
    num_workers: int | None,
    workers_per_gpu: int,
    devices: str | None,
) -> list[Place]:
    """One place for each worker, spread over nodes and GPUs.

    Args:
        allocation: the Slurm job, if this is one.
        num_workers: how many, by default all that there is room for.
        workers_per_gpu: how many share a GPU.
        devices: `cpu` leaves GPUs alone.

    Raises:
        InputError: if that is more than the allocation holds.
    """
    nodes: Sequence[str | None] = job_nodes(allocation) if allocation else [None]
    cpus = given_cpus(allocation)
    gpus = (given_gpus(allocation) if allocation else visible_gpus()) or 0
    if devices == "cpu":
        gpus = 0
    if workers_per_gpu > 1 and not gpus:
        raise InputError(
            f"--workers-per-gpu {workers_per_gpu}: there is no GPU here; leave it out, or say how "
            "many by --workers"
        )
    room = len(nodes) * (gpus * workers_per_gpu if gpus else cpus)
    wanted = num_workers or room
    if wanted > MAX_WORKERS:
        raise InputError(f"--workers {wanted}: should be {MAX_WORKERS} at most")
    if (allocation or gpus) and wanted > room:
        what = f"{gpus} GPUs" if gpus else f"{cpus} CPUs"
        more = " or raise --workers-per-gpu" if gpus else ""
        raise InputError(
            f"--workers {wanted}: {len(nodes)} node{'s' if len(nodes) > 1 else ''} with {what} "
            f"hold {room}; ask for fewer,{more} or for a larger allocation"
        )
    on_a_node = -(-wanted // len(nodes))
    threads = max(1, cpus // on_a_node)
    return [
        Place(nodes[i % len(nodes)], (i // len(nodes)) % gpus if gpus else None, threads)
        for i in range(wanted)
    ]


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


def step_words(place: Place, name: str) -> list[str]:
    """`srun` for one task on a place's node, which shares the job's GPUs with the other steps."""
    where = [f"--nodelist={place.node}"] if place.node else []
    return [
        *("srun", "--overlap", "--nodes=1", "--ntasks=1", *where),
        *(f"--cpus-per-task={place.threads}", f"--job-name={name}", "--export=ALL", "--quiet"),
    ]


def needs_steps(allocation: Allocation | None) -> bool:
    """Whether workers are job steps. Without srun, as in a container, they are children.

    Raises:
        InputError: if there are several nodes, which only srun reaches.
    """
    if allocation is None:
        return False
    if scheduler.has_client("srun"):
        return True
    if allocation.num_nodes > 1:
        raise InputError(
            "srun: is not on the PATH, and without it a search uses one node; ask for --nodes=1"
        )
    return False


def _kill_step(name: str) -> None:
    job = os.environ.get("SLURM_JOB_ID", "")
    with contextlib.suppress(InputError, RunError):
        for line in scheduler.ask(
            "squeue", "--steps", f"--jobs={job}", "--noheader", "--format=%i %j"
        ).splitlines():
            step, _, step_name = line.strip().partition(" ")
            if step_name == name:
                scheduler.ask("scancel", "--signal=KILL", step)
