"""This machine and its processes: signals that stop a run, who is alive, what it has."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePath
from types import FrameType
from typing import NoReturn

from harness import PROJECT
from harness.errors import Interrupted
from harness.system import stderr_filter

# TERM from schedulers, INT from the keyboard, USR1 and USR2 as sites send them before a time
# limit (NCCL takes USR1 for itself, so our own job scripts ask for USR2).
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SHOW_CURSOR = b"\x1b[?25h\n"


class StopRequest:
    """Whether this process or another of the run has received one of the stopping signals.

    All workers must stop after the same step, or the rest would wait in a collective operation
    for ever. So each step carries every worker's vote, and all read the sum at the same steps.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.alone = alone
        self.signal: signal.Signals | None = None

    @property
    def vote(self) -> float:
        """1 to stop, 0 to continue."""
        return float(self.signal is not None)

    def listen(self) -> None:
        """Handle the signals from now on.

        Call it again after making the strategy: the C++ side of a multi-worker strategy replaces
        the handler for TERM with its own.
        """
        for number in STOPPING:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            end_at_once()  # the user does not want to wait, and a run survives any end
        if self.signal != signal.SIGTERM:  # a cancel stays one, whatever else comes
            self.signal = signal.Signals(number)

    def check(self) -> None:
        """Raise if a signal has come and this worker may stop by itself.

        Raises:
            Interrupted: with the signal's name.
        """
        if self.alone:
            self.agree(self.vote)

    def agree(self, votes: float) -> None:
        """Raise if any worker has voted to stop.

        Raises:
            Interrupted: with the signal's name.
        """
        if votes > 0:
            raise Interrupted(self.signal.name if self.signal else "a signal to another worker")


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Let Ctrl-C take effect at the end, for what may lose its exception; a second one at once.

    An import does: Python drops an exception that is raised in a callback of a weak reference, of
    which each module has one. Outside the main thread nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before in (signal.SIG_IGN, None):  # ignored; another language's
        yield
        return
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            end_at_once()
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


AT_ONCE = "harness: interrupted at once; what was saved before stays"


def end_at_once(line: str = AT_ONCE, code: int = Interrupted.exit_code) -> NoReturn:
    """End this process and all that it started, with one line and the code of an interruption.

    Not by an exception: code that runs while it is raised, such as an import of TensorFlow, may
    turn it into a traceback or lose it.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    if sys.stdout.isatty():
        os.write(1, SHOW_CURSOR)  # which a progress bar hides
    with contextlib.suppress(OSError):
        os.write(stderr_filter.descriptor, f"{line}\n".encode(errors="backslashreplace"))
    os._exit(code)


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


def _cgroup_gb(name: str) -> list[float]:
    """A size from a control file of this process's cgroup (v2), and of each one above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::")), "/")
        here = Path("/sys/fs/cgroup") / path.lstrip("/")
        files = [folder / name for folder in (here, *here.parents)]
        sizes = [file.read_text().strip() for file in files if file.is_file()]
    except OSError:  # no cgroups on this system
        return []
    return [int(size) / 1e9 for size in sizes if size != "max"]


def memory_limit_gb() -> float | None:
    """The least memory that a cgroup above this process allows, None for no limit."""
    return min(_cgroup_gb("memory.max"), default=None)


def memory_peak_gb() -> float | None:
    """The most memory that this process's cgroup has used, None where that is not known."""
    return next(iter(_cgroup_gb("memory.peak")), None)


def available_gb() -> float:
    """The memory that is free or can be freed."""
    import psutil

    return float(psutil.virtual_memory().available / 1e9)


def gpu_name() -> str | None:
    """The first GPU by its driver's name, None without one."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1].strip()
    return None


def total_memory_gb() -> float:
    """The memory of the machine."""
    import psutil

    return float(psutil.virtual_memory().total / 1e9)


def installed_version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a nightly build has another name
        return None


def processor() -> str:
    """The name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """A field of the first processor from /proc/cpuinfo, empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def nvidia_driver() -> str | None:
    """The NVIDIA driver's description of its version, None where there is no driver."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
