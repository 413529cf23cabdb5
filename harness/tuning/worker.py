"""Starts, restarts and runs the processes of a search: workers, which train trials, and a proposer.

A command has one proposer, and one worker for each slot (a GPU, or some CPUs of a node). The
proposer runs KerasTuner's oracle and creates the trials' folders with their values. The proposer is
a separate process, so a slow proposal delays no worker, and KerasTuner's memory is freed after the
last proposal. A search may have several proposers, and a killed proposer can be restarted, because
all proposers make the same proposals, which depend only on the search and its results.

`python -m harness.tuning.worker SWEEP NAME` runs a worker or, with the option `--ahead N`, a
proposer. `WorkerPool` restarts a process that ends with an error.
"""

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.compute.device_errors import tell_death
from harness.compute.strategy import (
    describe_devices,
    import_tensorflow,
    num_own_gpus,
    parse_devices,
    title_of_devices,
)
from harness.errors import DiskError, InputError, Interrupted, NodeFault, RunError
from harness.job.search import GUIDED, SEARCH_FILE, SearchSpec, is_sweep
from harness.slurm.environment import SlurmEnvironment, given_cpus
from harness.slurm.pool import SAVE_S, ManagedProcess, ProcessPool, Slot, take_own_gpu
from harness.system import watchdog
from harness.system.console import Console, log, settle_output, take_any_text
from harness.system.files import is_of_disk, is_said_of_disk
from harness.system.processes import STOPPING, StopRequest, end_with_parent, process_space
from harness.system.resource_monitor import ResourceMonitor
from harness.system.stderr_filter import stand_guard
from harness.training.launch import dataset_of, may_use_gpus
from harness.tuning.disk import Disk, execute
from harness.tuning.protocol import BEAT_S, MAX_ATTEMPTS, Attempt, Trial, View, Worker, take_turns
from harness.tuning.schedule import Proposer, Schedule
from harness.tuning.sweep_dir import SweepDirectory

if TYPE_CHECKING:
    from harness.tuning.trial import Trials

DISK_CODE, NODE_FAULT_CODE = 74, 77  # a worker's exit codes for a disk error and a faulty node
ERRORS: dict[int, Callable[[str], Exception]] = {
    RunError.exit_code: RunError,
    InputError.exit_code: InputError,
    NODE_FAULT_CODE: partial(NodeFault, will_requeue=True),
}
# Variables of the process that proposes trials, which needs no GPU. Several threads would add
# numbers in a varying order, which would change the proposals.
OF_PROPOSER = ("OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", "CUDA_VISIBLE_DEVICES=")
# A command fails after this number of consecutive failures of one process: MAX_ERRORS if harness
# itself raised the last error, and neither the disk nor srun caused this error; else MAX_FAILURES.
# MAX_FAILURES is large, because Slurm's controller or the disk with the Python environment may be
# unavailable for minutes. MAX_FAILURES exceeds MAX_ATTEMPTS, so a trial that kills each of its
# workers fails before the command fails.
MAX_ERRORS, MAX_FAILURES = 3, MAX_ATTEMPTS + 5
PAUSE_S = 2.0  # pause before a restart, multiplied by the number of consecutive failures
LEAVE_S = 20.0  # longest wait for the last heartbeat to be written


# The processes of a command


@dataclass(frozen=True)
class WorkerRequest:
    """The user's requests for a command's workers: their number, their devices, and the data."""

    num_workers: int | None = None  # None for as many workers as devices and memory allow
    workers_per_gpu: int = 1
    devices: str | None = None
    data: Path | None = None


@dataclass(eq=False)
class WorkerProcess(ManagedProcess):
    """The process of a worker or of a proposer, with the number of its failures."""

    uuid: str = ""  # unique id of the current process
    num_failures: int = 0  # the number of failures since the search last accepted a result
    num_done: int = 0  # the search's number of accepted results at the last failure
    not_before_s: float | None = None  # earliest time of a restart; None while the process runs

    @property
    def is_done(self) -> bool:
        """Whether the process ended without an error, or was never started."""
        return self.popen is None or self.code == 0


class WorkerPool(ProcessPool):
    """The processes of a command, which are killed at the end of the `with` block."""

    def __init__(
        self,
        folder: Path,
        request: WorkerRequest,
        slots: Sequence[Slot],
        *,
        name: str,
        allocation: SlurmEnvironment | None,
        console: Console,
    ) -> None:
        """Create a pool, but start no process.

        The argument `name` is the prefix of the names of all processes in the pool.
        """
        super().__init__(allocation)
        self.folder, self.request, self.name, self.console = folder, request, name, console
        self.workers = [self._process(f"{name}-w{i}", slot) for i, slot in enumerate(slots)]
        self.proposer = self._process(f"{name}-proposer", None)
        self.everybody = [*self.workers, self.proposer]
        self._ended: set[str] = set()  # uuids of this pool's ended processes

    def _process(self, name: str, slot: Slot | None) -> WorkerProcess:
        return WorkerProcess(name, slot, self.folder / "workers" / f"{name}.log")

    def start_one(self, worker: WorkerProcess) -> None:
        """Start or restart a process."""
        self._ended.add(worker.uuid)
        worker.uuid = uuid.uuid4().hex
        self.start(worker, self._args(worker))
        worker.not_before_s = None

    def _args(self, worker: WorkerProcess) -> list[str]:
        slot, request = worker.slot, self.request
        args = [sys.executable, "-m", "harness.tuning.worker", str(self.folder), worker.name]
        if not slot:
            return ["env", *OF_PROPOSER, *args, f"--ahead={2 * len(self.workers) + 1}"]
        variables = [f"{name}={value}" for name, value in slot.variables().items()]
        devices = "cpu" if slot.gpu is None else request.devices
        options = {"--id": worker.uuid, "--devices": devices, "--data": request.data}
        args += [f"{name}={value}" for name, value in options.items() if value is not None]
        return ["env", *variables, *args]

    @property
    def ended(self) -> set[str]:
        """Return the uuids of this pool's workers that have ended."""
        return self._ended | {worker.uuid for worker in self.workers if not worker.alive}

    def tend(self, num_done: int) -> None:
        """Restart processes that ended with an error.

        Args:
            num_done: the number of trials in the whole search whose results are accepted.

        Raises:
            InputError, NodeFault, RunError: if a process failed too often; the message contains the
                last line of the process's log.
        """
        now_s = time.monotonic()
        for worker in self.everybody:
            if worker.alive or worker.is_done:
                continue
            if worker.not_before_s is None:
                self._note_end(worker, num_done)
                worker.not_before_s = now_s + PAUSE_S * worker.num_failures
            if now_s >= worker.not_before_s:
                self.start_one(worker)

    def _note_end(self, worker: WorkerProcess, num_done: int) -> None:
        code, line = worker.code or 0, worker.last_line()
        is_outage = code == DISK_CODE or line.startswith("srun: error") or is_said_of_disk(line)
        limit = MAX_ERRORS if code in ERRORS and not is_outage else MAX_FAILURES
        if num_done > worker.num_done:
            worker.num_failures = 0
        worker.num_done = num_done
        worker.num_failures += 1
        if code not in ERRORS:
            line = f"exit code {code}; last line: {line}"
        if worker.num_failures >= limit:
            message = f"worker {worker.name} failed {worker.num_failures} times: {line}"
            raise ERRORS.get(code, RunError)(message)
        self.console.warning(
            f"harness restarts worker {worker.name}, which ended unexpectedly: {line}"
        )

    def stop(self, wait_s: float = SAVE_S) -> None:
        """Let the workers save their trials and end; wait at most `wait_s` for their end."""
        self.ask_to_save(self.everybody, STOPPING[0], wait_s)


# A proposer


def schedule_of(search: SearchSpec, view: View) -> Schedule:
    """Return a `Schedule` with a new oracle and with the trials and results in `view`."""
    from harness.tuning.oracle import make_oracle

    return Schedule(
        make_oracle(search, view.known),
        num_trials=search.max_trials or 0,
        width=search.table.parallel if search.table.tuner in GUIDED else None,
        known=view.known,
        results=view.accepted,
    )


def propose(sweep: SweepDirectory, ahead: int) -> None:
    """Propose trials until all are proposed, or until the search is stopped.

    Raises:
        Interrupted: after a signal.
        InputError, RunError: if the oracle fails.
    """
    stop = StopRequest()
    stop.listen()
    search = sweep.search()
    import_tensorflow(SlurmEnvironment.from_environment(), threads=1)
    is_guided, view = search.table.tuner in GUIDED, View(Disk(sweep.folder, stop))
    begin = partial(schedule_of, search)
    proposer = Proposer(begin, search.table.trials, ahead=ahead, is_guided=is_guided, view=view)
    execute(take_turns(proposer.turn, view))


# A worker


async def train(trials: "Trials", worker: Worker, trial: Trial, k: int) -> Trial:
    """Train a trial while a thread writes heartbeats; return the trial with its result.

    If the attempt is no longer needed, this process sends itself a signal to stop.

    Raises:
        Interrupted: after a signal; the attempt has saved a checkpoint.
        OSError: if the file system fails.
        NodeFault: if the node or its GPU is faulty.
    """
    ended = threading.Event()

    def beat() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):  # the next heartbeat tries again
                is_needless = execute(worker.tick(trial.n, k, saved=trials.saved(trial.n, k)))
                if is_needless and not ended.is_set():
                    log(logging.INFO, f"trial {trial.n} continues in another process, or has ended")
                    os.kill(os.getpid(), signal.SIGUSR2)
                    return
            ended.wait(BEAT_S)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        return trials.run(trial, k)
    finally:
        ended.set()
        thread.join(LEAVE_S)


def work(sweep: SweepDirectory, arguments: argparse.Namespace) -> None:
    """Train trials until the search is over or stopped, or this process uses too much memory.

    Raises:
        Interrupted: after a signal; the current trial has saved a checkpoint.
        InputError, RunError: if this worker can't train any trial.
    """
    stop, console, allocation = StopRequest(), Console(), SlurmEnvironment.from_environment()
    stop.listen()
    threads, name = given_cpus(allocation), arguments.name
    # Read before the slow import of TensorFlow, so that a failing disk ends this process at once.
    search = sweep.search()
    dataset = dataset_of(sweep, search.job, arguments.data)
    import_tensorflow(allocation, threads, search.job)
    # Hide TensorFlow's warnings about retracing: every trial is traced anew.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    requested = parse_devices(arguments.devices) if arguments.devices else None
    from harness.compute.device_check import checked_strategy
    from harness.tuning.trial import Trials

    strategy = checked_strategy(requested, allocation, console)
    stop.check()
    stop.listen()  # again, because TensorFlow may have set another handler
    which = f" (GPU {os.environ.get('CUDA_VISIBLE_DEVICES')})" if num_own_gpus() else ""
    title = f"{title_of_devices(describe_devices(strategy), threads)}{which}"
    console.info(f"{title}; data: {dataset.title}; worker {name} on {socket.gethostname()}")
    monitor = ResourceMonitor(num_own_gpus(), threads)
    trials = Trials(sweep, search, dataset, strategy, console, monitor, stop)
    me = Attempt(worker=arguments.id, name=name, process=os.getpid(), space=process_space())
    view = View(Disk(sweep.folder, stop))
    act = partial(train, trials)
    worker = Worker(me, search.table.trials, view, act, must_renew=trials.has_grown)
    execute(take_turns(worker.turn, view))


def main(args: Sequence[str] | None = None) -> int:
    """Run a worker or a proposer; return the exit code."""
    parser = argparse.ArgumentParser(prog="harness.tuning.worker")
    parser.add_argument("sweep", type=lambda path: SweepDirectory(Path(path).absolute()))
    parser.add_argument("name", help="name of the process in logs")
    ahead = "propose trials while fewer than AHEAD trials wait for a worker"
    parser.add_argument("--ahead", type=int, help=ahead)
    parser.add_argument("--id", help="uuid of a worker")
    parser.add_argument("--devices")
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args(args)
    end_with_parent()
    take_any_text()
    try:
        take_own_gpu()
        if not is_sweep(arguments.sweep.folder):  # another node's files may become visible late
            path = arguments.sweep.path(SEARCH_FILE)
            raise DiskError(
                f"{path} is not visible on this machine; check that the shared disk is mounted and "
                "readable here"
            )
        if arguments.ahead is not None:
            propose(arguments.sweep, arguments.ahead)
            return 0
        if may_use_gpus(arguments.devices):
            stand_guard(tell_death)
        with watchdog.from_settings():
            work(arguments.sweep, arguments)
        return 0
    except (InputError, RunError, Interrupted) as end:
        log(logging.ERROR, " ".join(str(end).split()))
        if isinstance(end, NodeFault) and end.exit_code == Interrupted.exit_code:
            return NODE_FAULT_CODE
        return DISK_CODE if is_of_disk(end) else end.exit_code
    finally:
        settle_output()


if __name__ == "__main__":
    sys.exit(main())
