"""Slurm's client programs, called with lists of arguments and time limits; the user's queue."""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError, RunError
from harness.slurm.environment import OF_CALLERS, OF_USERS, SlurmEnvironment

TIMEOUT_S = 30
SETTINGS_TIMEOUT_S = 10
BAD_OPTION = 255  # sbatch's exit code
NO_NODES = "configuration is not available"
# What sbatch says if it is not the job that is refused.
NO_SLURM = re.compile("unable to contact|timed out|zero bytes|standby mode|temporarily", re.I)


class NoAnswerError(RunError):
    """A program gave no answer. What it was called for may be done all the same."""


class NoNodesError(RunError):
    """`sbatch --test-only` finds no nodes: there are none, or all that suit are down at present."""


def has_client(program: str = "sbatch") -> bool:
    """Whether one of Slurm's client programs is on the PATH."""
    return shutil.which(program) is not None


def call(*args: str, timeout_s: float = TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
    """Call a client program, and return its exit code and output.

    Raises:
        InputError: if the program is not on the PATH.
        NoAnswerError: if it does not answer in time.
    """
    if not has_client(args[0]):
        raise InputError(
            f"{args[0]}: is not on the PATH; run this on a node with Slurm's clients, such as a "
            "login node, or load the site's module"
        )
    hidden = OF_CALLERS if "sbatch" in args else OF_USERS
    try:
        return subprocess.run(  # noqa: S603 - a list of arguments, no shell
            args,
            capture_output=True,
            text=True,
            errors="replace",  # a name of some job or file need not be UTF-8
            timeout=timeout_s,
            check=False,
            env={name: value for name, value in os.environ.items() if not hidden.fullmatch(name)},
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"{shlex.join(args)}: no answer within {timeout_s:.0f} s; is Slurm up?"
        ) from None


def errors_of(done: "subprocess.CompletedProcess[str]") -> str:
    """What a failed program says, in one line, apart from its hint at --help.

    A site's own rules speak first; the last line is often only `Unspecified error`.
    """
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    messages = [line for line in lines if not line.startswith("Try ")]
    return "; ".join(messages) or f"exit code {done.returncode}"


def has_cluster() -> bool:
    """Whether Slurm answers here: its programs may be installed where no cluster is."""
    try:
        ask("sinfo", "--noheader", "--format=%P", timeout_s=SETTINGS_TIMEOUT_S)
    except NoAnswerError:  # a controller that is busy is one all the same
        return True
    except (InputError, RunError):
        return False
    return True


def ask(*args: str, timeout_s: float = TIMEOUT_S) -> str:
    """Call a client program, and return what it printed.

    Raises:
        InputError: if the program is not on the PATH.
        RunError: if it fails or does not answer in time, with all that it says.
    """
    done = call(*args, timeout_s=timeout_s)
    if done.returncode != 0:
        raise RunError(f"{shlex.join(args)}: {errors_of(done)}")
    return done.stdout


def read_settings() -> dict[str, str]:
    """Slurm's configuration by its names, such as MaxArraySize; empty if it does not tell it."""
    try:
        text = ask("scontrol", "show", "config", timeout_s=SETTINGS_TIMEOUT_S)
    except (InputError, RunError):
        return {}
    return dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", text, re.MULTILINE))


def node_names(allocation: SlurmEnvironment) -> list[str]:
    """The nodes of a job step in the order of its tasks, named as Slurm names them.

    In a container, where Slurm's clients may be missing, the job scripts have asked before.

    Raises:
        InputError, RunError: if Slurm must be asked and does not answer.
    """
    if allocation.nodes:
        return list(allocation.nodes)
    return _expanded(allocation.node_list)


def job_nodes(allocation: SlurmEnvironment) -> list[str]:
    """The nodes of the whole job; of one node that Slurm does not name here, an empty name.

    Raises:
        InputError, RunError: if Slurm must be asked and does not answer.
    """
    if allocation.nodes:
        return list(allocation.nodes)
    if allocation.num_nodes > 1:
        return _expanded(allocation.job_node_list)
    return [allocation.node]


def _expanded(node_list: str) -> list[str]:
    """Only Slurm itself expands its lists rightly: `n[08-10]` is n08, n09, n10."""
    return ask("scontrol", "show", "hostnames", node_list).split()


def sbatch_args(unset: Sequence[str] = ()) -> list[str]:
    """The beginning of a command of sbatch, which may not see the variables `unset`."""
    return [*(["env", *(f"-u{name}" for name in unset)] if unset else []), "sbatch"]


def submitted_id(name: str, done: "subprocess.CompletedProcess[str]") -> str:
    """The id of a job that `sbatch --parsable` was called for; a site's own lines may come before.

    Raises:
        NoAnswerError: if it names none.
        InputError: if the job was refused, with all that sbatch says.
        RunError: if Slurm could not take it now.
    """
    if done.returncode != 0:
        raise _refusal(f"{name}: was not submitted: {errors_of(done)}")
    # The cluster's name may follow.
    found = re.findall(r"^[ \t]*(\d+)(?:;.*)?[ \t]*$", done.stdout, re.MULTILINE)
    if not found:
        raise NoAnswerError(f"sbatch printed only {done.stdout.strip()[:200]!r}")
    return str(found[-1])


def would_start(
    script: Path, *flags: str, timeout_s: float = TIMEOUT_S, unset: Sequence[str] = ()
) -> str:
    """When and where Slurm would start a script, as sbatch words it; nothing is submitted.

    Raises:
        InputError: if sbatch is not on the PATH or refuses the job, with all that it says.
        NoNodesError: if there are no nodes for such a job, or all of them are down.
        RunError: if Slurm does not answer.
    """
    done = call(*sbatch_args(unset), "--test-only", *flags, str(script), timeout_s=timeout_s)
    answer = errors_of(done).removeprefix("sbatch: ")  # on standard error even if it is no error
    if done.returncode == BAD_OPTION:
        raise InputError(f"{answer}; see man sbatch")
    if done.returncode != 0:
        told = f"would not start: {answer}"
        raise NoNodesError(told) if NO_NODES in answer else _refusal(told)
    return answer


def _refusal(told: str) -> InputError | RunError:
    return (RunError if NO_SLURM.search(told) else InputError)(told)


# The user's jobs in Slurm's queue, from one squeue call for all, made rarely

ASK_EVERY_S = 30.0  # some sites forbid more frequent calls
QUEUE_TIMEOUT_S = 5.0
BATCH_SCHED_DELAY_S = 3  # Slurm's default

# Ended jobs too: Slurm remembers them, and why they ended, for some minutes.
SQUEUE = ("squeue", "--me", "--array", "--noheader", "--states=all",
          "--format=%i|%A|%T|%M %l|%r|%o")  # fmt: skip

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
    limit_s: float = 0.0  # 0 if Slurm says none

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
        if has_client("squeue") and self.clock() - self.asked_at >= self.every_s:
            self.problem = None
            self.asked_at = self.clock()
            try:
                self._jobs = parse_jobs(ask(*SQUEUE, timeout_s=QUEUE_TIMEOUT_S))
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
    if not has_client("squeue"):
        return []
    try:
        return parse_jobs(ask(*SQUEUE, f"--jobs={','.join(job_ids)}", timeout_s=QUEUE_TIMEOUT_S))
    except (InputError, RunError, OSError):
        return []


def parse_jobs(text: str) -> list[QueuedJob]:
    """The jobs in squeue's output; other lines are skipped."""
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
