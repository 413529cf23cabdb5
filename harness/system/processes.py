"""Processes of this machine: how old one is, and whether it is still a run's."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

WORKER = b"harness.tuning.worker"  # of a sweep, which keeps its trials
PROGRAMS = {b"harness", b"__main__.py"}
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


def end_with_parent(grace_s: float = 60.0) -> None:
    """Have this process get TERM when the one that started it is gone, by whatever signal.

    That one holds the other end of standard input, which ends with it, over srun too. Who has not
    ended `grace_s` seconds later is ended at once, with the exit code of an interrupted run.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 64):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os._exit(75)

    threading.Thread(target=watch, daemon=True).start()


def is_run_alive(process: int, heartbeat_time_s: float) -> bool:
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
    trains = PROGRAMS.intersection(words) and TRAINING.intersection(words)
    if not trains and WORKER not in words:
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
