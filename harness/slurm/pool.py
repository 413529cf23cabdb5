"""Places workers in slots, and manages the processes in these slots.

A slot is the place of one worker: a GPU of a node, or some of the node's CPUs.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
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
from harness.slurm.resources import refused_options
from harness.system import gpu
from harness.system.console import Console, is_error, printable, strip_prefix
from harness.system.processes import StopRequest, memory_limit_gb, own_code_first

GPU_INDEX = "HARNESS_GPU"  # index of a slot's GPU among the visible GPUs of its node


def usable_memory_gb(allocation: SlurmEnvironment | None) -> float:
    """Return the GB of memory that this process and its children may use on this node."""
    import psutil  # imported here, because `harness --help` does not need it

    available_gb = psutil.virtual_memory().available / 1e9
    limits = (available_gb, memory_limit_gb(), given_memory_gb(allocation))
    return min(limit for limit in limits if limit is not None)


@dataclass(frozen=True)
class Slot:
    """The place of a worker: a GPU of a node, or some of the node's CPUs."""

    node: str | None  # the node's name; None outside of Slurm, where all slots are on this machine
    gpu: int | None  # index among the job's GPUs on the node
    threads: int  # number of CPUs that the worker uses
    cpus: int  # number of the job's CPUs on the node, which all workers share

    def variables(self) -> dict[str, str]:
        """Return the environment variables that keep a process in its slot."""
        variables = {"HARNESS_CPUS": str(self.threads)}
        if self.gpu is not None:
            variables[GPU_INDEX] = str(self.gpu)
        return variables


def take_own_gpu() -> None:
    """Hide all GPUs except the slot's GPU from this process; call this before CUDA starts.

    The slot stores an index, not the GPU's name: a GPU's name, such as its UUID, differs between
    nodes.

    Raises:
        InputError: if CUDA_VISIBLE_DEVICES names too few GPUs.
    """
    index = os.environ.pop(GPU_INDEX, "")
    if index.isdigit():
        gpu.names_of_job = gpu.visible_names(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_name(int(index))


def gpu_name(index: int) -> str:
    """Return a GPU's name in CUDA_VISIBLE_DEVICES, given its index among the visible GPUs.

    Raises:
        InputError: if CUDA_VISIBLE_DEVICES names no GPU with this index.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    listed = gpu.visible_names(visible)
    if listed and index >= len(listed):
        raise InputError(
            f"{GPU_INDEX}={index}: should be below {len(listed)}, the number of GPUs in "
            f"CUDA_VISIBLE_DEVICES={visible} on {socket.gethostname()}; "
            "start fewer workers, or unset CUDA_VISIBLE_DEVICES"
        )
    return listed[index] if listed else str(index)


def allocate_slots(
    allocation: SlurmEnvironment | None,
    num_workers: int | None,
    *,
    workers_per_gpu: int = 1,
    option: str = "--workers-per-gpu",
    devices: str | None = None,
    at_most: int = sys.maxsize,
    process_gb: float | None = None,
) -> list[Slot]:
    """Return one slot per worker, spread over nodes and GPUs.

    Several single-threaded workers are much faster than one worker with all CPUs: the operations of
    a recurrent network are too small to be divided among threads.

    Args:
        allocation: the Slurm job; None to use this machine.
        num_workers: the number of workers; by default `workers_per_gpu` per GPU, or one per CPU.
        workers_per_gpu: the number of workers that share a GPU.
        option: the name of the command-line option for `workers_per_gpu`, for error messages.
        devices: `cpu` to place all workers on CPUs; None to use GPUs if there are any.
        at_most: the largest number of slots.
        process_gb: the host memory in GB that a worker needs; limits the default of
            `num_workers`.

    Raises:
        InputError: if the nodes have no room for all workers, or if there is no GPU to share.
        RunError: if scontrol does not list the names of the nodes.
    """
    nodes: Sequence[str | None] = client.node_names(allocation) if allocation else [None]
    cpus = given_cpus(allocation)
    gpus = (given_gpus(allocation) if allocation else visible_gpus()) or 0
    # A job step gets its own CUDA_VISIBLE_DEVICES; a child process gets the variable of this one.
    if "CUDA_VISIBLE_DEVICES" in os.environ and len(nodes) == 1 and not needs_steps(allocation):
        gpus = min(gpus, visible_gpus())
    if devices == "cpu":
        gpus = 0
    if workers_per_gpu > 1 and not gpus:
        raise InputError(
            f"{option} {workers_per_gpu}: there is no GPU to share; use --workers instead"
        )
    room = len(nodes) * (gpus * workers_per_gpu if gpus else cpus)
    wanted = num_workers or room
    if (allocation or gpus) and wanted > room:
        what = f"{gpus} GPUs" if gpus else f"{cpus} CPUs"
        what += " each" if len(nodes) > 1 else ""
        more = f", or raise {option}" if gpus else ""
        raise InputError(
            f"--workers {wanted}: there is room for {room} on {len(nodes)} "
            f"node{'s' if len(nodes) > 1 else ''} with {what}; ask for fewer workers"
            f"{' or for a larger allocation' if allocation else ''}{more}"
        )
    if process_gb and not num_workers:
        per_node = int(usable_memory_gb(allocation) / process_gb)
        at_most = min(at_most, len(nodes) * max(1, per_node))
    wanted = min(wanted, at_most)
    threads = max(1, cpus // -(-wanted // len(nodes)))
    return [
        Slot(nodes[i % len(nodes)], (i // len(nodes)) % gpus if gpus else None, threads, cpus)
        for i in range(wanted)
    ]


def srun_args(slot: Slot, name: str) -> list[str]:
    """Return the srun command that runs a task on a slot's node, beside the job's other job steps.

    The command turns CPU binding off; otherwise all job steps would use the job's first CPUs.
    The command contains `--mem=0`, unless the site refuses this option. Without --mem, srun fails
    if Slurm's variables for memory per node and for memory per CPU are both set; the job may have
    inherited one of these variables from the shell that called sbatch.
    """
    nodelist = [f"--nodelist={slot.node}"] if slot.node else []
    memory = [] if "mem" in refused_options() else ["--mem=0"]
    return [
        *("srun", "--overlap", "--nodes=1", "--ntasks=1", *nodelist, "--cpu-bind=none", *memory),
        *(f"--cpus-per-task={slot.cpus}", f"--job-name={name}", "--export=ALL", "--quiet"),
    ]


def needs_steps(allocation: SlurmEnvironment | None) -> bool:
    """Whether workers run as job steps, each started by srun.

    Without srun, as in a container, workers run as child processes.

    Raises:
        InputError: if there are several nodes but no srun.
    """
    if allocation is None:
        return False
    if client.has_client("srun"):
        return True
    if allocation.num_nodes > 1:
        raise InputError(
            "srun: is not on the PATH, and only srun starts processes on other nodes; use --nodes=1"
        )
    return False


# Processes

POLL_S = 0.2
LOOK_S = 2.0  # seconds between two checks for cancelled tasks
# Seconds to wait until a process has saved after a signal. SAVE_S is less than 90, because Slurm
# warns a job 90 s before the time limit. SAVE_S is more than the default of HARNESS_STOP_S: a run
# that can't save ends HARNESS_STOP_S seconds after the signal.
SAVE_S = 75.0
KILL_S = 10.0  # seconds to wait until srun has killed its step


def _start(args: Sequence[str], stdout: IO[bytes] | int) -> "subprocess.Popen[bytes]":
    """Start a process that ends when this process ends."""
    return subprocess.Popen(  # noqa: S603 - a list of arguments, no shell
        args,
        env=own_code_first(),
        stdin=subprocess.PIPE,  # the child reads end of file when this process ends
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches only this process, which forwards it
    )


@dataclass(eq=False)
class ManagedProcess:
    """A named process with a log; the process can be restarted."""

    name: str  # unique in its pool
    slot: Slot | None  # None for a process that is never a job step
    log: Path
    popen: "subprocess.Popen[bytes] | None" = None
    begin: int = 0  # the size of the log at the start

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self.popen is not None and self.popen.poll() is None

    @property
    def code(self) -> int | None:
        """The exit code, negative after a signal; None if the process has not ended."""
        return self.popen.poll() if self.popen else None

    def start(self, args: Sequence[str]) -> None:
        """Start the process; append its output to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.begin = log.tell()
            self.popen = _start(args, log)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal if the process is running; srun forwards all signals but SIGKILL."""
        if self.popen:
            self.popen.send_signal(number)

    def last_line(self) -> str:
        """Return the last line since the start; without a line, a phrase with the exit code.

        Lines of srun are skipped because they only repeat the exit code.
        """
        with contextlib.suppress(OSError):
            lines = self.log.read_bytes()[self.begin :].decode(errors="replace").splitlines()
            filled = [line for line in lines if line.strip()]
            if own := [line for line in filled if not line.startswith("srun: ")] or filled:
                return strip_prefix(own[-1])
        return f"the process ended with exit code {self.code}"


class ProcessPool:
    """Processes that are killed at the end of the `with` block."""

    def __init__(self, allocation: SlurmEnvironment | None) -> None:
        self.processes: list[ManagedProcess] = []
        self._in_steps = needs_steps(allocation)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(self.processes)
        for process in self.processes:
            if process.popen:
                process.popen.wait()

    def start(self, process: ManagedProcess, args: Sequence[str]) -> None:
        """Start or restart a process; under Slurm, the process is a job step on the slot's node."""
        if process not in self.processes:
            self.processes.append(process)
        if self._in_steps and process.slot:
            args = [*srun_args(process.slot, process.name), *args]
        process.start(args)

    def ask_to_save(
        self, processes: Sequence[ManagedProcess], number: signal.Signals, wait_s: float = SAVE_S
    ) -> None:
        """Send processes a signal to save and end; wait at most `wait_s` seconds for their end."""
        for process in processes:
            if process.alive:
                in_step = self._in_steps and process.slot
                # srun forwards USR2 to its step; after TERM, srun would kill the step at once.
                process.send_signal(signal.SIGUSR2 if in_step else number)
        _wait(processes, wait_s)

    def kill(self, processes: Sequence[ManagedProcess]) -> None:
        """Kill processes on all nodes."""
        for process in processes:
            # At SIGTERM, srun kills its step; a killed srun would leave the step running.
            in_step = self._in_steps and process.slot
            process.send_signal(signal.SIGTERM if in_step else signal.SIGKILL)
        _wait(processes, KILL_S)
        for process in processes:
            process.send_signal(signal.SIGKILL)


def _wait(processes: Sequence[ManagedProcess], wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while any(process.alive for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_S)


# Independent tasks


@dataclass(frozen=True)
class Task:
    """A command that runs once."""

    name: str  # unique, such as lstm-seed1
    args: Sequence[str]
    log: Path
    cancel_file: Path | None = None  # a file whose existence cancels the task

    @property
    def cancelled(self) -> bool:
        """Whether a user has cancelled this task; False if the disk fails."""
        return self.cancel_file is not None and os.path.exists(self.cancel_file)  # noqa: PTH110


def child_args(*args: str) -> list[str]:
    """Return a `harness …` command that ends when its parent process ends."""
    return [sys.executable, "-m", "harness", "--exit-with-parent", *args]


def run_tasks(
    tasks: Sequence[Task],
    slots: Sequence[Slot],
    *,
    allocation: SlurmEnvironment | None,
    console: Console,
) -> None:
    """Run all tasks; each slot runs one task after another.

    If a task fails, the other tasks continue. If a task is interrupted, or refuses its input, all
    tasks end.

    Raises:
        InputError: if a task refused its input; the other tasks end too.
        Interrupted: if this process received a signal, or a task was interrupted. Before raising
            this error, the function asks the running tasks to save their state and end; the tasks
            can be continued later.
        RunError: if tasks failed; the message lists their names and the reasons.
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
                        console.info(f"{task.name}: was cancelled before it started")
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
                            process.send_signal(signal.SIGUSR2)  # not TERM: see `ask_to_save`
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
        finally:
            pool.ask_to_save(pool.processes, stop.signal or signal.SIGTERM)
    if failures:
        raise RunError(f"{len(failures)} of {len(tasks)} failed: {'; '.join(failures)}")


def _failure(process: ManagedProcess) -> str:
    """Return why a task failed; empty if it succeeded.

    Raises:
        InputError: if the task refused its input. The caller then ends all tasks.
        Interrupted: if the task was interrupted. The caller then ends all tasks.
    """
    if not (code := process.code):
        return ""
    if code == InputError.exit_code:
        raise InputError(f"{process.name}: {process.last_line()}")
    if code == Interrupted.exit_code:
        # The caller's remedy is for all tasks, so leave out the remedy of this task.
        reason, _, _ = process.last_line().partition("; continue with")
        raise Interrupted(f"{process.name} ({reason})")
    number = -code if code < 0 else code - 128  # srun's exit code is 128 + its task's signal
    ended = number in signal.valid_signals()
    why = f"was ended by signal {number}" if ended else process.last_line()
    if number == signal.SIGKILL:
        why += ", most likely out of memory; give the job more --mem"
    return f"{process.name}: {why} (log {process.log})"


# A command


def run_printed(*args: str) -> None:
    """Run a `harness …` command and print its lines.

    Raises:
        InputError, Interrupted, RunError: if the command fails. The command's exit code determines
            which error is raised. The message is the command's last line, or names the signal that
            ended the command.
        KeyboardInterrupt: after Ctrl-C, when the command has saved and ended.
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
                process.kill()  # after a second Ctrl-C
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
    """Print a process's lines, and return the last line.

    If the process fails, and its last line is an error, this line is not printed.
    """
    last, held = "", ""
    for content in process.stdout or ():
        line = content.decode(errors="replace")
        if message := strip_prefix(line):
            if held:  # an error that is not the last line
                _show(held)
            last, held = message, message if is_error(line) else ""
            if not held:
                _show(message)
    if held and process.wait() == 0:
        _show(held)
    return last


def _show(text: str) -> None:
    # The command continues if nobody reads this process's output, or if its disk is full.
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), flush=True)  # noqa: T201 - `echo` would end this process
