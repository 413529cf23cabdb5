"""Processes of this machine: how old one is, and whether it is still a run's."""

import os
import subprocess
import time
from pathlib import Path

PROGRAMS = {b"harness", b"__main__.py", b"cli.py"}
TRAINING = {b"train", b"resume", b"tune"}  # the commands that keep a run
CLOCK_SLACK_S = 2.0


def age_s(process: int | None = None) -> float | None:
    """Seconds since a process was started, by default this one; None where unknown."""
    try:
        # Field 22 of proc_pid_stat(5): the start in clock ticks since the machine's.
        stat = Path(f"/proc/{process or 'self'}/stat").read_text(errors="replace")
        started = int(stat.rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def keeps_run(process: int, heartbeat_time_s: float) -> bool:
    """Whether the process that wrote a heartbeat at that time still lives.

    A number that the system has given to another process since does not count: that one is no
    harness, or it began after the heartbeat.
    """
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's, which may be the run's owner
    words = [word.rpartition(b"/")[2] for word in _command(process)]
    if not PROGRAMS.intersection(words) or not TRAINING.intersection(words):
        return False
    age = age_s(process)
    return age is None or time.time() - age <= heartbeat_time_s + CLOCK_SLACK_S


def _command(process: int) -> list[bytes]:
    """The words of a process's command line, none for one that has ended."""
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return []
    words = ["ps", "-o", "command=", "-p", str(process)]
    try:
        done = subprocess.run(words, capture_output=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split()
