"""Writes a run's heartbeat. Reads a run's status from its folder and its submission record."""

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from harness.errors import CANCELLING, Interrupted
from harness.job.search import SEARCH_FILE
from harness.slurm.client import QueuedJob
from harness.slurm.environment import SlurmEnvironment
from harness.system.console import quoted, strip_prefix
from harness.system.files import Record, atomic_write, open_plain_file, read_record
from harness.system.leased_dir import LeasedDirectory, to_json
from harness.system.lenient_json import (
    number,
    numbers,
    parse_json,
    table,
    text,
    whole,
)
from harness.system.processes import in_threads, process_space
from harness.tracking.run_dir import CANCEL, RESULT

HEARTBEAT_S = 5.0  # seconds between two writes of `state.json`


class Heartbeat:
    """Writes the heartbeat of a run or a sweep, the file `state.json`."""

    def __init__(
        self,
        run: LeasedDirectory,
        allocation: SlurmEnvironment | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run, self.clock = run, clock
        previous = run.read_json("state.json")
        self.state: dict[str, Any] = {
            "restarts": (whole(previous.get("restarts")) or 0) + 1 if previous else 0,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "space": process_space(),
            "slurm_job": allocation.job_id if allocation else None,
            "slurm_own_id": allocation.own_id if allocation else None,
            # True if the job runs the harness's script; other jobs may run other programs too.
            "owns_job": allocation is not None and allocation.is_batch,
            "log": allocation.log if allocation else os.environ.get("HARNESS_LOG"),
        }
        self._last = float("-inf")

    def beat(self, phase: str, **values: object) -> None:
        """Set the phase and other fields of the heartbeat.

        The heartbeat is written to `state.json` if the phase is new, or if HEARTBEAT_S seconds or
        more have passed since the last write.

        Args:
            phase: starting, training, validating, testing, searching, finished, interrupted or
                failed.
            values: other fields, such as epoch, step, reviews_per_s and eta_s.
        """
        changed = phase != self.state.get("phase")
        now = self.clock()
        self.state.update(phase=phase, **values)
        if changed or now - self._last >= HEARTBEAT_S:
            self.run.write_json("state.json", {**self.state, "time_s": round(now, 3)})
            self._last = now

    def note(self, **values: object) -> None:
        """Set fields of the heartbeat, which a later call of `beat` writes."""
        self.state.update(values)

    def interrupted(self, reason: Interrupted) -> None:
        """Record that the run has saved its state and stops, and record the reason."""
        self.beat("interrupted", signal=str(reason))


def record_death(run: LeasedDirectory, process: int, error: str) -> None:
    """Record the death of a run's process, unless another process has taken over the run.

    Args:
        process: the id of the dead process.
        error: the reason.
    """
    if run.read_json("lease.json").get("process") == process:  # the dead process holds the lease
        state = run.read_json("state.json")
        died = {**state, "phase": "failed", "error": error, "time_s": round(time.time(), 3)}
        atomic_write(run.path("state.json"), to_json(died))


JOB_ID = re.compile(r"[0-9]+(_[0-9]+)?")
TAIL_BYTES = 8192  # number of bytes that are read at the end of a log
# The fields of the heartbeat, and the functions that check their values.
STATE: dict[str, Callable[[object], Any]] = {
    **dict.fromkeys(("seed", "epoch", "num_epochs", "step", "num_steps", "process"), whole),
    **dict.fromkeys(("val_accuracy", "test_accuracy"), number),
    **dict.fromkeys(("reviews_per_s", "eta_s", "step_ms"), number),
    **dict.fromkeys(("job", "architecture", "host", "phase", "signal", "error", "log"), text),
    "space": text,
    "device": numbers,
}
ALIVE = ("running", "starting", "suspended", "stale", "pending", "submitted")


@dataclass(frozen=True)
class Submission:
    """A run of a submitted job, as `harness submit` recorded it."""

    folder: Path
    job: str | None
    seed: int | None
    log: str | None
    time_s: float  # time of the record's last change, in seconds since 1970
    resumed_by: str | None = None  # the id of the job, if it continues an existing run
    job_file: str | None = None  # the path of the stored job file, which contains all defaults


@dataclass
class RunStatus:
    """The status of a run, or of a job in the queue that has not created its run yet."""

    run: str  # the path relative to --runs, such as lstm/slurm-12_3
    folder: Path
    state: str = "unknown"
    note: str = ""  # the reason for the state, the remedy, or both
    job: str | None = None
    architecture: str | None = None
    seed: int | None = None
    epoch: int | None = None
    num_epochs: int | None = None
    step: int | None = None
    num_steps: int | None = None
    reviews_per_s: float | None = None
    eta_s: float | None = None
    step_ms: float | None = None
    device: dict[str, float] = field(default_factory=dict)  # load, from `resource_monitor`
    # The validation accuracy of the last epoch or, after the run's end, of the saved weights.
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    trials: dict[str, Any] | None = None  # for a sweep: the numbers of finished, failed, … trials
    restarts: int = 0
    slurm_job: str | None = None  # the job's id as Slurm shows it: 12, or 12_3 for an array task
    host: str | None = None
    process: int | None = None
    space: str | None = None  # the `process_space` in which the number `process` is valid
    log: str | None = None
    heartbeat_age_s: float | None = None
    time_s: float = 0.0  # time of the last heartbeat, in seconds since 1970
    phase: str | None = None
    signal: str | None = None
    error: str | None = None
    is_own: bool = True  # whether this user owns the run; squeue shows only this user's jobs
    reported_job: str | None = None  # `QueuedJob.raw_id` of the run's job, from the heartbeat
    submission: Submission | None = None
    queued: QueuedJob | None = None
    is_resubmitted: bool = False  # whether a job was submitted after the last heartbeat

    @property
    def alive(self) -> bool:
        """Whether the run is training or its job is in the queue."""
        return self.state in ALIVE and (self.state != "stale" or self.job_lives)

    @property
    def is_here(self) -> bool:
        """Whether the run's process is on this machine and in this process's container."""
        return self.host == socket.gethostname() and self.space in (None, process_space())

    @property
    def job_lives(self) -> bool:
        """Whether squeue shows the run's Slurm job, and the job has not ended."""
        return self.queued is not None and not self.queued.ended

    @property
    def shares_job(self) -> bool:
        """Whether the run's Slurm job or `harness train` command also trains other seeds."""
        name = Path(os.path.realpath(self.folder)).name  # the folder may be a link, or `.`
        # A command that trains several seeds names each log after its run.
        log = f"-{name}.out"
        if "-seed" in log and (self.log or "").endswith(log):
            return True
        job = re.escape(self.slurm_job or "")  # waiting tasks share an id such as 12_[1-5]
        return bool(re.fullmatch(rf"slurm-{job}-seed\d+", name))

    @property
    def job_log(self) -> str:
        """The log of the job itself, if the job trains several seeds with a log for each seed."""
        return re.sub(r"-slurm-(\d+)-seed\d+\.out$", r"-\1.out", self.log or "")

    def is_there(self, name: str = "") -> bool:
        """Whether the run's folder, or the file `name` in this folder, is visible to this user."""
        return os.path.exists(self.folder / name)  # noqa: PTH110 - `Path.exists` may raise an error

    @property
    def asked_to_cancel(self) -> bool:
        """Whether the user has cancelled the run, before it began or while it ran."""
        return self.is_there(CANCEL)

    @property
    def will_not_begin(self) -> bool:
        """Whether the user cancelled this run, but not its Slurm job, before the run began."""
        return self.phase is None and self.shares_job and self.asked_to_cancel

    @property
    def has_begun(self) -> bool:
        """Whether the folder contains `job.toml` of a run or `search.toml` of a sweep."""
        return self.is_there("job.toml") or self.is_there(SEARCH_FILE)

    @property
    def can_go_on(self) -> bool:
        """Whether a Slurm job could continue the run, or begin it from a recorded job file."""
        return self.has_begun or bool(self.submission and self.submission.job_file)

    @property
    def was_cancelled(self) -> bool:
        """Whether SIGTERM (for example from scancel or harness cancel) or Ctrl-C ended the run.

        The result is also true if SIGTERM came from a shutdown of the machine, or from Slurm at the
        time limit of a job without a warning signal.
        """
        return self.signal in CANCELLING or self.asked_to_cancel

    @property
    def position(self) -> str:
        """The position in the training, such as `epoch 2, step 40`; empty before the first step."""
        parts = [f"{k} {v}" for k, v in (("epoch", self.epoch), ("step", self.step)) if v]
        return ", ".join(parts)

    @property
    def resume(self) -> str:
        """The command that continues the run, in a new Slurm job if the run was in a Slurm job."""
        command = "submit --resume" if self.reported_job else "resume"
        return f"harness {command} {quoted(self.folder)}"

    @property
    def remedy(self) -> str:
        """The remedy for a lost or dead run."""
        return self.resume if self.can_go_on else "the run never began; train its job again"

    def as_json(self) -> dict[str, Any]:
        """Return the content of `harness status --json`."""
        hidden = {"is_own", "reported_job", "submission", "queued", "is_resubmitted", "space"}
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        shown = {name: value for name, value in shown.items() if name not in hidden}
        waits = self.queued.reason if self.queued and self.queued.waits else None
        return {**shown, "folder": str(self.folder.absolute()), "reason": waits}


def read_submissions(folder: Path) -> list[Submission]:
    """Return the runs of submitted jobs, in the order of the submissions.

    Args:
        folder: the folder that contains the records of the submissions.
    """
    try:
        names = [name for name in os.listdir(folder) if name.endswith(".json")]  # noqa: PTH208
    except OSError:  # no folder: no job was submitted yet
        return []
    found = in_threads(lambda name: _read_submission(f"{folder}/{name}"), names)
    return sorted((each for record in found for each in record), key=lambda each: each.time_s)


def _read_submission(file: str) -> list[Submission]:
    """Return the runs in this user's record of a submission; none if the record is broken."""
    record = read_record(file)
    # Another user's record may contain the id of one of this user's jobs.
    if not record or record.owner != os.getuid():
        return []
    sent = parse_json(record.content)
    try:
        job, job_file = sent["job"], sent["job_file"]
        resumed_by = sent["job_id"] if sent["resumes"] else None
        return [
            Submission(Path(folder), job, seed, log, record.modified_s, resumed_by, job_file)
            for folder, seed, log in zip_longest(sent["runs"], sent["seeds"], sent["logs"])
            if folder
        ]
    except (KeyError, TypeError):  # not the record of a submission, or a broken one
        return []


# The folder of a run


def observe(
    folder: Path,
    name: str,
    submission: Submission | None,
    *,
    now: float,
    heartbeat: Record | None = None,
) -> RunStatus:
    """Return the status of a run from its folder; the field `state` is set later by `infer_state`.

    Values that can't be read keep their defaults.

    Args:
        folder: the folder of the run.
        name: the name of the run for tables and messages.
        submission: the submission record of the run, if its job was submitted.
        now: the current time in seconds since 1970.
        heartbeat: the content of the run's `state.json`, if the caller has read the file.
    """
    heartbeat = heartbeat or read_record(f"{folder}/state.json")
    record = heartbeat or read_record(f"{folder}/{RESULT}")  # an ensemble has no heartbeat
    state = parse_json(record.content) if record else {}
    if not heartbeat:
        state["test_accuracy"] = state.get("accuracy")
    modified = record.modified_s if record else None
    is_own = record.owner == os.getuid() if record else _is_own(folder)
    status = RunStatus(
        run=name,
        folder=folder,
        **{name: read(state.get(name)) for name, read in STATE.items()},
        trials=_trials(state) if "trials" in state else None,
        restarts=whole(state.get("restarts")) or 0,
        time_s=number(state.get("time_s")) or modified or _modified_s(folder),
        is_own=is_own,
        reported_job=_job_id(state.get("slurm_job")),
    )
    if heartbeat:
        # The node's clock or the file server's clock may be wrong, so the smaller age counts.
        ages = [now - at for at in (status.time_s, heartbeat.modified_s) if at <= now]
        status.heartbeat_age_s = round(min(ages, default=0.0), 1)
    # A sweep keeps its old result while its search continues with more trials.
    if status.is_there(RESULT) and (status.phase == "finished" or status.trials is None):
        status.phase, status.error = "result", None
    status.submission = submission
    if submission:
        status.job = status.job or submission.job
        status.seed = submission.seed if status.seed is None else status.seed
        # Use the log of the submitted job, except if a command outside of Slurm continued the run.
        if status.reported_job or status.phase in (None, "result"):
            status.log = status.log or submission.log
        status.time_s = status.time_s or submission.time_s
    status.job = status.job or folder.parent.name
    status.slurm_job = _shown_job(status, state)
    # If the heartbeat is older than the submission, the submitted job will continue the run. Both
    # times come from the file server, because a node's clock may be minutes ahead.
    is_newer = submission and (not status.phase or submission.time_s > (modified or 0.0))
    if submission and submission.resumed_by and is_newer:
        status.reported_job = status.slurm_job = submission.resumed_by
        status.log, status.is_resubmitted = submission.log, True
    return status


def _trials(state: dict[str, Any]) -> dict[str, Any]:
    """Return how many trials a sweep's heartbeat reports in each state, and the best trial."""
    best = table(state, "best")
    counts = ("trials", "finished", "failed", "running", "waiting", "workers")
    shown = {"trial": text(best.get("trial")), "score": number(best.get("score"))}
    num_trials = {key: whole(state.get(key)) for key in counts}
    return {**num_trials, "best": shown if best else None}


def describe_trials(trials: dict[str, Any]) -> str:
    """Return a text such as `5 of 24 trials finished, 1 failed, best 0.8812 (trial 07)`."""
    total = f" of {trials['trials']}" if trials["trials"] else ""
    parts = [f"{trials['finished'] or 0}{total} trials finished"]
    parts += [f"{trials[k]} {k}" for k in ("failed", "running", "waiting") if trials[k]]
    if best := trials["best"]:
        parts.append(f"best {number(best.get('score')) or 0:.4f} (trial {best.get('trial')})")
    return ", ".join(parts)


def _shown_job(status: RunStatus, state: dict[str, Any]) -> str | None:
    """Return the id of a run's job as Slurm shows it, such as 12_3.

    The id is read from the heartbeat or, before the run begins, from the name of the run's folder.
    """
    if status.phase:  # outside of Slurm, the heartbeat contains no id
        return _job_id(state.get("slurm_own_id"))
    found = re.fullmatch(r"slurm-(\d+(?:_\d+)?)(-seed\d+)?", status.folder.name)
    return found[1] if found else None


def last_log_line(status: RunStatus) -> str:
    """Return the last nonblank line of a run's log; empty if there is none."""
    lines = log_end(status).splitlines()
    return one_line(strip_prefix(next((line for line in reversed(lines) if line.strip()), "")))


def log_end(status: RunStatus) -> str:
    """Return the last TAIL_BYTES bytes of a run's log; empty if there is no log."""
    for log in filter(None, (status.log, status.job_log)):
        with contextlib.suppress(OSError), open_plain_file(Path(log)) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES).decode(errors="replace")
    return ""


def one_line(text: str) -> str:
    """Return a text in one line, with spaces instead of line breaks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _job_id(value: object) -> str | None:
    """Return `value` if it is the id of a job or array task; None for any other value."""
    return value if isinstance(value, str) and JOB_ID.fullmatch(value) else None


def _modified_s(folder: Path) -> float:
    with contextlib.suppress(OSError, ValueError):  # a record may contain an invalid path
        return folder.stat().st_mtime
    return 0.0


def _is_own(folder: Path) -> bool:
    """Whether a folder or symbolic link belongs to this user or does not exist yet."""
    with contextlib.suppress(OSError, ValueError):
        return folder.lstat().st_uid == os.getuid()
    return True
