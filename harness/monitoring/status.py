"""The state of every run: from run folders first, from the scheduler's queue second."""

import difflib
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import PROJECT
from harness.errors import InputError
from harness.files.lenient_json import read_toml, table, text
from harness.search_space import SEARCH_FILE, short_names
from harness.slurm.queue import Queue, QueuedJob, find_job, training_script
from harness.system.processes import is_run_alive
from harness.tracking.heartbeat import HEARTBEAT_S
from harness.tracking.records import (
    ALIVE,
    RunStatus,
    describe_trials,
    find_runs,
    last_log_line,
    observe,
    read_submissions,
)

STALE_AFTER_S = 12 * HEARTBEAT_S
# Compiling, validating and testing may take minutes without a heartbeat.
STALE_AFTER_OTHERWISE_S = 600.0
STALE_AFTER_WRITES = 5  # expected times between two writes, where those are further apart
STARTED = ("RUNNING", "CONFIGURING")


def survey(runs: Path, queue: Queue | None, folders: Sequence[Path] = ()) -> list[RunStatus]:
    """Every run below `runs` and in `folders`: those at work first, then the newest.

    A job that waits in the queue is included: by its record or, given a queue, by its script.
    """
    now = time.time()
    submissions = {os.path.realpath(each.folder): each for each in read_submissions(runs)}
    found: dict[str, RunStatus] = {}
    for folder in find_runs((runs, *folders)):
        key = os.path.realpath(folder)
        found[key] = observe(folder, _name(folder, runs), submissions.get(key), now=now)
    for key, submission in submissions.items():
        if key not in found:
            name = _name(Path(key), Path(os.path.realpath(runs)))
            found[key] = observe(submission.folder, name, submission, now=now)
    jobs = queue.jobs() if queue else None
    for status in found.values():
        infer_state(status, jobs, asked_s_ago=now - queue.asked_at if queue else 0.0)
    statuses = list(found.values())
    statuses += _unrecorded(jobs or [], [each.queued for each in statuses], runs, now=now)
    return sorted(statuses, key=lambda each: (_rank(each), -each.time_s, each.run))


def trials_of(sweep: RunStatus) -> list[RunStatus]:
    """The runs of a sweep's trials, each with the values that it tries: those at work first."""
    now = time.time()
    space = table(table(read_toml(sweep.folder / SEARCH_FILE), "search"), "space")
    keys = [(name, key) for name in space for key in table(space, name)]
    short = short_names([".".join(key) for key in keys])
    found = []
    for folder in find_runs([sweep.folder / "trials"]):
        name = f"{sweep.run}/{folder.relative_to(sweep.folder)}"
        status = observe(folder, name, None, now=now)
        infer_state(status, None, asked_s_ago=0.0)
        job = read_toml(folder / "job.toml")
        tried = [
            f"{short[f'{name}.{key}']}={table(job, name)[key]}"
            for name, key in keys
            if key in table(job, name)
        ]
        status.note = "; ".join(filter(None, (status.note, " ".join(tried))))
        found.append(status)
    return sorted(found, key=lambda each: (_rank(each), -each.time_s, each.run))


def refresh(status: RunStatus, queue: Queue) -> RunStatus:
    """The same run as it is now."""
    now = time.time()
    fresh = observe(status.folder, status.run, status.submission, now=now)
    infer_state(fresh, queue.jobs(), asked_s_ago=now - queue.asked_at)
    return fresh


def _rank(status: RunStatus) -> int:
    return ALIVE.index(status.state) if status.state in ALIVE else len(ALIVE)


def _name(folder: Path, runs: Path) -> str:
    return str(folder.relative_to(runs) if folder.is_relative_to(runs) else folder)


def _unrecorded(
    jobs: Sequence[QueuedJob], known: Sequence[QueuedJob | None], runs: Path, *, now: float
) -> Iterator[RunStatus]:
    """Jobs of this project that were submitted by plain sbatch and have no folder yet."""
    taken = {job.id for job in known if job}
    own = {str(PROJECT), os.path.dirname(os.path.realpath(runs))}  # noqa: PTH120 - as a string
    for queued in jobs:
        project, name = training_script(queued) or ("", "")
        job = read_toml(Path(project, "jobs", f"{name}.toml")) if project in own else {}
        if not job or queued.id in taken or queued.ended:
            continue
        job_name = text(job.get("name")) or name
        task = queued.id.partition("_")[2]
        status = RunStatus(
            run=f"{job_name}/slurm-{queued.id}",
            folder=runs / job_name / f"slurm-{queued.id}",
            job=job_name,
            architecture=text(table(job, "model").get("architecture")),
            seed=int(task) if task.isdigit() else None,
            slurm_job=queued.id,
            time_s=now,
        )
        infer_state(status, [queued], asked_s_ago=0.0)
        yield status


# What follows from it


def infer_state(status: RunStatus, jobs: Sequence[QueuedJob] | None, asked_s_ago: float) -> None:
    """Set a run's state and note.

    Args:
        status: what its folder says.
        jobs: the scheduler's, None where it gave no answer.
        asked_s_ago: how old that answer is.
    """
    _set_state(status, jobs, asked_s_ago)
    if status.warning and status.state in ("running", "stale"):
        status.note = "; ".join(filter(None, (status.note, status.warning)))
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
        status.note = f"{status.error} {status.resume}" if status.error else ""
        return
    if status.shares_job and status.phase in (None, "interrupted") and status.asked_to_cancel:
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
        return "pending", "; ".join(filter(None, (queued.reason, again, saved)))
    if queued.state == "SUSPENDED":
        return "suspended", "by Slurm"
    return "starting", "" if queued.state == "RUNNING" else queued.state.lower()


def _state_before_start(status: RunStatus, answered: bool) -> tuple[str, str]:
    """The state of a run without a heartbeat and without a job that is alive."""
    if status.queued:
        line = last_log_line(status)
        ended = status.queued.state.lower().replace("_", " ")
        state = "cancelled" if ended == "cancelled" else "failed"
        return state, line if line and state == "failed" else f"Slurm says {ended}"
    if status.folder.exists():
        return "unknown", f"its state.json is missing or broken; {status.resume}"
    if not answered:
        return "submitted", "no answer from the scheduler"
    line = last_log_line(status)
    return ("failed", line) if line else ("gone", "left the queue before it began")


def _state_by_heartbeat(status: RunStatus, answered: bool, asked_s_ago: float) -> tuple[str, str]:
    """The state of a run that was at work at its last heartbeat."""
    age, queued = status.heartbeat_age_s or 0.0, status.queued
    limit = STALE_AFTER_S if status.phase == "training" else STALE_AFTER_OTHERWISE_S
    is_fresh = age <= max(limit, STALE_AFTER_WRITES * status.expected_s)
    if queued and queued.state == "SUSPENDED":
        return "suspended", "by Slurm"
    if status.reported_job and answered and status.is_own and (not queued or queued.ended):
        # A job that started after the queue was asked can't be in its answer.
        if age > asked_s_ago + 2 * HEARTBEAT_S:
            why = f"Slurm says {queued.state}" if queued else "its job left the queue"
            if queued and queued.state == "OUT_OF_MEMORY":
                why += ": go on with more --mem"
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


# Finding one by a name


def pick(
    name: str, statuses: Sequence[RunStatus], runs: Path, *, many: bool = False
) -> list[RunStatus]:
    """The runs that a user means: by folder, run id, Slurm job id, or the id of a job array.

    Args:
        name: as typed.
        statuses: from `survey`, which was given the name's folder.
        runs: where runs are kept.
        many: whether a folder of runs, or an id that several share, is allowed.

    Raises:
        InputError: if the name fits none, with similar ones, or several where one is needed.
    """
    if not name.strip():
        raise InputError("run '': give a folder, an id or a Slurm job's id")
    for folder in (Path(name), runs / name):
        real = os.path.realpath(folder)
        paths = [(os.path.realpath(each.folder), each) for each in statuses]
        found = [each for path, each in paths if path == real]
        found = found or [each for path, each in paths if path.startswith(real + os.sep)]
        if found:
            return found if many else [one(name, found)]
    found = [each for each in statuses if name in (each.run, each.folder.name, each.slurm_job)]
    if found:
        is_job = many or all(each.shares_job for each in found)
        return found if is_job else [one(name, found)]
    # All tasks of an array are one job to Slurm.
    array = [each for each in statuses if (each.slurm_job or "").startswith(f"{name}_")]
    # Last, the id that logs are named by: a task's own, which for one task is also its array's.
    found = array or [each for each in statuses if each.reported_job == name]
    if found:
        return found
    known = {known for each in statuses for known in (each.run, each.folder.name, each.slurm_job)}
    near = difflib.get_close_matches(name, filter(None, known), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "harness status --all lists them"
    raise InputError(f"run {name}: no run has this folder, id or job below {runs}; {hint}")


def one(name: str, found: Sequence[RunStatus]) -> RunStatus:
    """The only run of those found.

    Raises:
        InputError: if there are several, with their names.
    """
    if len(found) > 1:
        names = ", ".join(each.run for each in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InputError(f"run {name}: fits {len(found)} runs, name one of them: {names}{more}")
    return found[0]


def format_duration(time_s: float) -> str:
    """A span of time in two units: 42s, 3m10s, 2h05m, 4d03h."""
    whole = round(time_s)
    for size, unit, small_size, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small_size:02d}{small}"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
