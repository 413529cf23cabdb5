"""Runs a command's processes until the search ends: a proposer, and a worker per GPU or CPU slot.

A proposer chooses the values of the trials, which the workers train. The pool restarts a process
that ends with an error. A command fails after 30 failures of one process, if no worker of the
search reported a trial's result in between. Three failures are enough if harness itself raised the
last error, and neither the disk nor srun caused this error.
"""

import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.errors import InputError, NodeFault, RunError
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.pool import SAVE_S, ManagedProcess, ProcessPool, Slot
from harness.system.console import Console
from harness.system.files import is_said_of_disk
from harness.system.processes import STOPPING
from harness.tuning.protocol import MAX_ATTEMPTS

DISK_CODE, NODE_FAULT_CODE = 74, 77  # a worker's exit codes for a disk error and a faulty node
ERRORS: dict[int, Callable[[str], Exception]] = {
    RunError.exit_code: RunError,
    InputError.exit_code: InputError,
    NODE_FAULT_CODE: partial(NodeFault, will_requeue=True),
}
# A command fails after this number of consecutive failures of one process: MAX_ERRORS if harness
# itself raised the last error, and neither the disk nor srun caused this error; else MAX_FAILURES.
# MAX_FAILURES is large, because Slurm's controller or the disk with the Python environment may be
# unavailable for minutes. MAX_FAILURES exceeds MAX_ATTEMPTS, so a trial that kills each of its
# workers fails before the command fails.
MAX_ERRORS, MAX_FAILURES = 3, MAX_ATTEMPTS + 5
PAUSE_S = 2.0  # pause before a restart, multiplied by the number of consecutive failures


@dataclass(frozen=True)
class WorkerRequest:
    """The user's requests for a command's workers: number, devices and folder of the data."""

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
        """Create a pool, but start no process; the names of all processes begin with `name`."""
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
            return [*args, f"--ahead={2 * len(self.workers) + 1}"]
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
