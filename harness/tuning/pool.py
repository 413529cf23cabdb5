"""The processes of a command: a worker on each slot and a proposer, started again to the end.

A worker that was ended by a signal is started again, which does not count as a failure if it had
begun a trial. One that ends with an error can't train any: after three such ends, or 25 by a signal
before the first trial, with no trial accepted in between, the sweep ends with that error. One whose
trial makes no progress is killed, and so started again.
"""

import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.compute.memory import largest_gb
from harness.errors import InputError, Interrupted, NodeFault, RunError
from harness.files.plain_file import is_said_of_disk
from harness.search_space import SearchSpec
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import Slot, allocate_slots, num_in_memory
from harness.slurm.process_pool import SAVE_S, ManagedProcess, ProcessPool, wait_for
from harness.system.console import Console
from harness.system.signals import STOPPING
from harness.tuning.course import LONGEST_LOOK_S, Heard

# Exit codes: asks to be started again; the node is at fault; the search is stopped.
RESTART_CODE, NODE_FAULT_CODE, STOPPED_CODE = 76, 77, 78
STALL_S = 900.0  # compiling and validating take a while and show no progress
# On a GPU whose machine code TensorFlow's package lacks, the first use of a kernel compiles it.
START_STALL_S = 3600.0  # before the first step on a GPU; TensorFlow warns of 30 minutes
MAX_FAILURES, AGAIN_S = 3, 2.0  # of a worker in a row, and seconds before the next start
MAX_KILLS = 25  # of a worker in a row before its first trial, as of a trial's workers
MAX_IN_OUTAGE, OUTAGE_AGAIN_S = 30, 10.0
LEAVE_S = 30.0  # for the workers to end once the search is over


@dataclass(frozen=True)
class WorkerRequest:
    """The workers that a command asks for."""

    num_workers: int | None = None  # by default one for each GPU or CPU
    workers_per_gpu: int = 1
    devices: str | None = None
    data: Path | None = None
    stall_s: float = STALL_S

    def slots(
        self,
        allocation: SlurmEnvironment | None,
        search: SearchSpec,
    ) -> list[Slot]:
        """A slot for each worker, by default as many as hold the search's largest trial.

        Args:
            allocation: the Slurm job, if this is one.
            search: whose trials they train.

        Raises:
            InputError: if the allocation has no room for so many.
        """
        return allocate_slots(
            allocation,
            self.num_workers,
            workers_per_gpu=self.workers_per_gpu,
            devices=self.devices,
            at_most=self.num_workers or num_in_memory(allocation, largest_gb(search, self.devices)),
        )

    def limit_s(self, heard: Heard) -> float:
        """The time for which a worker's trial may make no progress."""
        step = heard.beat.step if heard.beat else 0
        if step > 1 or not heard.attempt.has_gpu:  # the first is counted before it is taken
            return self.stall_s
        return max(self.stall_s, START_STALL_S)


@dataclass(eq=False)
class WorkerProcess(ManagedProcess):
    """A worker or a proposer, and what the pool remembers of it."""

    uuid: str = ""  # of the process that runs now
    started_s: float = 0.0
    is_retired: bool = False  # the sweep is over for it
    failure_noted: bool = False  # of the last start
    num_failures: int = 0  # in a row
    not_before_s: float = 0.0  # to start it again
    step: tuple[str, int, int] = ("", 0, 0)  # process, trial and step that were seen last
    still_s: float = 0.0  # since it was seen first
    looked_s: float = 0.0  # when it was looked after last
    has_begun: str = ""  # the last process that was seen to have had an attempt


class WorkerPool(ProcessPool):
    """Worker processes of which none is left at the end of the `with` block."""

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
        """A pool of which nothing is started yet; `name` tells its workers from other commands'."""
        super().__init__(allocation)
        self.folder, self.request, self.console = folder, request, console
        logs = folder / "workers"
        self.workers = [
            WorkerProcess(f"{name}-w{i}", slot, logs / f"{name}-w{i}.log")
            for i, slot in enumerate(slots)
        ]
        self.proposer = WorkerProcess(f"{name}-proposer", None, logs / f"{name}-proposer.log")
        self.num_lifted = 0  # stops after which the search goes on
        self._ended: set[str] = set()  # uuids of processes of this pool
        self._num_done = 0  # trials, when a worker last failed

    @property
    def everybody(self) -> list[WorkerProcess]:
        """The workers and the proposer."""
        return [*self.workers, self.proposer]

    def start_all(self) -> None:
        """Start everybody who does not run."""
        for worker in self.everybody:
            if not worker.alive:
                self._start(worker)

    def _start(self, worker: WorkerProcess) -> None:
        worker.uuid = uuid.uuid4().hex
        self.start(worker, self._args(worker))
        worker.started_s = time.monotonic()
        worker.is_retired = worker.failure_noted = False

    def _args(self, worker: WorkerProcess) -> list[str]:
        slot, request, lifted = worker.slot, self.request, f"--lifted={self.num_lifted}"
        program, folder = [sys.executable, "-m"], str(self.folder)
        if not slot:
            ahead = f"--ahead={2 * len(self.workers) + 1}"
            return [*program, "harness.tuning.proposer", folder, ahead, lifted]
        args = [*program, "harness.tuning.worker", folder, worker.name, lifted]
        args += ["--id", worker.uuid, "--threads", str(slot.threads)]
        if slot.gpu is None:
            args += ["--devices", "cpu"]
        else:
            args += ["--gpu", str(slot.gpu)]
            args += ["--devices", request.devices] if request.devices else []
        return [*args, "--data", str(request.data)] if request.data else args

    @property
    def ended(self) -> set[str]:
        """The uuids of the workers that were processes of this pool and have ended."""
        gone = {each.uuid for each in self.workers if each.uuid and not each.alive}
        return self._ended | gone

    @property
    def num_workers(self) -> int:
        """The number of workers that run."""
        return sum(worker.alive for worker in self.workers)

    @property
    def num_stopped(self) -> int:
        """The number of processes that ended because they saw the search stopped."""
        return sum(worker.code == STOPPED_CODE for worker in self.everybody)

    @property
    def num_alive(self) -> int:
        """The number of processes that run."""
        return sum(worker.alive for worker in self.everybody)

    # From time to time

    def tend(self, num_done: int, heard: Mapping[int, Heard]) -> None:
        """Start again what has ended, and end what stalls.

        Args:
            num_done: trials that have ended so far, whoever trained them.
            heard: the attempts at open trials.

        Raises:
            InputError, NodeFault, RunError: a process can't go on, and why.
        """
        at_work = {each.attempt.worker: (n, each) for n, each in heard.items()}
        for worker in self.everybody:
            n, attempt = at_work.get(worker.uuid, (0, None))
            if attempt:
                worker.has_begun = worker.uuid
            if worker.alive:
                self._end_stalled(worker, n, attempt)
            elif not worker.is_retired:
                self._ended.add(worker.uuid)
                self._tend_ended(worker, num_done)

    def _tend_ended(self, worker: WorkerProcess, num_done: int) -> None:
        code = worker.code
        interrupted = code == Interrupted.exit_code
        if code in (0, STOPPED_CODE):
            worker.is_retired = True
        elif code == InputError.exit_code:
            raise InputError(f"worker {worker.name}: {worker.last_line()}")
        elif code in (RunError.exit_code, NODE_FAULT_CODE):
            self._tend_failed(worker, num_done)
        elif code == RESTART_CODE:
            self._start(worker)
        elif not interrupted and worker.has_begun != worker.uuid:
            self._tend_failed(worker, num_done)
        elif time.monotonic() - worker.started_s > 1:  # at most once a second
            how = f"ended: {worker.last_line()}" if interrupted else f"was ended (exit code {code})"
            self.console.warning(f"worker {worker.name} {how}; it is started again")
            self._start(worker)

    def _tend_failed(self, worker: WorkerProcess, num_done: int) -> None:
        now_s = time.monotonic()
        if not worker.failure_noted:
            worker.failure_noted = True
            worker.num_failures = 1 if num_done > self._num_done else worker.num_failures + 1
            self._num_done = num_done
            line = worker.last_line()
            # Slurm's controller, or the disk with the environment, may be down for minutes.
            is_outage = line.startswith("srun: error") or is_said_of_disk(line)
            was_killed = worker.code not in (RunError.exit_code, NODE_FAULT_CODE)
            if was_killed:
                line = f"exit code {worker.code} before its first trial; last line: {line}"
            most = MAX_KILLS if was_killed else MAX_FAILURES
            if worker.num_failures >= (MAX_IN_OUTAGE if is_outage else most):
                message = f"worker {worker.name} failed {worker.num_failures} times: {line}"
                if worker.code == NODE_FAULT_CODE:
                    raise NodeFault(message, will_requeue=True)
                raise RunError(message)
            self.console.warning(f"worker {worker.name} failed and will be started again: {line}")
            worker.not_before_s = now_s + (OUTAGE_AGAIN_S if is_outage else AGAIN_S)
        if now_s >= worker.not_before_s:
            self._start(worker)

    def _end_stalled(self, worker: WorkerProcess, n: int, heard: Heard | None) -> None:
        now_s = time.monotonic()
        worker.still_s += min(now_s - worker.looked_s, LONGEST_LOOK_S)
        worker.looked_s = now_s
        step = worker.uuid, n, heard.beat.step if heard and heard.beat else 0
        if step != worker.step:
            worker.step, worker.still_s = step, 0.0
        if not heard or worker.still_s <= self.request.limit_s(heard):
            return
        self.console.warning(
            f"worker {worker.name} made no progress for {self.request.limit_s(heard):.0f} s with "
            f"trial {n} and is ended"
        )
        self.kill([worker])

    # The end

    def leave(self, wait_s: float = LEAVE_S) -> None:
        """Let everybody end, who see for themselves that the search is over or stopped."""
        wait_for(lambda: not self.num_alive, wait_s)

    def stop(self, wait_s: float = SAVE_S) -> None:
        """Let the workers save their trials and end, and wait for that."""
        self.ask_to_save(self.everybody, STOPPING[0], wait_s)
