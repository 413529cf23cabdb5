"""The supervisor of a sweep: starts chief and workers, and restarts them until the search is over.

A worker that was killed is started again under the same name and so gets its trial back; this does
not count as a failure. A worker that ends with an error can't run any trial: after three such ends
with no trial finished in between, the sweep ends with that error. A worker whose trial makes no
progress for `stall_s` is killed and so started again.
"""

import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import InputError, Interrupted, RunError
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import Slot, allocate_slots
from harness.slurm.process_pool import POLL_S, ManagedProcess, ProcessPool, wait_for
from harness.slurm.rendezvous import FIRST_PORT, LAST_PORT, first_port
from harness.system.console import Console, strip_prefix
from harness.system.network import ANY, free_port
from harness.system.signals import STOPPING, StopRequest
from harness.tracking.heartbeat import Heartbeat
from harness.tracking.run_dir import RunDirectory
from harness.tuning.sweep_dir import RESTART_CODE, SweepDirectory

LOOK_S = 2.0  # between two looks at the workers' progress
STALL_S = 900.0  # compiling and validating take a while and show no progress
# On a GPU whose machine code TensorFlow's package lacks, the first use of a kernel compiles it.
START_STALL_S = 3600.0  # before the first step on a GPU; TensorFlow warns of 30 minutes
MAX_FAILURES, AGAIN_S = 3, 2.0  # of a worker in a row, and seconds before the next start
MAX_SRUN_FAILURES, SRUN_AGAIN_S = 30, 10.0
LEAVE_S = 30.0  # for the workers to learn that the search is over
CHIEF_GONE_S = 600.0  # after which a worker from another job gives up


@dataclass(frozen=True)
class WorkerRequest:
    """The workers that a command asks for."""

    num_workers: int | None = None  # by default one for each GPU or CPU
    workers_per_gpu: int = 1
    devices: str | None = None
    data: Path | None = None
    stall_s: float = STALL_S
    port: int = 0  # of the chief, 0 = a free one

    def slots(self, allocation: SlurmEnvironment | None) -> list[Slot]:
        """A slot for each worker.

        Raises:
            InputError: if the allocation has no room for so many.
        """
        return allocate_slots(
            allocation,
            self.num_workers,
            workers_per_gpu=self.workers_per_gpu,
            devices=self.devices,
        )


def chief_args(sweep: SweepDirectory, host: str, port: int) -> list[str]:
    """The command of the chief, a child of the supervisor on the same node."""
    args = [sys.executable, "-m", "harness.tuning.oracle_server", str(sweep.folder)]
    return [*args, "--host", host, "--port", str(port)]


def worker_args(
    sweep: SweepDirectory, name: str, *, slot: Slot, request: WorkerRequest
) -> list[str]:
    """The command of a worker."""
    args = [sys.executable, "-m", "harness.tuning.worker", str(sweep.folder), name]
    args += ["--threads", str(slot.threads)]
    if slot.gpu is None:
        args += ["--devices", "cpu"]
    else:
        args += ["--gpu", str(slot.gpu)]
        args += ["--devices", request.devices] if request.devices else []
    return [*args, "--data", str(request.data)] if request.data else args


@dataclass(eq=False)
class Worker(ManagedProcess):
    """A worker, and what the supervisor remembers of it."""

    started_s: float = 0.0
    retired: bool = False  # there were no more trials for it
    failure_noted: bool = False  # of the last start
    num_failures: int = 0  # in a row
    not_before_s: float = 0.0  # to start it again
    seen: object = None  # last sign of progress
    seen_s: float = 0.0


class Supervisor:
    """Runs the processes of a sweep; with `joins` only workers, since the chief runs elsewhere."""

    def __init__(
        self,
        sweep: SweepDirectory,
        request: WorkerRequest,
        slots: Sequence[Slot],
        *,
        allocation: SlurmEnvironment | None,
        console: Console,
        joins: bool = False,
    ) -> None:
        self.sweep, self.request = sweep, request
        self.allocation, self.console, self.joins = allocation, console, joins
        self.pool = ProcessPool(allocation)
        self.stop = StopRequest()
        self.heartbeat = None if joins else Heartbeat(sweep, allocation)
        self.chief = ManagedProcess("chief", None, sweep.path("workers", "chief.log"))
        prefix = f"{_job_name(allocation)}-" if joins else ""
        self.workers = [
            Worker(f"{prefix}w{i}", slot, sweep.path("workers", f"{prefix}w{i}.log"))
            for i, slot in enumerate(slots)
        ]
        self._chief_log_size = 0  # bytes of its log that were printed
        self._looked_s = 0.0
        self._finished = 0  # trials, when a worker last failed

    # The main loop

    def run(self) -> None:
        """Run until the search is over; afterwards no process is left, however it ended.

        Raises:
            Interrupted: a signal came; all is saved, and the sweep can go on.
            InputError, RunError: the sweep can't go on.
        """
        self.stop.listen()
        with self.pool:
            try:
                self._search()
            except Interrupted as reason:
                self.pool.ask_to_save(self.workers, STOPPING[0])
                if self.heartbeat:
                    self.heartbeat.interrupted(reason)
                raise
            except (InputError, RunError) as error:
                if self.heartbeat:
                    self.heartbeat.beat("failed", error=str(error))
                raise

    def _search(self) -> None:
        if not self.joins:
            self._start_chief()
        for worker in self.workers:
            self._start(worker)
        while not self._is_over():
            self.stop.check()
            self._tend()
            time.sleep(POLL_S)
        self._wait_for_workers()

    def _start_chief(self) -> None:
        host = chief_host(self.allocation)
        port = self.request.port or free_port(host, chief_ports(self.allocation))
        self._chief_log_size = self.chief.log.stat().st_size if self.chief.log.exists() else 0
        self.pool.start(self.chief, chief_args(self.sweep, host, port))

    def _start(self, worker: Worker) -> None:
        assert worker.slot  # noqa: S101 - every worker has one
        args = worker_args(self.sweep, worker.name, slot=worker.slot, request=self.request)
        self.pool.start(worker, args)
        worker.started_s = worker.seen_s = time.monotonic()
        worker.retired = worker.failure_noted = False

    def _is_over(self) -> bool:
        if self.joins:
            return all(worker.retired for worker in self.workers) or self.sweep.finished()
        return self.chief.code == 0

    def _tend(self) -> None:
        """Check the chief and every worker once."""
        if not self.joins:
            self._tend_chief()
        for worker in self.workers:
            if not worker.alive and not worker.retired:
                self._tend_ended(worker)
        now = time.monotonic()
        if now - self._looked_s < LOOK_S:
            return
        self._looked_s = now
        progress = self.sweep.progress()
        self._end_stalled(progress, now)
        if self.heartbeat:
            self._restart_retired(progress)
            self.heartbeat.beat("searching", **describe(self.sweep, progress, self._num_alive()))
        elif time.time() - float(progress.get("time_s") or time.time()) > CHIEF_GONE_S:
            raise RunError(
                f"sweep {self.sweep.folder}: its chief has been gone for {CHIEF_GONE_S:.0f} s; go "
                f"on by: harness resume {self.sweep.folder}"
            )

    def _num_alive(self) -> int:
        return sum(worker.alive for worker in self.workers)

    def _tend_chief(self) -> None:
        self._print_chief_log()
        code = self.chief.code
        if code is None or code == 0:
            return
        if code in (RunError.exit_code, InputError.exit_code):
            kind = InputError if code == InputError.exit_code else RunError
            raise kind(self.chief.last_line())
        self.console.warning(f"the chief was ended (exit code {code}) and is started again")
        self._start_chief()

    def _tend_ended(self, worker: Worker) -> None:
        code = worker.code
        if code == 0:
            worker.retired = True
        elif code == InputError.exit_code:
            raise InputError(f"worker {worker.name}: {worker.last_line()}")
        elif code == RunError.exit_code:
            self._tend_failed(worker)
        elif code == RESTART_CODE:
            self._start(worker)
        elif time.monotonic() - worker.started_s > 1:  # at most once a second
            how = "ended as interrupted" if code == 75 else f"was ended (exit code {code})"
            self.console.warning(f"worker {worker.name} {how} and is started again")
            self._start(worker)

    def _tend_failed(self, worker: Worker) -> None:
        now = time.monotonic()
        if not worker.failure_noted:
            worker.failure_noted = True
            finished = int(self.sweep.progress().get("finished") or 0)
            worker.num_failures = 1 if finished > self._finished else worker.num_failures + 1
            self._finished = finished
            line = worker.last_line()
            # Slurm's controller may be down for minutes.
            by_slurm = line.startswith("srun: error")
            if worker.num_failures >= (MAX_SRUN_FAILURES if by_slurm else MAX_FAILURES):
                raise RunError(f"worker {worker.name} failed {worker.num_failures} times: {line}")
            self.console.warning(f"worker {worker.name} failed and will be started again: {line}")
            worker.not_before_s = now + (SRUN_AGAIN_S if by_slurm else AGAIN_S)
        if now >= worker.not_before_s:
            self._start(worker)

    def _end_stalled(self, progress: dict[str, Any], now: float) -> None:
        at = progress.get("at") or {}
        for worker in self.workers:
            if not worker.alive:
                continue
            run = _newest_run(self.sweep, at.get(worker.name))
            sign = worker.popen, run and _written_at(run)
            if sign != worker.seen:
                worker.seen, worker.seen_s = sign, now
                continue
            limit_s = self.request.stall_s
            if worker.slot and worker.slot.gpu is not None and not (run and has_stepped(run)):
                limit_s = max(limit_s, START_STALL_S)
            if at.get(worker.name) and now - worker.seen_s > limit_s:
                self.console.warning(
                    f"worker {worker.name} made no progress for {limit_s:.0f} s with "
                    f"trial {at[worker.name]} and is ended"
                )
                self.pool.kill([worker])

    def _restart_retired(self, progress: dict[str, Any]) -> None:
        """Restart workers that had no more trials if trials wait again."""
        if self.chief.code is not None or progress.get("is_over"):
            return
        retired = [worker for worker in self.workers if worker.retired]
        needed = int(progress.get("waiting") or 0)
        if not needed and len(retired) == len(self.workers):
            needed = 1  # one must ask for a trial, for the chief to see that the search is over
        for worker in retired[:needed]:
            if time.monotonic() - worker.started_s > LOOK_S:
                self._start(worker)

    def _print_chief_log(self) -> None:
        """Print what the chief has logged about trials and workers since the last call."""
        try:
            with self.chief.log.open("rb") as log:
                log.seek(self._chief_log_size)
                new = log.read()
        except OSError:
            return
        whole, newline, _ = new.rpartition(b"\n")
        self._chief_log_size += len(whole) + len(newline)
        for line in map(strip_prefix, whole.decode(errors="replace").splitlines()):
            if line.startswith(("trial ", "worker ")):
                self.console.info(line)

    # The end

    def _wait_for_workers(self) -> None:
        """Let the workers end, which learn with their next request that the search is over."""
        if not self.joins:
            self._print_chief_log()
        wait_for(lambda: not self._num_alive(), LEAVE_S)


def _newest_run(sweep: SweepDirectory, trial: str | None) -> RunDirectory | None:
    """The run of a trial whose heartbeat was written last, None before the first."""
    states = sweep.folder.glob(f"trials/{trial}-seed*/state.json") if trial else ()
    newest = max(states, key=lambda path: _written_at(RunDirectory(path.parent)), default=None)
    return RunDirectory(newest.parent) if newest else None


def _written_at(run: RunDirectory) -> float:
    """When a run's heartbeat was written, 0 where it is gone."""
    try:
        return run.path("state.json").stat().st_mtime
    except OSError:
        return 0.0


def has_stepped(run: RunDirectory) -> bool:
    """Whether a run has taken a step since it was last started."""
    return run.read_json("state.json").get("phase") not in (None, "starting")


def _job_name(allocation: SlurmEnvironment | None) -> str:
    """A prefix that distinguishes this job's workers from those of other jobs."""
    if allocation:
        return f"job{allocation.job_id}"
    return f"{socket.gethostname()}-{time.time_ns() // 1_000_000}"


def describe(sweep: SweepDirectory, progress: dict[str, Any], num_workers: int) -> dict[str, Any]:
    """The fields of a sweep's heartbeat, from the progress that the chief reports."""
    counts = {k: int(progress.get(k) or 0) for k in ("finished", "failed", "running", "waiting")}
    total = progress.get("trials")
    times = [float(t) for row in sweep.leaderboard() if (t := row.get("training_s"))]
    eta_s = None
    if total and times and num_workers:
        left = total - counts["finished"] - counts["failed"] - counts["running"] / 2
        eta_s = round(max(left, 0) * sum(times) / len(times) / num_workers, 1)
    return {
        **counts,
        "trials": total,
        "best": progress.get("best"),
        "workers": num_workers,
        "eta_s": eta_s,
    }


# Where the chief listens


def chief_host(allocation: SlurmEnvironment | None) -> str:
    """The chief's address: this node's own in an allocation, for workers from other nodes and
    jobs; the loopback elsewhere."""
    if allocation is None:
        return "127.0.0.1"
    for name in (allocation.node, socket.gethostname()):
        try:
            return socket.gethostbyname(name)
        except OSError:
            continue
    return "127.0.0.1"


def chief_ports(allocation: SlurmEnvironment | None) -> Sequence[int]:
    """The ports that the chief may use: in an allocation those of its jobs, first the own."""
    if allocation is None:
        return ANY
    first = first_port(allocation.job_id)
    return [*range(first, LAST_PORT + 1), *range(FIRST_PORT, first)]
