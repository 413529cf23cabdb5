"""Handles signals and threads, and describes this machine's processes and hardware."""

import contextlib
import functools
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from harness import PROJECT
from harness.errors import Interrupted
from harness.system.console import log_last_error, settle_output

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# Schedulers send SIGTERM, Ctrl-C sends SIGINT, and some sites' schedulers send SIGUSR1 or SIGUSR2
# before a time limit. The job scripts ask Slurm for SIGUSR2, because NCCL uses SIGUSR1.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
SHOW_CURSOR = b"\x1b[?25h\n"


class StopRequest:
    """Stores the signal that asks a run to stop.

    Between two steps, the training loop checks whether a signal is stored. All workers of a run
    must stop after the same step; otherwise some workers would wait for ever in a collective
    operation. Each worker has a vote, 1 to stop and 0 to continue, and every step adds up the votes
    of all workers. The workers read this sum only after certain steps, which are the same for all
    workers. If the sum is not 0, all workers stop after this step.
    """

    def __init__(self, *, alone: bool = True) -> None:
        """Begin without a signal. `alone`: whether the run has only one worker."""
        self.alone = alone
        self.signal: signal.Signals | None = None

    @property
    def vote(self) -> float:
        """This worker's vote: 1 to stop, 0 to continue."""
        return float(self.signal is not None)

    def listen(self) -> None:
        """Handle the signals in `STOPPING` from now on.

        Call this method again after making the strategy: the C++ code of a multi-worker strategy
        replaces the handler for SIGTERM.
        """
        for number in STOPPING:
            signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Store a signal that asks the run to stop; at the second Ctrl-C, end the process."""
        if self.signal == number == signal.SIGINT:
            end_at_once()  # the run can be resumed from its last checkpoint
        if self.signal != signal.SIGTERM:  # no later signal replaces SIGTERM, which means: cancel
            self.signal = signal.Signals(number)

    def check(self) -> None:
        """Stop the run if this process is its only worker and has received a signal.

        Raises:
            Interrupted: if the run stops; the message is the signal's name.
        """
        if self.alone:
            self.agree(self.vote)

    def agree(self, votes: float) -> None:
        """Stop the run if any worker has voted to stop.

        Args:
            votes: the number of workers that have voted to stop.

        Raises:
            Interrupted: if the run stops; the message is the signal's name, or says that another
                worker received a signal.
        """
        if votes > 0:
            raise Interrupted(self.signal.name if self.signal else "a signal to another worker")


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Delay the effect of Ctrl-C until the block ends; a second Ctrl-C ends the process at once.

    Without a delay, Ctrl-C during an import may have no effect: an import runs callbacks of weak
    references, and Python drops a KeyboardInterrupt in such a callback. Outside of the main thread
    this function has no effect.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(before):  # nothing to delay, for example if SIGINT is ignored
        yield
        return
    request = StopRequest()
    signal.signal(signal.SIGINT, request.note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if request.signal:  # not `raise_signal`, which a watchdog would count as a second Ctrl-C
            before(signal.SIGINT, None)


AT_ONCE = "interrupted by Ctrl-C and ended at once; saved files are kept"
# The main thread and a watchdog may both end the process. Only the thread that acquires this lock
# first writes a line, because it never releases the lock.
ENDS = threading.RLock()


def end_at_once(text: str = AT_ONCE, code: int = Interrupted.exit_code) -> NoReturn:
    """Kill this process's children, write an error line to standard error, and exit with `code`.

    An exception would not always end the process: an import of TensorFlow, for example, may drop
    the exception or print a traceback.
    """
    import psutil  # imported here, because `harness --help` does not need it

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    if sys.stdout.isatty():
        os.write(1, SHOW_CURSOR)  # a progress bar may have hidden the cursor
    ENDS.acquire()
    log_last_error(text)
    os._exit(code)


CLOCK_SLACK_S = 2.0
MAX_THREADS = 32
# Each thread, except the last, gets at least this many items, because starting a thread takes
# longer than one call to a local disk.
MIN_ITEMS = 8

# Objects with slow destructors, or with threads that may hang. If the list contains any object,
# `main` ends the process by calling `leave`.
kept: list[object] = []


def leave(code: int) -> NoReturn:
    """End this process when its work is done, without running destructors.

    On several nodes the destructors of TensorFlow's iterators and servers take up to 30 s, and a
    job that must leave its node may have less time.
    """
    settle_output()
    os._exit(code)


def in_threads(ask: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
    """Call `ask` for all items in parallel threads, because a network disk may answer slowly.

    Returns:
        The results of the calls, in the order of the items. If a call or a signal's handler raises
        an error, this function raises the error too, and does not wait for the other calls.
    """
    size = max(MIN_ITEMS, -(-len(items) // MAX_THREADS))  # a future for each item would be slower
    parts = [items[at : at + size] for at in range(0, len(items), size)]
    if len(parts) < 2:
        return [ask(item) for item in items]
    pool = ThreadPoolExecutor(len(parts))
    try:
        answers = pool.map(lambda part: [*map(ask, part)], parts)
        return list(itertools.chain(*answers))
    except BaseException:
        kept.append(pool)  # else the command would wait for the threads before it exits
        raise
    finally:
        pool.shutdown(wait=False)


def own_code_first() -> dict[str, str]:
    """Return environment variables for a child that must not import code of its working folder.

    By default `python -m` first searches the working folder, which may contain another user's
    files.
    """
    paths = [str(PROJECT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    path = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def age_s() -> float:
    """Return the seconds since this process started, more exactly than psutil: to 0.01 s."""
    # Field 22 of proc_pid_stat(5): the start, in clock ticks since boot.
    stat = Path("/proc/self/stat").read_text(errors="replace")
    started = int(stat.rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def end_with_parent() -> None:
    """Send SIGTERM to this process when its parent ends.

    Standard input must be a pipe that closes when the parent ends. If the parent has started this
    process by srun, srun provides the pipe, and closes it when the parent ends.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 64):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def call_within(limit_s: float, function: Callable[[], object]) -> None:
    """Call a function in another thread, and wait at most `limit_s` seconds for its end."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(limit_s)


def is_alive(process: int, seen_s: float) -> bool:
    """Whether a process is still alive; a zombie is not alive.

    Args:
        process: the process id.
        seen_s: a time, in seconds since 1970, at which the process ran. A process with this id that
            started later is another process.
    """
    import psutil  # imported here, because `harness --help` does not need it

    try:
        found = psutil.Process(process)
        is_same = found.create_time() <= seen_s + CLOCK_SLACK_S
        return is_same and found.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):  # ValueError: a broken record
        return False


@functools.cache
def process_space() -> str:
    """Return an id of this boot, PID namespace and user; return "" if the id is unknown.

    Process ids are valid only within a PID namespace, until the next boot. The processes of other
    users may be invisible, because clusters often mount `/proc` with `hidepid`.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').stat().st_ino} {os.getuid()}"
    except OSError:
        return ""


def has_died(process: int, space: str) -> bool:
    """Whether a process is known to have ended; False for a process of another `process_space`.

    Args:
        process: the process id.
        space: the `process_space` of the process.
    """
    is_known = process > 0 and space != "" and space == process_space()
    return is_known and not is_alive(process, float("inf"))  # inf: it may have started at any time


def _cgroup_gb(name: str) -> list[float]:
    """Return the sizes in a control file of this process's cgroup (v2) and of all cgroups above it.

    The sizes are in GB. A file that contains `max`, which means no limit, is left out.
    """
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
    """Return the smallest memory limit of this process's cgroups in GB; None without a limit."""
    return min(_cgroup_gb("memory.max"), default=None)


def memory_peak_gb() -> float | None:
    """Return the peak memory of this process's cgroup in GB; None if unknown."""
    return next(iter(_cgroup_gb("memory.peak")), None)


def installed_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:  # for example, a nightly build has another name
        return None


def processor() -> str:
    """Return the name of this machine's processor."""
    import platform

    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def nvidia_driver() -> str | None:
    """Return the line in which the NVIDIA driver states its version; None without a driver."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
