"""Call Slurm's client programs, and list the user's jobs in the queue."""

import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import InputError, RunError
from harness.slurm.environment import OF_CALLERS, OF_USERS, SlurmEnvironment

TIMEOUT_S = 60
SETTINGS_TIMEOUT_S = 10
NO_NODES = "configuration is not available"
NO_CONTROLLER = re.compile("unable to contact|timed out|zero bytes|standby|temporarily", re.I)


class NoAnswerError(RunError):
    """A program of Slurm did not answer in time; Slurm may still have executed the request."""


class NoNodesError(RunError):
    """`sbatch --test-only` found no suitable node, or all suitable nodes are down."""


def has_client(program: str) -> bool:
    """Whether this client program of Slurm is on the PATH."""
    return shutil.which(program) is not None


def call(
    *args: str, stdin: str = "", timeout_s: float | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program of Slurm with `stdin` as standard input; return its exit code and output.

    Raises:
        InputError: if the program is not on the PATH.
        NoAnswerError: if the program does not answer in time.
    """
    program = "sbatch" if "sbatch" in args else args[0]  # the first word may be `env`
    if not has_client(program):
        raise InputError(
            f"{program}: is not on the PATH; run harness on a node with Slurm's programs, such as "
            "a login node, or load the site's module for Slurm"
        )
    timeout_s = timeout_s or TIMEOUT_S
    hidden = OF_CALLERS if program == "sbatch" else OF_USERS
    try:
        return subprocess.run(  # noqa: S603 - a list of arguments, no shell
            args,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",  # names of jobs and files need not be UTF-8
            timeout=timeout_s,
            check=False,
            env={name: value for name, value in os.environ.items() if not hidden.fullmatch(name)},
            # Ctrl-C in a terminal must not end sbatch, because Slurm may have accepted the job.
            start_new_session=program == "sbatch",
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"{shlex.join(args)}: no answer within {timeout_s:.0f} s; try again, or check Slurm "
            "with scontrol ping"
        ) from None


def errors_of(done: "subprocess.CompletedProcess[str]") -> str:
    """Return all messages of a failed program in one line, without `Try … --help`.

    All messages matter: the last one may be only `Unspecified error`, after a message in which a
    site's plugin states the reason.
    """
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    messages = [line for line in lines if not line.startswith("Try ")]
    return "; ".join(messages) or f"exit code {done.returncode}"


def ask(*args: str, timeout_s: float | None = None) -> str:
    """Run a client program, and return its standard output.

    Raises:
        InputError: if the program is not on the PATH.
        RunError: if the program fails (the message states why) or does not answer in time.
    """
    done = call(*args, timeout_s=timeout_s)
    if done.returncode != 0:
        raise RunError(f"{shlex.join(args)}: {errors_of(done)}")
    return done.stdout


def read_settings() -> dict[str, str]:
    """Return Slurm's configuration, such as MaxArraySize; empty if Slurm does not answer."""
    try:
        text = ask("scontrol", "show", "config", timeout_s=SETTINGS_TIMEOUT_S)
    except (InputError, RunError):
        return {}
    return dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", text, re.MULTILINE))


def node_names(allocation: SlurmEnvironment) -> list[str]:
    """Return the names of the job step's nodes, in the order of the step's tasks.

    Outside of a job step, return the names of the job's nodes. If the job has only one node, the
    name of this node may be empty.

    Raises:
        InputError: if no job script exported the names and scontrol is not on the PATH.
        RunError: if no job script exported the names and Slurm does not answer.
    """
    if allocation.num_nodes == 1:
        return [allocation.node]
    # scontrol expands n[08-10] to n08, n09 and n10.
    return (
        list(allocation.nodes) or ask("scontrol", "show", "hostnames", allocation.node_list).split()
    )


def sbatch_args(unset: Sequence[str] = ()) -> list[str]:
    """Return the command for sbatch; if `unset` has names, `env` removes these variables."""
    return [*(["env", *(f"-u{name}" for name in unset)] if unset else []), "sbatch"]


def would_start(
    script: str, *flags: str, unset: Sequence[str] = (), timeout_s: float | None = None
) -> str:
    """Ask sbatch when and where a job would start, and return its answer; submit nothing.

    Args:
        script: the text of the job script.
        flags: sbatch options.
        unset: environment variables to hide from sbatch.
        timeout_s: the seconds to wait for the answer.

    Raises:
        InputError: if sbatch is not on the PATH, or if it refuses the job.
        NoNodesError: if no node suits the job, or if all suitable nodes are down.
        NoAnswerError: if sbatch does not answer in time.
        RunError: if sbatch does not reach Slurm's controller.
    """
    words = [*sbatch_args(unset), "--test-only", *flags]
    done = call(*words, stdin=script, timeout_s=timeout_s)
    answer = errors_of(done).removeprefix("sbatch: ")  # sbatch reports success on stderr too
    if done.returncode != 0:
        kind = RunError if NO_CONTROLLER.search(answer) else InputError
        raise (NoNodesError if NO_NODES in answer else kind)(f"would not start: {answer}")
    return answer


# The user's jobs in the queue

ASK_EVERY_S = 30.0  # seconds between two calls of squeue; some sites forbid more frequent calls
QUEUE_TIMEOUT_S = 5.0
BATCH_SCHED_DELAY_S = 3  # Slurm's default for batch_sched_delay

# `--states=all` also lists the jobs that ended in the last minutes.
SQUEUE = ("squeue", "--me", "--array", "--noheader", "--states=all",
          "--format=%i|%A|%T|%M %l|%r|%o")  # fmt: skip

WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL",
         "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}  # fmt: skip


@dataclass(frozen=True)
class QueuedJob:
    """A job or an array task in the queue."""

    id: str  # the job's id as Slurm shows it: 12, or 12_3 for an array task
    raw_id: str  # Slurm's number for the job or array task, such as 15
    state: str  # such as RUNNING
    reason: str  # the reason for the state, such as Priority
    elapsed_s: float  # seconds since the last start
    command: str  # the submitted script with its arguments, empty for a job without a script
    limit_s: float = 0.0  # the time limit in seconds, 0 without a limit

    @property
    def waits(self) -> bool:
        """Whether the job is waiting to start or restart."""
        return self.state in WAITING

    @property
    def why(self) -> str:
        """The reason for the job's state; empty if Slurm states none."""
        return "" if self.reason == "None" else self.reason

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.state in ENDED


class Queue:
    """The user's jobs in the queue. The class calls squeue at most once in `every_s` seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.every_s = ASK_EVERY_S
        self.asked_at = float("-inf")
        self.problem: str | None = None  # why squeue did not answer; None if no call failed
        self._jobs: list[QueuedJob] | None = None
        self._lock = threading.Lock()  # while one thread calls squeue, other threads wait

    def jobs(self) -> list[QueuedJob] | None:
        """Return all jobs of the user; None if squeue is missing or does not answer."""
        with self._lock:
            if self.clock() - self.asked_at >= self.every_s:
                self.problem, self._jobs = None, None
                self.asked_at = self.clock()
                try:
                    if has_client("squeue"):
                        self._jobs = parse_jobs(ask(*SQUEUE, timeout_s=QUEUE_TIMEOUT_S))
                except (InputError, RunError, OSError) as error:
                    self.problem = f"squeue gives no answer ({str(error).rpartition(': ')[2]})"
            return self._jobs


def first_look_s(settings: Mapping[str, str]) -> float:
    """Return the seconds from a job's submission until Slurm first tries to start the job.

    Args:
        settings: Slurm's configuration, as `read_settings` returns it; if empty, return 0.
    """
    if not settings:
        return 0.0
    found = re.search(r"batch_sched_delay=(\d+)", settings.get("SchedulerParameters", ""))
    return 1.0 + (int(found[1]) if found else BATCH_SCHED_DELAY_S)


def ask_about(job_ids: Sequence[str]) -> list[QueuedJob]:
    """Return the jobs with these ids, from one call of squeue; empty if squeue does not answer."""
    try:
        return parse_jobs(ask(*SQUEUE, f"--jobs={','.join(job_ids)}", timeout_s=QUEUE_TIMEOUT_S))
    except (InputError, RunError, OSError):
        return []


def parse_jobs(text: str) -> list[QueuedJob]:
    """Return the jobs in the output of squeue; malformed lines are skipped."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) == 6 and fields[1].isdigit():
            job_id, raw_id, state, times, reason, command = fields
            command = "" if command == "(null)" else command.strip()
            elapsed_s, limit_s = map(seconds, times.partition(" ")[::2])
            jobs.append(QueuedJob(job_id, raw_id, state, reason, elapsed_s, command, limit_s))
    return jobs


def seconds(text: str) -> float:
    """Convert Slurm's `[days-][[hours:]minutes:]seconds` to seconds; 0 for any other text."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    days, hours, minutes, rest = (int(part or 0) for part in match.groups()) if match else (0,) * 4
    return float(86_400 * days + 3600 * hours + 60 * minutes + rest)


def find_job(
    jobs: Sequence[QueuedJob], raw_id: str | None, shown_id: str | None
) -> QueuedJob | None:
    """Return the job that trains a run; return None if no job trains the run.

    Args:
        jobs: the user's jobs.
        raw_id: Slurm's number for the job, from the run's heartbeat; None if there is none.
        shown_id: the job's id as Slurm shows it, from the heartbeat or the name of the folder.
    """
    by_name = [job for job in jobs if job.id == shown_id]
    if raw_id is None:
        return by_name[0] if by_name else None
    own = [job for job in jobs if job.raw_id == raw_id]
    # For an array task, `shown_id` must match too, because waiting tasks of an array share a raw
    # id. For a job without an array, `shown_id` need not match: the job may continue a run that an
    # array task began.
    both = [j for j in own if j.id == shown_id or "_" not in j.id or "_" not in (shown_id or "")]
    return both[0] if both else None


def training_script(job: QueuedJob) -> tuple[str, str, list[str]] | None:
    """Return the project's folder, the script's name and the script's arguments.

    If the job's script is not `<project's folder>/slurm/<name>.sh`, return None.
    """
    found = re.fullmatch(r"(/.*?)/?slurm/([A-Za-z0-9_.-]+)\.sh(\s.*)?", job.command)
    return (os.path.realpath(found[1]), found[2], (found[3] or "").split()) if found else None
