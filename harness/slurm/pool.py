"""Slots on nodes, GPUs and CPUs, and the processes in them: started, signalled, ended."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from harness.errors import InputError, Interrupted, RunError
from harness.slurm import client
from harness.slurm.environment import (
    SlurmEnvironment,
    given_cpus,
    given_gpus,
    given_memory_gb,
    visible_gpus,
)
from harness.system import gpu
from harness.system.console import Console, echo, is_error, strip_prefix
from harness.system.processes import (
    StopRequest,
    available_gb,
    memory_limit_gb,
    own_code_first,
    total_memory_gb,
)

MAX_WORKERS = 1000
GPU_INDEX = "HARNESS_GPU"  # of a process's slot, among those that it sees on its node


def usable_memory_gb(allocation: SlurmEnvironment | None) -> float:
    """The memory that this process and its children may take here, in GB."""
    limits = (total_memory_gb(), available_gb(), memory_limit_gb(), given_memory_gb(allocation))
    return min(limit for limit in limits if limit is not None)


@dataclass(frozen=True)
class Slot:
    """Where a worker runs: a GPU of a node, or some of its CPUs."""

    node: str | None  # as Slurm names it, None for this machine without Slurm
    gpu: int | None  # its index among those given on the node
    threads: int  # its share of the CPUs
    cpus: int  # given on the node, shared by all its workers

    def variables(self) -> dict[str, str]:
        """The environment variables that keep a process of ours in its slot."""
        variables = {"HARNESS_CPUS": str(self.threads)}
        if self.gpu is not None:
            variables[GPU_INDEX] = str(self.gpu)
        return variables


def take_own_gpu() -> None:
    """Leave this process only the GPU of its slot, before CUDA is started.

    The slot has the GPU's index alone, since every node has a list of its own.
    """
    index = os.environ.pop(GPU_INDEX, "")
    if index.isdigit():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_name(int(index))


def gpu_name(index: int) -> str:
    """A GPU as CUDA_VISIBLE_DEVICES names it, by its index among those that are visible here."""
    listed = gpu.visible_names(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return listed[index] if index < len(listed) else str(index)


def num_in_memory(allocation: SlurmEnvironment | None, process_gb: float) -> int:
    """How many processes of so much memory an allocation, or this machine, holds; one at least."""
    num_nodes = allocation.num_nodes if allocation else 1
    return num_nodes * max(1, int(usable_memory_gb(allocation) / process_gb))


def allocate_slots(
    allocation: SlurmEnvironment | None,
    num_workers: int | None,
    *,
    workers_per_gpu: int = 1,
    option: str = "--workers-per-gpu",
    devices: str | None = None,
    at_most: int = MAX_WORKERS,
) -> list[Slot]:
    """One slot for each worker, spread over nodes and GPUs.

    Several single-threaded workers achieve far more than one with all CPUs, since the operations
    of a recurrent network are too small to be divided.

    Args:
        num_workers: how many; by default one per GPU or CPU.
        workers_per_gpu: how many share a GPU.
        option: by which a user says so, for messages.
        devices: `cpu` leaves GPUs alone.
        at_most: the number of tasks, or what `num_in_memory` allows.

    Raises:
        InputError: if that is more than the allocation holds.
    """
    nodes: Sequence[str | None] = client.job_nodes(allocation) if allocation else [None]
    cpus = given_cpus(allocation)
    gpus = (given_gpus(allocation) if allocation else visible_gpus()) or 0
    if devices == "cpu":
        gpus = 0
    if workers_per_gpu > 1 and not gpus:
        raise InputError(
            f"{option} {workers_per_gpu}: there is no GPU here; leave it out, or say how "
            "many by --workers"
        )
    room = len(nodes) * (gpus * workers_per_gpu if gpus else cpus)
    wanted = num_workers or room
    if wanted > MAX_WORKERS:
        raise InputError(f"--workers {wanted}: should be {MAX_WORKERS} at most")
    if (allocation or gpus) and wanted > room:
        what = f"{gpus} GPUs" if gpus else f"{cpus} CPUs"
        more = f", or raise {option}" if gpus else ""
        raise InputError(
            f"--workers {wanted}: {len(nodes)} node{'s' if len(nodes) > 1 else ''} with {what} "
            f"hold {room}; ask for fewer or for a larger allocation{more}"
        )
    wanted = min(wanted, at_most)
    threads = max(1, cpus // -(-wanted // len(nodes)))
    return [
        Slot(nodes[i % len(nodes)], (i // len(nodes)) % gpus if gpus else None, threads, cpus)
        for i in range(wanted)
    ]


def srun_args(slot: Slot, name: str) -> list[str]:
    """`srun` for one task on a slot's node, which shares the job's GPUs with the other steps.

    It shares all CPUs too, since overlapping steps would each get the first ones. Without --mem,
    srun refuses a second variable for memory, which the session that called sbatch may have left.
    """
    nodelist = [f"--nodelist={slot.node}"] if slot.node else []
    return [
        *("srun", "--overlap", "--nodes=1", "--ntasks=1", *nodelist, "--cpu-bind=none", "--mem=0"),
        *(f"--cpus-per-task={slot.cpus}", f"--job-name={name}", "--export=ALL", "--quiet"),
    ]


def needs_steps(allocation: SlurmEnvironment | None) -> bool:
    """Whether workers run as job steps. Without srun, as in a container, they are child processes.

    Raises:
        InputError: if there are several nodes, which only srun can reach.
    """
    if allocation is None:
        return False
    if client.has_client("srun"):
        return True
    if allocation.num_nodes > 1:
        raise InputError(
            "srun: is not on the PATH, and without it all processes are on one node; ask for "
            "--nodes=1"
        )
    return False


# Processes

POLL_S = 0.2
LOOK_S = 2.0  # between two looks for tasks that a user cancels
# For processes to save after a signal: below the 90 s of a time limit's warning, and longer than
# their own watchdog takes.
SAVE_S = 75.0


def _start(args: Sequence[str], stdout: IO[bytes] | int) -> "subprocess.Popen[bytes]":
    """A process that ends when this one does."""
    return subprocess.Popen(  # noqa: S603 - a list of arguments, no shell
        args,
        env=own_code_first(),
        stdin=subprocess.PIPE,  # never written to: its end of file is this process's end
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on
    )


@dataclass(eq=False)
class ManagedProcess:
    """A process by its name: may be started again after its end, with the same log."""

    name: str  # unique in its pool
    slot: Slot | None  # None for a process that is always a child, never a job step
    log: Path
    popen: "subprocess.Popen[bytes] | None" = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.popen is not None and self.popen.poll() is None

    @property
    def code(self) -> int | None:
        """Its exit code, below 0 if a signal ended it, None before that."""
        return self.popen.poll() if self.popen else None

    def start(self, args: Sequence[str]) -> None:
        """Start it, with its output appended to its log; it ends when this process does."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.popen = _start(args, log)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, which srun passes on; SIGKILL ends only srun, see `ProcessPool.kill`.

        A process that has ended is left alone.
        """
        if self.popen:
            with contextlib.suppress(ProcessLookupError):
                self.popen.send_signal(number)

    def last_line(self) -> str:
        """The last line of its own in its log, else its exit code in words.

        As a job step it has a line of srun's below, which only repeats the exit code.
        """
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            filled = [line for line in lines if line.strip()]
            if own := [line for line in filled if not line.startswith("srun: ")] or filled:
                return strip_prefix(own[-1])
        return f"it ended with exit code {self.code}"


class ProcessPool:
    """Processes of which none is left at the end of the `with` block."""

    def __init__(self, allocation: SlurmEnvironment | None) -> None:
        self.processes: list[ManagedProcess] = []
        self._allocation = allocation
        self._in_steps = needs_steps(allocation)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(self.processes)
        for process in self.processes:
            if process.popen:
                process.popen.wait()

    def start(self, process: ManagedProcess, args: Sequence[str]) -> None:
        """Start a process, again if it has ended; in a job step of its slot's node under Slurm."""
        if process not in self.processes:
            self.processes.append(process)
        if self._in_steps and process.slot:
            args = [*srun_args(process.slot, process.name), *args]
        process.start(args)

    def ask_to_save(
        self, processes: Sequence[ManagedProcess], number: signal.Signals, wait_s: float = SAVE_S
    ) -> None:
        """Send processes a signal to save and end, and wait for that, up to `wait_s` seconds."""
        for process in processes:
            if process.alive:
                in_step = self._in_steps and process.slot
                # At a TERM srun would kill its step at once; it passes USR2 on.
                process.send_signal(signal.SIGUSR2 if in_step else number)
        wait_for(lambda: not any(process.alive for process in processes), wait_s)

    def kill(self, processes: Sequence[ManagedProcess]) -> None:
        """End processes at once, on whatever node they are."""
        alive = [process for process in processes if process.alive]
        if self._in_steps:
            self._kill_steps({process.name for process in alive if process.slot})
        for process in alive:
            process.send_signal(signal.SIGKILL)

    def _kill_steps(self, names: set[str]) -> None:
        if not names or not self._allocation:
            return
        with contextlib.suppress(InputError, RunError):
            listed = client.ask(
                *("squeue", "--steps", f"--jobs={self._allocation.own_id}"),
                *("--noheader", "--format=%i %j"),
            )
            own = (self._allocation.own_id, self._allocation.job_id)  # not those of an array
            pairs = [line.strip().partition(" ") for line in listed.splitlines()]
            if steps := [
                step for step, _, name in pairs if name in names and step.partition(".")[0] in own
            ]:
                client.ask("scancel", "--signal=KILL", *steps)


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait until the condition holds, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_S)


# Independent tasks


@dataclass(frozen=True)
class Task:
    """A command to be run once."""

    name: str  # unique, such as lstm-seed1
    args: Sequence[str]
    log: Path  # of its output
    cancel_file: Path | None = None  # while it is there, the task alone is ended or not begun

    @property
    def cancelled(self) -> bool:
        """Whether a user cancels this task."""
        path = self.cancel_file  # on a disk that may drop out for a while
        return path is not None and os.path.exists(path)  # noqa: PTH110 - never raises


def child_args(*args: str) -> list[str]:
    """The command of a `harness …` that ends with the process that started it."""
    return [sys.executable, "-m", "harness", "--exit-with-parent", *args]


def run_tasks(
    tasks: Sequence[Task],
    slots: Sequence[Slot],
    *,
    allocation: SlurmEnvironment | None,
    console: Console,
) -> None:
    """Run tasks, as many at a time as there are slots. One that fails stops no other.

    Raises:
        InputError: a task's input was refused, which ends the others too.
        Interrupted: a signal came; the tasks that ran have saved and can go on.
        RunError: some tasks failed: which, and why.
    """
    waiting, free, num_done = list(tasks), list(slots), 0
    failures: list[str] = []
    by_name, cancelled = {task.name: task for task in tasks}, set[str]()
    looked_s = 0.0
    stop = StopRequest()
    stop.listen()
    with ProcessPool(allocation) as pool:
        try:
            while waiting or pool.processes:
                stop.check()
                while waiting and free:
                    task = waiting.pop(0)
                    if task.cancelled:
                        console.info(f"{task.name}: cancelled, does not start")
                        continue
                    slot = free.pop(0)
                    variables = {**slot.variables(), "HARNESS_LOG": str(task.log.absolute())}
                    settings = [f"{name}={value}" for name, value in variables.items()]
                    process = ManagedProcess(task.name, slot, task.log)
                    pool.start(process, ["env", *settings, *task.args])
                    console.info(f"{task.name}: starts, log {task.log}")
                if time.monotonic() - looked_s > LOOK_S:
                    looked_s = time.monotonic()
                    for process in pool.processes:
                        if process.name not in cancelled and by_name[process.name].cancelled:
                            cancelled.add(process.name)
                            # It saves and ends; at a TERM srun would kill its step at once.
                            process.send_signal(signal.SIGUSR2)
                for process in [each for each in pool.processes if not each.alive]:
                    pool.processes.remove(process)
                    free += [process.slot] if process.slot else []
                    if process.code and process.name in cancelled:
                        console.info(f"{process.name}: cancelled")
                    elif failure := _failure(process):
                        failures.append(failure)
                        console.warning(failure)
                    else:
                        num_done += 1
                        console.info(f"{process.name}: done, {num_done} of {len(tasks)}")
                time.sleep(POLL_S)
        except Interrupted:
            at_work = [process for process in pool.processes if process.alive]
            pool.ask_to_save(at_work, stop.signal or signal.SIGTERM)
            if at_work and all(process.code == RunError.exit_code for process in at_work):
                # Such as that each was requeued too often without a step: so was the job.
                raise RunError(f"{at_work[0].name}: {at_work[0].last_line()}") from None
            raise
        finally:
            pool.ask_to_save(pool.processes, stop.signal or signal.SIGTERM)
    if failures:
        raise RunError(f"{len(failures)} of {len(tasks)}: {'; '.join(failures)}")


def _failure(process: ManagedProcess) -> str:
    """Why a task failed, empty if it did not.

    Raises:
        InputError, Interrupted: if it ended in a way that ends all tasks.
    """
    code = process.code
    if code == 0:
        return ""
    if code == InputError.exit_code:
        raise InputError(f"{process.name}: {process.last_line()}")
    if code == Interrupted.exit_code:
        raise Interrupted(f"a signal to {process.name}")
    by_signal = code is not None and code < 0
    why = f"was ended by signal {-(code or 0)}" if by_signal else process.last_line()
    return f"{process.name}: {why} (log {process.log})"


# A command


def run_printed(*args: str) -> None:
    """Run a `harness …`, print its lines here, and raise what it ended with.

    The line that says why it ended is raised and not printed.

    Raises:
        InputError, Interrupted, RunError: with its last line.
        KeyboardInterrupt: once the command, which gets the signal too, has saved and ended.
    """
    process = _start(child_args(*args), subprocess.PIPE)
    with process:
        try:
            last = _print_lines(process)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                _print_lines(process)
            finally:
                process.kill()  # if it was pressed again; one that has ended is left alone
            raise
        except BaseException:
            process.kill()
            raise
    code = process.returncode
    if code == InputError.exit_code:
        raise InputError(last)
    if code == Interrupted.exit_code:
        raise Interrupted(last)
    if code:
        raise RunError(last if code > 0 else f"harness {args[0]}: was ended by signal {-code}")


def _print_lines(process: "subprocess.Popen[bytes]") -> str:
    """Print what a process writes until it ends; returns its last line."""
    last, held = "", ""
    for content in process.stdout or ():
        line = content.decode(errors="replace")
        if message := strip_prefix(line):
            if held:  # it was not the last one
                echo(held)
            last, held = message, message if is_error(line) else ""
            if not held:
                echo(message)
    if held and process.wait() == 0:
        echo(held)
    return last
