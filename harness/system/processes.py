"""Processes of this machine: how old this one is, and whether another is still a run's."""

import functools
import os
import signal
import sys
import threading
import time
from pathlib import Path, PurePath
from typing import NoReturn

from harness import PROJECT

WORKER = "harness.tuning.worker"  # of a sweep, which trains its trials
PROGRAMS = {"harness", "__main__.py"}
TRAINING = {"train", "resume", "tune"}  # the commands that write a heartbeat
CLOCK_SLACK_S = 2.0

kept: list[object] = []  # that live until the process ends, which ends by `leave` then


def leave(code: int) -> NoReturn:
    """End this process, all of whose work is done, and spare it the end of what it holds.

    On several nodes that of TensorFlow's iterators and servers takes up to 30 s, and a job that is
    to leave its node may have no more.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def own_code_first() -> dict[str, str]:
    """This process's environment for a child: it imports this code, and nothing where it starts.

    `python -m` looks into the current folder first, which may be that of somebody else's run.
    """
    paths = [str(PROJECT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    path = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def age_s() -> float | None:
    """Seconds since this process was started, None where unknown.

    Not by psutil, which knows the start of a process only to within a second.
    """
    try:
        # Field 22 of proc_pid_stat(5): the start in clock ticks since the machine's.
        stat = Path("/proc/self/stat").read_text(errors="replace")
        started = int(stat.rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def end_with_parent() -> None:
    """Send this process TERM when the one that started it has ended, by whatever signal.

    The parent holds the other end of standard input, which closes with it, through srun too. If
    this process is still there a minute later, it exits with the code of an interruption.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 64):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        os._exit(75)

    threading.Thread(target=watch, daemon=True).start()


def is_run_alive(process: int, heartbeat_time_s: float) -> bool:
    """Whether the process that wrote a heartbeat at that time is still alive.

    The system may have given its number to another process since: one that is no harness, or that
    was started after the heartbeat.
    """
    import psutil  # here, since `harness --help` needs none of it

    if process <= 0:
        return False
    try:
        found = psutil.Process(process).as_dict(["cmdline", "create_time"])
    except psutil.NoSuchProcess:
        return False
    names = {PurePath(arg).name for arg in found["cmdline"] or ()}  # None for a zombie
    if WORKER not in names and not (PROGRAMS & names and TRAINING & names):
        return False
    return found["create_time"] is None or found["create_time"] <= heartbeat_time_s + CLOCK_SLACK_S


@functools.cache
def process_space() -> str:
    """Names what tells processes apart by their numbers, empty where unknown.

    It is one start of a machine, and in a container its own part of it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def is_elsewhere(space: str) -> bool:
    """Whether what `process_space` said is of another container on this start of the machine."""
    boot, _, part = space.partition(" ")
    own_boot, _, own_part = process_space().partition(" ")
    return boot == own_boot and part != own_part


def has_died(process: int, space: str) -> bool:
    """Whether a process has ended that can be seen from here.

    Args:
        space: what `process_space` said to it.
    """
    if not space or space != process_space() or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # another user's, whom /proc may hide
        return False
    return _is_zombie(process)


def _is_zombie(process: int) -> bool:
    """Whether a process has ended and nobody has waited for it, which only our own /proc tells."""
    import psutil

    try:
        own_proc = Path("/proc/self").readlink().name == str(os.getpid())
        return own_proc and psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False
