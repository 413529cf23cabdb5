"""What becomes of a job that failed without a signal: it goes back into the queue, or gives up.

Slurm may kill the whole job for want of memory, script and all: then only its log and the queue can
tell.

The job scripts ask after each failure. `<runs>/.submissions/failures-<job id>.json` counts them.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files.atomic_file import atomic_write
from harness.files.leased_dir import to_json
from harness.files.lenient_json import number, read_json, table, text, whole
from harness.slurm.environment import SlurmEnvironment, given_memory_gb
from harness.slurm.script import submissions
from harness.system.host import memory_peak_gb
from harness.tracking.records import RunStatus, log_end

RAISE = 1.5
STATE = "OUT_OF_MEMORY"  # of a job in Slurm's queue

# What slurmstepd writes into the log, by its own accounting or by the kernel's.
_SIGNS = re.compile(r"exceeded (job |step )?memory limit|oom[-_ ]?kill", re.IGNORECASE)
_BEGIN = re.compile(r"\bjob \d+ on [^\n]*", re.MULTILINE)  # as each start of a job begins its log

KILLED = 137  # by SIGKILL, which for a job is mostly the kernel's for want of memory
MAX_SAME_FAILURES = 3  # of the same exit code, without a step in between
MAX_MEMORY_RETRIES = 2


@dataclass(frozen=True)
class Verdict:
    """Whether the job goes back into the queue, and why or why not."""

    requeue: bool
    reason: str
    memory_mb: int | None = None  # that it asks for from now on


def judge(code: int, run: str, runs: Path, *, allocation: SlurmEnvironment) -> Verdict:
    """Count this failure of a job, and say what becomes of the job.

    Args:
        code: the exit code of its harness.
        run: the folder or id of its run; empty if it has several.
    """
    state = _state(run, runs)
    # The heartbeat of a search counts its trials.
    reached = max(whole(state.get(key)) or 0 for key in ("step", "finished"))
    path = submissions(runs) / f"failures-{allocation.first_job_id}.json"
    record = read_json(path)
    before = whole(record.get("step")) or 0
    is_same = record.get("code") == code and reached <= before
    count = (whole(record.get("count")) or 0) + 1 if is_same else 1
    retries = whole(record.get("memory_retries")) or 0
    verdict = _judge(code, count, state, allocation=allocation, retries=retries)
    record = {
        "format": 1,
        "code": code,
        "step": max(reached, before),  # a failure at the start reaches none
        "count": count,
        "memory_retries": retries + (verdict.memory_mb is not None),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, to_json(record))
    return verdict


def _judge(
    code: int,
    count: int,
    state: dict[str, Any],
    *,
    allocation: SlurmEnvironment,
    retries: int,
) -> Verdict:
    if code == KILLED and allocation.num_nodes == 1:
        return _out_of_memory(state, allocation, retries)
    if count >= MAX_SAME_FAILURES:
        why = text(state.get("error")) or text(state.get("signal")) or "see above"
        told = f"given up: ended {count} times with exit code {code} without a step more"
        return Verdict(requeue=False, reason=f"{told}: {why}")
    return Verdict(requeue=True, reason="")


def _out_of_memory(state: dict[str, Any], allocation: SlurmEnvironment, retries: int) -> Verdict:
    """Tell what was asked and used; ask for half as much again if the user wants that."""
    asked_gb, device = given_memory_gb(allocation), table(state, "device")
    used_gb = memory_peak_gb() or number(device.get("memory_gb"))
    asked = f"{asked_gb:.1f} GB" if asked_gb else "all memory of the node"
    told = f"killed, most likely for want of memory: {asked} asked"
    told += f", {used_gb:.1f} GB used when last seen" if used_gb else ""
    if not asked_gb:
        return Verdict(requeue=False, reason=told)
    more_mb = round(asked_gb * 1e9 / 2**20 * RAISE)  # as --mem takes it with an M
    if allocation.retries_memory and retries < MAX_MEMORY_RETRIES:
        again = f"{told}; back into the queue with {more_mb} MB"
        return Verdict(requeue=True, reason=again, memory_mb=more_mb)
    return Verdict(requeue=False, reason=f"{told}; give --mem={more_mb}M or more")


def _state(run: str, runs: Path) -> dict[str, Any]:
    """The heartbeat of a run, empty if it has none."""
    folders = [Path(run)] if "/" in run else sorted(runs.glob(f"*/{run}")) if run else []
    return read_json(folders[0] / "state.json") if folders else {}


def was_out_of_memory(status: RunStatus) -> bool:
    """Whether the last job of a run was killed for want of memory, by the queue or its log."""
    if status.queued is not None and status.queued.state == STATE:
        return True
    log = log_end(status)
    begins = [found.start() for found in _BEGIN.finditer(log)]
    return _SIGNS.search(log, begins[-1] if begins else 0) is not None  # each start writes on it
