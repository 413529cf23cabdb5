"""Stops runs: a run saves before it stops, and Slurm does not requeue its job."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from harness.errors import InputError, RunError
from harness.slurm import client
from harness.slurm.client import Queue
from harness.system.console import quoted
from harness.system.lenient_json import read_json
from harness.system.processes import is_alive
from harness.tracking.records import ALIVE, RunStatus
from harness.tracking.run_dir import ask_to_cancel
from harness.tracking.status import refresh

WAIT_S = 90.0  # seconds to wait for a run's end; by default Slurm kills a job 30 s after the signal
POLL_S = 0.5  # seconds between two reads of a run's state
ASK_EVERY_S = 5.0  # seconds between two calls of squeue
OVER = ("interrupted", "failed", "result")  # phases of a run that has ended
STOPPED = ("interrupted", "lost", "dead")  # states that `submit --all-interrupted` continues
AT_WORK = ("running", "starting", "stale")  # states of a run that has or may have a process


def ask_to_stop(
    status: RunStatus,
    *,
    stop_search: Callable[[Path], None],
    alone: bool = False,
    problem: str | None = None,
) -> str | None:
    """Ask a run to stop.

    Args:
        status: the status of the run.
        stop_search: a function that stops all workers of a search, given the search's folder.
        alone: whether to stop only this run, while its Slurm job or `harness train` command
            continues to train other seeds.
        problem: why squeue gave no answer; None if squeue answered or is not installed.

    Returns:
        None if the caller must wait until the run has saved, else a line for the user.

    Raises:
        RunError: if this process can't stop the run; the message says why, and how to stop it.
    """
    if status.state == "finished":
        return f"{status.run}: is finished, nothing to cancel"
    # Another user's files may contain the id of one of this user's jobs; don't cancel that job.
    if not status.is_own and status.state in ALIVE:
        raise RunError(f"run {status.run}: belongs to another user; ask this user to stop the run")
    if alone and (status.alive or status.job_lives):
        # Write the request even for a run that has ended, because a requeued job would restart it.
        ask_to_cancel(status.folder)
        if status.phase and status.state in ALIVE and status.state != "pending":
            return None
        job = status.slurm_job
        return f"{status.run}: will not start; to stop all seeds of its job: harness cancel {job}"
    if status.trials and status.state in AT_WORK:
        stop_search(status.folder)
        # `stop_search` stops the running tasks of an array; scancel removes the waiting tasks.
        if status.slurm_job:
            with contextlib.suppress(InputError, RunError):
                array = status.slurm_job.partition("_")[0]
                client.ask("scancel", "--state=PENDING", array)
        return None
    in_slurm = status.reported_job or status.phase is None
    is_queued = status.slurm_job and in_slurm and (status.job_lives or status.state in ALIVE)
    if is_queued and _is_own_job(status):
        if status.trials:  # all tasks of an array work on the same search
            stop_search(status.folder)
            status.slurm_job = str(status.slurm_job).partition("_")[0]
        return _cancel_job(status)
    if status.state not in AT_WORK:
        if not problem and status.phase == "interrupted" and not status.was_cancelled:
            # Slurm may have requeued the job; only squeue shows this.
            problem = None if client.has_client("squeue") else "squeue is not installed here"
        if problem and status.reported_job:
            raise RunError(
                f"run {status.run}: {problem}; if the run's job is in the queue, call harness "
                f"cancel on a login node, or cancel the job with: scancel {status.slurm_job}"
            )
        if is_queued and status.state in ALIVE:  # an interactive job, or the user's own script
            raise RunError(
                f"{status.run}: is {status.state}, and its job may run other programs; to end "
                f"the whole job: scancel {status.slurm_job}"
            )
        note = f" ({status.note})" if status.note else ""
        return f"{status.run}: is {status.state}, nothing to cancel{note}"
    _stop_process(status)
    return None


def _is_own_job(status: RunStatus) -> bool:
    """Whether the run's Slurm job runs only the harness, and no shell or notebook of the user."""
    if status.folder.name == f"slurm-{status.slurm_job}":
        return True
    state = read_json(status.folder / "state.json")
    # If the heartbeat contains another job's id, the queued job has not trained the run yet.
    return state.get("slurm_own_id") != status.slurm_job or state.get("owns_job") is True


def _cancel_job(status: RunStatus) -> str | None:
    job = status.slurm_job
    client.ask("scancel", str(job))
    if status.state not in ("pending", "submitted"):
        return None
    line = f"{status.run}: job {job} was removed from the queue"
    if status.phase is None:
        return line
    ask_to_cancel(status.folder)  # the run has no process that could record the cancellation
    return f"{line}; continue with {status.resume}"


def _stop_process(status: RunStatus) -> None:
    process = status.process or 0
    where = f"run {status.run}: process {process}"
    if not status.is_here:
        whole_job = f", or end the run's whole job: scancel {status.slurm_job}"
        raise RunError(
            f"{where} is on {status.host}, perhaps in a container; there, run: harness cancel "
            f"{quoted(status.folder)}{whole_job if status.slurm_job else ''}"
        )
    if not is_alive(process, status.time_s):
        raise RunError(f"{where} has ended; continue with {status.resume}")
    with contextlib.suppress(ProcessLookupError):  # the process has just ended
        os.kill(process, signal.SIGTERM)


def wait_until_saved(status: RunStatus, queue: Queue) -> str:
    """Wait until a run ends after `ask_to_stop`; return a line that says how it ended.

    Raises:
        RunError: if the run does not end within WAIT_S.
    """
    waited_s, queue.every_s = 0.0, ASK_EVERY_S
    while waited_s < WAIT_S:
        now = refresh(status, queue)
        is_new = now.time_s > status.time_s or status.phase not in OVER
        if (now.phase in OVER and is_new) or (not now.alive and now.state != "stale"):
            now = refresh(status, queue)  # the run may have saved after the first `refresh`
            if now.phase and now.state in STOPPED and not now.was_cancelled:
                ask_to_cancel(now.folder)  # no process of the run has recorded the cancellation
            return ": ".join(filter(None, (now.run, now.state, now.note)))
        time.sleep(POLL_S)
        waited_s += POLL_S
    raise RunError(
        f"run {status.run}: did not stop within {WAIT_S:.0f} s; see harness status "
        f"{quoted(status.folder)}"
    )
