"""Infers the states of runs from their folders and the queue, and finds runs by name."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import PROJECT
from harness.errors import InputError, did_you_mean
from harness.slurm.client import Queue, QueuedJob, find_job, training_script
from harness.slurm.script import submissions
from harness.system.lenient_json import read_toml, text
from harness.system.processes import in_threads, is_alive
from harness.tracking.records import (
    ALIVE,
    HEARTBEAT_S,
    JOB_ID,
    RunStatus,
    describe_trials,
    last_log_line,
    log_end,
    observe,
    read_submissions,
)
from harness.tracking.run_dir import RunFolder, find_runs

# A heartbeat older than STALE_AFTER_S is stale. Compiling may take minutes, so the limit is high.
STALE_AFTER_S = 600.0
STARTED = ("RUNNING", "CONFIGURING")

# Patterns of lines in logs: Slurm's message if a job is out of memory, and the first line of each
# start of a job. The log of a requeued job contains several starts.
OUT_OF_MEMORY = re.compile(r"exceeded (job |step )?memory limit|oom[-_ ]?kill", re.IGNORECASE)
JOB_BEGINS = re.compile(r"\bjob \d+ on [^\n]*", re.MULTILINE)


def infer_state(status: RunStatus, queue: Queue | None) -> None:
    """Set the state and the note in the status of a run.

    Args:
        status: the status that `observe` returned.
        queue: the user's jobs in Slurm; if None, Slurm is not asked.
    """
    status.state, status.note = _state_and_note(status, queue)
    if status.trials:
        counts = describe_trials(status.trials)
        status.note = f"{counts}; {status.note}" if status.note else counts


def _state_and_note(status: RunStatus, queue: Queue | None) -> tuple[str, str]:
    jobs = queue.jobs() if queue else None
    if jobs is None:
        queue = None  # squeue is missing or gave no answer
    elif status.is_own:
        status.queued = find_job(jobs, status.reported_job, status.slurm_job)
    if status.queued:
        status.slurm_job = status.queued.id
    if status.phase == "result":
        return "finished", ""
    stopped = status.phase in (None, "interrupted", "failed")
    if stopped and status.shares_job and status.asked_to_cancel:
        # The queued job will train other seeds, but not the seed of this run.
        queued, status.queued = status.queued, None
        if status.phase is None:
            may_train = not queue or (queued and not queued.ended)
            return "cancelled", "the job trains only its other seeds" if may_train else ""
    queued = status.queued
    if queued and queued.state == "SUSPENDED":
        return "suspended", "by Slurm"
    if queued and not queued.ended and _is_ahead(status, queued):
        return _state_in_queue(status, queued)
    if queue and not queued and _is_newer(status, queue):
        return "submitted", ""
    reason = ""  # why the job ended before its first heartbeat
    if status.is_resubmitted and queue and not status.job_lives:
        reason = last_log_line(status)
    if status.phase == "interrupted":
        at = f", saved at {status.position}" if status.position else ""
        return "interrupted", reason or f"by {status.signal or 'a signal'}{at}; {status.resume}"
    if status.phase == "failed":
        return "failed", reason or status.error or last_log_line(status)
    if status.phase is None:
        return _state_before_start(status, queue)
    return _state_by_heartbeat(status, queue)


def _is_ahead(status: RunStatus, queued: QueuedJob) -> bool:
    """Whether the queue shows a newer state of a run than the run's heartbeat does.

    The queue's state counts as newer than the heartbeat's state if the job waits to start, if the
    job started after the heartbeat, or if no heartbeat exists.
    """
    age = status.heartbeat_age_s
    if queued.waits or age is None:
        return True
    return queued.state in STARTED and queued.elapsed_s + HEARTBEAT_S < age


def _is_newer(status: RunStatus, queue: Queue) -> bool:
    """Whether the run's job may have been submitted after squeue's answer.

    The submission time and the time of the answer may come from two clocks, so the comparison
    tolerates a difference of two heartbeats.
    """
    if not status.submission or not (status.phase is None or status.is_resubmitted):
        return False
    return status.submission.time_s > queue.asked_at - 2 * HEARTBEAT_S


def _state_in_queue(status: RunStatus, queued: QueuedJob) -> tuple[str, str]:
    if queued.waits:
        saved = f"continues at {status.position}" if status.position else ""
        again = "requeued" if status.phase else ""
        return "pending", "; ".join(filter(None, (queued.why, again, saved)))
    return "starting", "" if queued.state == "RUNNING" else queued.state.lower()


def _state_before_start(status: RunStatus, queue: Queue | None) -> tuple[str, str]:
    """Return the state and note of a run that has neither a heartbeat nor a live job."""
    if (status.queued or not status.is_there()) and was_out_of_memory(status):
        return "failed", "out of memory; request more with --mem"
    if status.queued:
        line = last_log_line(status)
        ended = status.queued.state.lower().replace("_", " ")
        state = "cancelled" if ended == "cancelled" else "failed"
        return state, line if line and state == "failed" else f"Slurm says {ended}"
    if status.is_there():
        return "unknown", f"its state.json is missing or broken; {status.resume}"
    if not queue:
        return "submitted", "Slurm does not answer"
    return "gone", last_log_line(status) or "the job left the queue before the run began"


def was_out_of_memory(status: RunStatus) -> bool:
    """Whether squeue or the log reports that the last job of a run ran out of memory."""
    if status.queued is not None and status.queued.state == "OUT_OF_MEMORY":
        return True
    log = log_end(status)
    return OUT_OF_MEMORY.search(JOB_BEGINS.split(log)[-1]) is not None  # search the last start


def _state_by_heartbeat(status: RunStatus, queue: Queue | None) -> tuple[str, str]:
    """Return the state and note of a run whose last heartbeat shows that it was running."""
    age, queued = status.heartbeat_age_s or 0.0, status.queued
    if status.reported_job and queue and status.is_own and (not queued or queued.ended):
        # Ignore squeue's answer if the heartbeat is newer, because the job may have started later.
        if age > time.time() - queue.asked_at + 2 * HEARTBEAT_S:
            why = f"Slurm says {queued.state}" if queued else "its job left the queue"
            if was_out_of_memory(status):
                return "lost", f"out of memory; {status.resume} --mem=…"
            return "lost", "; ".join(filter(None, (why, last_log_line(status), status.remedy)))
    elif (
        not status.reported_job
        and status.is_own
        and status.is_here
        and (status.process is None or not is_alive(status.process, status.time_s))
    ):
        return "dead", f"its process is gone; {status.remedy}"
    if age <= STALE_AFTER_S:
        started = "starting" if status.phase == "starting" else "running"
        return started, status.phase if status.phase in ("validating", "testing") else ""
    where = f" on {status.host}" if status.host else ""
    return (
        "stale",
        f"no heartbeat for {format_duration(age)}{where}: the run hangs or its node is down",
    )


def format_duration(time_s: float) -> str:
    """Return a duration in at most two units, such as 42s, 3m10s, 2h05m or 4d03h."""
    whole = round(time_s)
    for size, unit, small_size, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small_size:02d}{small}"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


# All runs


def survey(runs: Path, queue: Queue | None, folders: Sequence[Path] = ()) -> list[RunStatus]:
    """Return the status of all runs below `runs` and in `folders`; active and new runs come first.

    The list also contains runs without a folder: the runs that `harness submit` recorded, and the
    runs of this project's jobs in `queue`.

    Args:
        runs: the folder of all runs.
        queue: the user's jobs in Slurm; if None, Slurm is not asked.
        folders: paths outside of `runs`. Each is a run or a folder that contains runs; it need not
            exist yet.
    """
    now, jobs = time.time(), queue.jobs() if queue else None
    # The record of a run's submission is in the folder of runs that contains the run. A folder in
    # `folders` may be a run, the folder of a job's runs, or a folder of runs.
    named = [each / up for each in folders for up in (".", "..", "../..")]
    homes = {os.path.realpath(each) for each in (runs, *named)}
    records = [each for home in homes for each in read_submissions(submissions(Path(home)))]
    records.sort(key=lambda each: each.time_s)
    sent = {os.path.realpath(each.folder): each for each in records}

    def look(found: RunFolder) -> RunStatus:
        name = str(found.path).removeprefix(f"{runs}/")
        record = sent.get(found.real)
        status = observe(found.path, name, record, now=now, heartbeat=found.heartbeat)
        infer_state(status, queue)
        return status

    begun = find_runs((runs, *filter(os.path.isdir, folders)))
    statuses = in_threads(look, begun)
    known = {each.real for each in begun}
    top = f"{os.path.realpath(runs)}/"
    waiting = [RunFolder(runs / at.removeprefix(top), at) for at in sent if at not in known]
    statuses += in_threads(look, waiting)
    if queue and jobs:
        statuses += _unrecorded(queue, statuses, runs, now=now)
    return sorted(statuses, key=_order)


def _order(status: RunStatus) -> tuple[int, float, str]:
    rank = ALIVE.index(status.state) if status.state in ALIVE else len(ALIVE)
    return rank, -status.time_s, status.run


def refresh(status: RunStatus, queue: Queue) -> RunStatus:
    """Return the current status of a run; update `status.submission` if a new job continues it."""
    fresh = observe(status.folder, status.run, status.submission, now=time.time())
    infer_state(fresh, queue)
    if fresh.phase == "interrupted" and not (fresh.alive or fresh.job_lives):
        real = os.path.realpath(status.folder)
        records = read_submissions(submissions(Path(real).parent.parent))
        known_s = status.submission.time_s if status.submission else 0.0
        newer = [each for each in records if each.time_s > known_s]
        if own := [each for each in newer if os.path.realpath(each.folder) == real]:
            status.submission = own[-1]
            return refresh(status, queue)
    return fresh


def _unrecorded(
    queue: Queue, known: Sequence[RunStatus], runs: Path, *, now: float
) -> Iterator[RunStatus]:
    """Yield this project's jobs that `harness submit` did not submit and that have no run yet."""
    taken = {each.queued.id for each in known if each.queued}
    names = {each.run for each in known}
    own = {str(PROJECT), os.path.dirname(os.path.realpath(runs))}  # noqa: PTH120 - as a string
    for queued in queue.jobs() or ():
        project, name, words = training_script(queued) or ("", "", [])
        file, job_id = Path(project, "jobs", f"{name}.toml"), queued.id
        if name == "tune":  # all tasks of an array work on the same search
            file = Path(project, *[word for word in words if word.endswith(".toml")][:1])
            job_id = queued.id.partition("_")[0]
        job = text(read_toml(file).get("name")) or file.stem
        run = f"{job}/slurm-{job_id}"
        is_job = project in own and file.is_file()
        if not is_job or queued.id in taken or queued.ended or run in names:
            continue
        names.add(run)
        task = job_id.partition("_")[2]
        status = RunStatus(
            run=run,
            folder=runs / run,
            job=job,
            seed=int(task) if task.isdigit() else None,
            slurm_job=queued.id,
            time_s=now,
        )
        infer_state(status, queue)
        status.slurm_job = job_id
        yield status


# Runs by name


def select_runs(
    names: Sequence[str], runs: Path, queue: Queue | None, *, many: bool = False
) -> list[RunStatus]:
    """Return the runs that `pick` finds for these names, in the order of `survey`.

    Raises:
        InputError: if `pick` refuses a name.
    """
    statuses = survey(runs, queue, [Path(name) for name in names if name.strip()])
    chosen = {id(run) for name in names for run in pick(name, statuses, runs, many=many)}
    return [run for run in statuses if id(run) in chosen]


def _is_of_job(status: RunStatus, job: str) -> bool:
    """Whether a run belongs to `job`, the id of a Slurm job, an array or an array task.

    If another job continues a run, the folder of the run keeps the id of the first job.
    """
    shown = status.slurm_job or ""
    if job in (shown, status.reported_job) or shown.startswith(f"{job}_"):
        return True
    return re.fullmatch(rf"slurm-{job}(_\d+)?(-seed\d+)?", status.folder.name) is not None


def pick(
    name: str, statuses: Sequence[RunStatus], runs: Path, *, many: bool = False
) -> list[RunStatus]:
    """Return the runs that a name selects: a folder, a run id, or the id of a Slurm job or array.

    Args:
        statuses: the runs to search, as `survey` returns them. To find a folder outside of
            `runs`, pass `name` to `survey` as one of its `folders`.
        many: whether `name` may be a folder of runs, or a run id that several jobs use.

    Raises:
        InputError: if the name selects no run, or several runs although `many` is false. The id of
            a Slurm job or array may always select several runs.
    """
    if not name.strip():
        raise InputError("run '': specify a folder, a run id or the id of a Slurm job")
    paths = [(os.path.realpath(each.folder), each) for each in statuses]
    for folder in (os.path.realpath(name), os.path.realpath(runs / name)):
        found = [each for path, each in paths if path == folder]
        found = found or [each for path, each in paths if path.startswith(f"{folder}/")]
        if found:
            return found if many else [one(name, found)]
    of_job = [each for each in statuses if JOB_ID.fullmatch(name) and _is_of_job(each, name)]
    if of_job:
        return of_job
    if found := [each for each in statuses if name in (each.run, each.folder.name)]:
        return found if many else [one(name, found)]
    known = {known for each in statuses for known in (each.run, each.folder.name, each.slurm_job)}
    hint = did_you_mean(name, [*filter(None, known)]) or "; harness status --all lists all runs"
    raise InputError(f"run {name}: no run has this folder, id or job; searched in {runs}{hint}")


def one(name: str, found: Sequence[RunStatus]) -> RunStatus:
    """Return the only run in a list.

    Raises:
        InputError: if the list contains several runs; the message names up to five.
    """
    if len(found) > 1:
        names = ", ".join(each.run for each in found[:5])
        raise InputError(f"run {name}: matches {len(found)} runs; specify one, such as {names}")
    return found[0]
