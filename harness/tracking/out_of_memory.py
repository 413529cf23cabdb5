"""Jobs that Slurm killed whole for want of memory, which their log and the queue tell."""

import re

from harness.tracking.records import RunStatus, log_end

STATE = "OUT_OF_MEMORY"  # of a job in Slurm's queue

# What slurmstepd writes into the log, by its own accounting or by the kernel's.
_SIGNS = re.compile(r"exceeded (job |step )?memory limit|oom[-_ ]?kill", re.IGNORECASE)
_BEGIN = re.compile(r"\bjob \d+ on [^\n]*", re.MULTILINE)  # as each start of a job begins its log


def was_out_of_memory(status: RunStatus) -> bool:
    """Whether the last job of a run was killed for want of memory, by the queue or its log."""
    if status.queued is not None and status.queued.state == STATE:
        return True
    log = log_end(status)
    begins = [found.start() for found in _BEGIN.finditer(log)]
    return _SIGNS.search(log, begins[-1] if begins else 0) is not None  # each start writes on it
