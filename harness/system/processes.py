"""Signals that stop a run, processes of this machine, and its hardware."""

import contextlib
import functools
import os
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

# Schedulers send TERM, the keyboard INT, and sites USR1 or USR2 before a time limit. Our scripts
# ask for USR2, because NCCL uses USR1.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SHOW_CURSOR = b"\x1b[?25h\n"


class StopRequest:
    """A request to stop, which a signal makes and the training loop obeys between two steps.

    All workers of a run must stop after the same step, or the others would wait forever in a
    collective operation. So every step adds up the workers' votes, and all workers read the sum at
    the same steps.
    """

    def __init__(self, *, alone: bool = True) -> None:
        """Make a request without a signal; `alone`: whether the run has no other worker."""
        self.alone = alone
        self.signal: signal.Signals | None = None

    @property
    def vote(self) -> float:
        """1 to stop, 0 to continue."""
        return float(self.signal is not None)

    def listen(self) -> None:
        """Handle the signals from now on.

        Call it again after making the strategy: the C++ code of a multi-worker strategy replaces
        the handler for TERM.
        """
        for number in STOPPING:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT:
            end_at_once()  # at the second Ctrl-C; a run survives any end
        if self.signal != signal.SIGTERM:  # TERM means a cancel, and later signals don't undo it
            self.signal = signal.Signals(number)

    def check(self) -> None:
        """Raise if a signal has come and the run has no other worker.

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
    """Delay Ctrl-C to the end of the block; a second Ctrl-C acts at once.

    An import may lose a KeyboardInterrupt, because Python drops an exception in the callback of a
    weak reference, and every module has one. Has no effect outside of the main thread.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before in (signal.SIG_IGN, None):  # None: not a handler of Python
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


AT_ONCE = "harness: interrupted at once; saved files stay"


def end_at_once(line: str = AT_ONCE, code: int = Interrupted.exit_code) -> NoReturn:
    """End this process and its children, with one line and the exit code of an interruption.

    An exception would not do: code on its way, such as an import of TensorFlow, may lose it or
    print a traceback.
    """
    import psutil  # late, because `harness --help` needs neither

    from harness.system import stderr_filter

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    if sys.stdout.isatty():
        os.write(1, SHOW_CURSOR)  # a progress bar hides it
    with contextlib.suppress(OSError):
        os.write(stderr_filter.descriptor, f"{line}\n".encode(errors="backslashreplace"))
    os._exit(code)


WORKER = "harness.tuning.worker"  # of a sweep
PROGRAMS = {"harness", "__main__.py"}
TRAINING = {"train", "resume", "tune"}  # commands with a heartbeat
CLOCK_SLACK_S = 2.0

kept: list[object] = []  # objects whose destructors `leave` skips


def leave(code: int) -> NoReturn:
    """End this process after its work, without destructors.

    On several nodes the destructors of TensorFlow's iterators and servers take up to 30 s, and a
    job that must leave its node may have less time.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def own_code_first() -> dict[str, str]:
    """The environment of a child that imports this code, and nothing from its working folder.

    `python -m` searches the working folder first, which may contain another user's files.
    """
    paths = [str(PROJECT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    path = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def age_s() -> float | None:
    """Seconds since the start of this process, None if unknown.

    psutil rounds the start of a process to a second.
    """
    try:
        # Field 22 of proc_pid_stat(5): the start, in clock ticks since boot.
        stat = Path("/proc/self/stat").read_text(errors="replace")
        started = int(stat.rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def end_with_parent() -> None:
    """Send TERM to this process when its parent ends.

    The parent holds the other end of standard input, which closes when the parent ends, even
    through srun. A minute later this process exits with the code of an interruption.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 64):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        os._exit(75)

    threading.Thread(target=watch, daemon=True).start()


def is_run_alive(process: int, heartbeat_time_s: float) -> bool:
    """Whether the process that wrote a heartbeat at this time is still alive.

    Its id may belong to another process by now, which is no harness or started later.
    """
    import psutil  # late, because `harness --help` does not need it

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
    """The scope of process ids: the boot of this machine and the container; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def is_elsewhere(space: str) -> bool:
    """Whether a `process_space` is another container of this machine since the same boot."""
    boot, _, part = space.partition(" ")
    own_boot, _, own_part = process_space().partition(" ")
    return boot == own_boot and part != own_part


def has_died(process: int, space: str) -> bool:
    """Whether a process in the same space has ended.

    Args:
        space: its `process_space`.
    """
    if not space or space != process_space() or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # another user's, whose /proc may be hidden
        return False
    return _is_zombie(process)


def _is_zombie(process: int) -> bool:
    """Whether a process has ended and its parent has not waited for it."""
    import psutil

    try:
        # A container may show the /proc of its host, with other ids.
        has_own_ids = Path("/proc/self").readlink().name == str(os.getpid())
        return has_own_ids and psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False


def _cgroup_gb(name: str) -> list[float]:
    """A size in GB from a control file, for this process's cgroup (v2) and all its parents."""
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
    """The smallest memory limit of this process's cgroups, None without a limit."""
    return min(_cgroup_gb("memory.max"), default=None)


def memory_peak_gb() -> float | None:
    """The peak memory of this process's cgroup, None if unknown."""
    return next(iter(_cgroup_gb("memory.peak")), None)


def available_gb() -> float:
    """The memory of this machine in GB that is free or can be freed."""
    import psutil

    return float(psutil.virtual_memory().available / 1e9)


def total_memory_gb() -> float:
    """The memory of this machine in GB."""
    import psutil

    return float(psutil.virtual_memory().total / 1e9)


def installed_version(package: str) -> str | None:
    """The version of a package, None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:  # a nightly build has another name
        return None


def processor() -> str:
    """The name of the processor."""
    import platform

    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def nvidia_driver() -> str | None:
    """The NVIDIA driver's description of its version, None without a driver."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
