"""What state a run is in, from its folder and the scheduler's answer."""

import re
import socket
from collections.abc import Sequence

from harness.files.shared_disk import clock_ahead_s
from harness.slurm.queue import QueuedJob, find_job
from harness.system.processes import is_run_alive
from harness.tracking.heartbeat import HEARTBEAT_S
from harness.tracking.out_of_memory import was_out_of_memory
from harness.tracking.records import RunStatus, describe_trials, last_log_line, log_end

STALE_AFTER_S = 12 * HEARTBEAT_S
# Compiling, validating and testing may take minutes without a heartbeat.
STALE_AFTER_OTHERWISE_S = 600.0
STALE_AFTER_WRITES = 5  # expected times between two writes, where those are further apart
STARTED = ("RUNNING", "CONFIGURING")


def infer_state(status: RunStatus, jobs: Sequence[QueuedJob] | None, asked_s_ago: float) -> None:
    """Set a run's state and note.

    Args:
        status: what its folder says.
        jobs: the scheduler's, None where it gave no answer.
        asked_s_ago: how old that answer is.
    """
    _set_state(status, jobs, asked_s_ago)
    if status.trials:
        counts = describe_trials(status.trials)
        status.note = f"{counts}; {status.note}" if status.note else counts


def _set_state(status: RunStatus, jobs: Sequence[QueuedJob] | None, asked_s_ago: float) -> None:
    if jobs is not None and status.is_own:
        status.queued = find_job(jobs, status.reported_job, status.slurm_job)
    queued = status.queued
    if queued:
        status.slurm_job = queued.id
    if status.phase == "result":
        status.state = "finished"
        status.note = status.error or ""
        return
    stopped = status.phase in (None, "interrupted", "failed")
    if stopped and status.shares_job and status.asked_to_cancel:
        queued = status.queued = None  # its job goes on without it
        if status.phase is None:
            status.state, status.note = "cancelled", "will not start with its job"
            return
    if queued and not queued.ended and _is_ahead(status, queued):
        status.state, status.note = _state_in_queue(status, queued)
    elif status.phase == "interrupted":
        at = f", saved at {status.position}" if status.position else ""
        status.state = "interrupted"
        status.note = f"by {status.signal or 'a signal'}{at}; {status.resume}"
    elif status.phase == "failed":
        status.state, status.note = "failed", status.error or last_log_line(status)
    elif status.phase is None:
        status.state, status.note = _state_before_start(status, jobs is not None)
    else:
        status.state, status.note = _state_by_heartbeat(status, jobs is not None, asked_s_ago)


def _is_ahead(status: RunStatus, queued: QueuedJob) -> bool:
    """Whether the queue knows more than the heartbeat: the job waits, or started after it."""
    age = status.heartbeat_age_s
    if queued.waits or age is None:
        return True
    return queued.state in STARTED and queued.elapsed_s + HEARTBEAT_S < age


def _state_in_queue(status: RunStatus, queued: QueuedJob) -> tuple[str, str]:
    if queued.waits:
        saved = f"goes on at {status.position}" if status.position else ""
        again = "in the queue again" if status.phase else ""
        status.forget_speed()
        return "pending", "; ".join(filter(None, (queued.why, again, saved)))
    if queued.state == "SUSPENDED":
        return "suspended", "by Slurm"
    return "starting", "" if queued.state == "RUNNING" else queued.state.lower()


def _state_before_start(status: RunStatus, answered: bool) -> tuple[str, str]:
    """The state of a run without a heartbeat and without a job that is alive."""
    if (status.queued or not status.is_there()) and was_out_of_memory(status):
        return "failed", "killed for want of memory; give more by --mem"
    if status.queued:
        line = last_log_line(status)
        ended = status.queued.state.lower().replace("_", " ")
        state = "cancelled" if ended == "cancelled" else "failed"
        return state, line if line and state == "failed" else f"Slurm says {ended}"
    if status.is_there():
        return "unknown", f"its state.json is missing or broken; {status.resume}"
    if re.search(rf"records +{re.escape(str(status.folder))}$", log_end(status), re.MULTILINE):
        return "gone", "finished; its folder was removed or moved"
    if not answered:
        return "submitted", "no answer from the scheduler"
    if not status.is_own:
        return "unknown", "another user's; the queue shows own jobs alone"
    line = last_log_line(status)
    return ("failed", line) if line else ("gone", "left the queue before it began")


def _state_by_heartbeat(status: RunStatus, answered: bool, asked_s_ago: float) -> tuple[str, str]:
    """The state of a run that was at work at its last heartbeat."""
    age, queued = status.heartbeat_age_s or 0.0, status.queued
    limit = STALE_AFTER_S if status.phase == "training" else STALE_AFTER_OTHERWISE_S
    limit = max(limit, STALE_AFTER_WRITES * status.expected_s)
    # The clocks of login nodes and nodes may be minutes apart; the disk has seen all heartbeats.
    is_fresh = age <= limit or age - clock_ahead_s(status.folder) <= limit
    if queued and queued.state == "SUSPENDED":
        return "suspended", "by Slurm"
    if status.reported_job and answered and status.is_own and (not queued or queued.ended):
        # A job that started after the queue was asked can't be in its answer.
        if age > asked_s_ago + 2 * HEARTBEAT_S:
            why = f"Slurm says {queued.state}" if queued else "its job left the queue"
            if was_out_of_memory(status):
                return "lost", f"killed for want of memory; {status.resume} --mem=…"
            return "lost", "; ".join(filter(None, (why, last_log_line(status), status.resume)))
    elif (
        not status.reported_job
        and status.is_own
        and status.host == socket.gethostname()
        and (status.process is None or not is_run_alive(status.process, status.time_s))
    ):
        return "dead", f"its process is gone; {status.resume}"
    if is_fresh:
        started = "starting" if status.phase == "starting" else "running"
        return started, status.phase if status.phase in ("validating", "testing") else ""
    where = f" on {status.host}" if status.host else ""
    return "stale", f"no heartbeat for {format_duration(age)}{where}: it hangs or its node is down"


def format_duration(time_s: float) -> str:
    """A span of time in two units: 42s, 3m10s, 2h05m, 4d03h."""
    whole = round(time_s)
    for size, unit, small_size, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small_size:02d}{small}"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
