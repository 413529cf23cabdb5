"""The user's jobs in Slurm's queue, from one squeue call for all, made rarely."""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import InputError, RunError
from harness.slurm import client

ASK_EVERY_S = 30.0  # some sites forbid more frequent calls
TIMEOUT_S = 5.0
BATCH_SCHED_DELAY_S = 3  # Slurm's default

# Ended jobs too: Slurm remembers them, and why they ended, for some minutes.
SQUEUE = ("squeue", "--me", "--array", "--noheader", "--states=all",
          "--format=%i|%A|%T|%M|%r|%o")  # fmt: skip

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL",
         "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}  # fmt: skip


@dataclass(frozen=True)
class QueuedJob:
    """A job or an array task as Slurm knows it."""

    id: str  # as users write it: 12, or 12_3 for an array task
    raw_id: str  # by which the job knows itself
    state: str  # such as RUNNING
    reason: str  # why it waits, such as Priority
    elapsed_s: float  # since its last start
    command: str  # the script that was submitted, empty for a job without one

    @property
    def waits(self) -> bool:
        """Whether it waits for its start or restart."""
        return self.state in WAITING

    @property
    def why(self) -> str:
        """Why it waits; empty if nothing is known."""
        return "" if self.reason == "None" else self.reason

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state in ENDED


class Queue:
    """Asks squeue for all of the user's jobs, at most every `every_s` seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.every_s = ASK_EVERY_S
        self.asked_at = float("-inf")
        self.problem: str | None = None  # why squeue gave no answer
        self._jobs: list[QueuedJob] | None = None

    def jobs(self) -> list[QueuedJob] | None:
        """The jobs; None without Slurm or without an answer."""
        if client.has_client("squeue") and self.clock() - self.asked_at >= self.every_s:
            self.problem = None
            self.asked_at = self.clock()
            try:
                self._jobs = parse(client.ask(*SQUEUE, timeout_s=TIMEOUT_S))
            except (InputError, RunError, OSError) as error:
                self._jobs = None
                self.problem = f"squeue gives no answer ({str(error).rpartition(': ')[2]})"
        return self._jobs


def first_look_s(settings: Mapping[str, str]) -> float:
    """How long Slurm may take to consider a new job, by its settings; 0 if they are not known."""
    if not settings:
        return 0.0
    found = re.search(r"batch_sched_delay=(\d+)", settings.get("SchedulerParameters", ""))
    return 1.0 + (int(found[1]) if found else BATCH_SCHED_DELAY_S)


def ask_about(job_ids: Sequence[str]) -> list[QueuedJob]:
    """Some jobs, from one squeue call; none if it gives no answer."""
    if not client.has_client("squeue"):
        return []
    try:
        return parse(client.ask(*SQUEUE, f"--jobs={','.join(job_ids)}", timeout_s=TIMEOUT_S))
    except (InputError, RunError, OSError):
        return []


def parse(text: str) -> list[QueuedJob]:
    """The jobs in squeue's output; other lines are skipped."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) == 6 and fields[1].isdigit():
            job_id, raw_id, state, elapsed, reason, command = fields
            command = "" if command == "(null)" else command.strip()
            jobs.append(QueuedJob(job_id, raw_id, state, reason, seconds(elapsed), command))
    return jobs


def seconds(text: str) -> float:
    """Slurm's `[days-][[hours:]minutes:]seconds` in seconds; 0 for any other text."""
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        return 0.0
    days, _, rest = text.rpartition("-")
    total = 0
    for part in rest.split(":"):
        total = 60 * total + int(part)
    return float(86_400 * int(days or 0) + total)


def find_job(
    jobs: Sequence[QueuedJob], raw_id: str | None, shown_id: str | None
) -> QueuedJob | None:
    """The job of a run, by the id in its heartbeat, or else by the one in its folder's name."""
    by_name = [job for job in jobs if job.id == shown_id]
    if raw_id is None:
        return by_name[0] if by_name else None
    own = [job for job in jobs if job.raw_id == raw_id]
    # Tasks that never started share the id of their array, so the name decides. A job that is no
    # task may go on with the run of one.
    both = [j for j in own if j.id == shown_id or "_" not in j.id or "_" not in (shown_id or "")]
    return both[0] if both else None


def training_script(job: QueuedJob) -> tuple[str, str] | None:
    """The project's folder and the name of a job that was submitted as `slurm/<name>.sh`."""
    found = re.fullmatch(r"(/.*?)/?slurm/([A-Za-z0-9_.-]+)\.sh(?:\s.*)?", job.command)
    return (os.path.realpath(found[1]), found[2]) if found else None
