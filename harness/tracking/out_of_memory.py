"""What a job that was killed for want of memory asked for and used, from what it left behind.

Slurm may kill the whole job, script and all: then only its log and the queue can tell.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from harness.files.lenient_json import table
from harness.slurm.environment import SlurmEnvironment, given_memory_gb
from harness.tracking.record_format import RECORD
from harness.tracking.records import RunStatus, log_end
from harness.tracking.run_dir import RunDirectory

RAISE = 1.5
STATE = "OUT_OF_MEMORY"  # of a job in Slurm's queue

# What slurmstepd writes into the log, by its own accounting or by the kernel's.
_SIGNS = re.compile(r"exceeded (job |step )?memory limit|oom[-_ ]?kill", re.IGNORECASE)
_EXCEEDED = re.compile(r"memory limit \((\d{1,18}) > (\d{1,18})\)")  # bytes
_BEGIN = re.compile(r"\bjob \d+ on [^\n]*", re.MULTILINE)  # as each start of a job begins its log
_GIVEN = re.compile(r"(\d{1,9}(?:\.\d+)?) GB")


@dataclass(frozen=True)
class Shortage:
    """The memory of a job that was killed for want of it, in GB; None where nobody knows."""

    asked_gb: float | None
    used_gb: float | None

    def __str__(self) -> str:
        asked = f"{self.asked_gb:.1f} GB asked" if self.asked_gb else "all memory of the node asked"
        return asked + (f", {self.used_gb:.1f} GB used when last seen" if self.used_gb else "")

    @property
    def more_mb(self) -> int | None:
        """Half as much again, as `--mem` takes it with an M."""
        return round(self.asked_gb * 1e9 / 2**20 * RAISE) if self.asked_gb else None


def shortage_of(status: RunStatus) -> Shortage | None:
    """The shortage that ended the last job of a run; None if nothing says that there was one."""
    log = log_end(status)
    begins = list(_BEGIN.finditer(log))
    last = log[begins[-1].start() :] if begins else log  # it is written on by each start
    is_state = status.queued is not None and status.queued.state == STATE
    if not is_state and not _SIGNS.search(last):
        return None
    if exceeded := _EXCEEDED.search(last):
        used, asked = (int(number) / 1e9 for number in exceeded.groups())
        return Shortage(asked, used)
    given = _GIVEN.search(begins[-1][0]) if begins else None
    asked_gb = float(given[1]) if given else _recorded_gb(status.folder)
    return Shortage(asked_gb, status.device.get("memory_gb"))


def _recorded_gb(folder: Path) -> float | None:
    variables = table(RunDirectory(folder).read_json(RECORD), "slurm")
    allocation = SlurmEnvironment.from_environment({k: str(v) for k, v in variables.items()})
    return given_memory_gb(allocation)
