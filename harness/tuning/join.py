"""Joins a sweep: workers for one that another command supervises."""

import contextlib
import socket
import time
from collections.abc import Sequence

from harness.errors import InputError, Interrupted, RunError
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import Slot
from harness.sweep_protocol.mailbox import STATE, SharedFolder, WorkerState
from harness.sweep_protocol.worker import StopClock
from harness.system.console import Console
from harness.system.signals import StopRequest
from harness.tuning.pool import WorkerPool, WorkerRequest
from harness.tuning.sweep_dir import SweepDirectory

JOIN_ROUND_S = 2.0  # between two looks of a command that only has workers


def join(sweep: SweepDirectory, request: WorkerRequest, console: Console) -> None:
    """Work for a sweep that another command supervises until it has no more trials.

    Raises:
        InputError: if the data differ from the sweep's, or another version of harness wrote it.
        Interrupted: on a signal, or if nobody supervises the sweep for long.
        RunError: if no worker can train any trial.
    """
    sweep.check_format()
    if sweep.finished():
        console.info(f"sweep {sweep.folder}: is finished, nothing to do")
        return
    allocation = SlurmEnvironment.from_environment()
    slots = request.slots(allocation, sweep.search())
    sweep.dataset(sweep.search().job, request.data)
    console.info(f"sweep {sweep.folder}: {len(slots)} more workers")
    _join(sweep, request, slots, allocation=allocation, console=console)


def _join(
    sweep: SweepDirectory,
    request: WorkerRequest,
    slots: Sequence[Slot],
    *,
    allocation: SlurmEnvironment | None,
    console: Console,
) -> None:
    stop = StopRequest()
    stop.listen()
    clock = StopClock(stop)
    shared = sweep.shared(clock)
    with WorkerPool(sweep.folder, request, slots, allocation=allocation, console=console) as pool:
        pool.join_as(_prefix(allocation))
        try:
            pool.start_all()
            done: set[str] = set()  # attempts; a worker forgets those that are accepted
            failing_s: float | None = None  # since when
            while not pool.is_over:
                clock.sleep(JOIN_ROUND_S)
                found = {each.uuid: _state(shared, each.uuid) for each in pool.workers}
                states = {uuid: state for uuid, state in found.items() if state}
                done.update(*(each.results for each in states.values()))
                try:
                    pool.tend(len(done), states)
                    failing_s = None
                except OSError as error:  # a worker's log could not be opened
                    failing_s = clock.now() if failing_s is None else failing_s
                    if clock.now() - failing_s > shared.terms.patience_s:
                        raise RunError(f"sweep {sweep.folder}: {error}") from None
        except (Interrupted, InputError, RunError):
            pool.stop()
            raise


def _state(shared: SharedFolder, worker: str) -> WorkerState | None:
    with contextlib.suppress(OSError):  # nothing new
        return shared.read(WorkerState, "workers", worker, STATE)
    return None


def _prefix(allocation: SlurmEnvironment | None) -> str:
    """Distinguishes this job's workers from those of other jobs."""
    if allocation:
        return f"job{allocation.job_id}-"
    return f"{socket.gethostname()}-{time.time_ns() // 1_000_000}-"
