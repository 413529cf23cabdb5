"""TensorBoard for one user, on a machine that others use as well.

TensorBoard has no login, and any user of a node can connect to the ports of its loopback. So every
request must begin with a secret path. It is made in this process and shown to its user only, on a
terminal or in a file of mode 0600: no command line, environment or log that others read holds it.
"""

import getpass
import os
import secrets
import shlex
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from harness.board.server import RELOAD_S, listen, start_tensorboard
from harness.errors import InputError, RunError
from harness.job.search import is_sweep
from harness.slurm.environment import SlurmEnvironment
from harness.system.files import (
    atomic_write,
    cache_folder,
    foreign_link,
    in_threads,
    scratch_directory,
    write_refusal,
)
from harness.system.processes import STOPPING
from harness.tracking.run_dir import find_runs, is_ensemble
from harness.tracking.status import select_runs

NUM_NEWEST = 200  # shown where none is named
MAX_TOLD = 10  # refused paths in a line

POLL_S = 0.2
SEARCH_SHARE = 20  # between two searches, times what one takes
CACHE_REMEDY = "set XDG_CACHE_HOME to a folder of yours"


class Shown:
    """The requested runs, as a folder of links `<job>/<run-id>` for TensorBoard to walk."""

    def __init__(self, folder: Path, roots: Sequence[Path], runs: Path) -> None:
        """Make the folder; no run is in it yet.

        Args:
            folder: of the links.
            roots: the named runs, or folders of runs; without any the newest are shown.
            runs: the folder of all runs.
        """
        self.folder = folder
        folder.mkdir()
        self.are_named = bool(roots)
        self.roots = roots or [runs]
        self.runs = runs.resolve()
        self.found: list[Path] = []
        self.left_out = ""  # a line about the runs that are not shown
        self.refused: dict[str, str] = {}  # why, by the path of what can't or must not be read
        self._told: set[tuple[str, str]] = set()
        self._links: dict[Path, Path] = {}

    def refresh(self) -> None:
        """Find the runs again, and link those that have begun to log."""
        self.found = self._chosen()
        for run in self.found:
            events = run / "tensorboard"
            if run in self._links:
                continue
            if owner := foreign_link(events):
                self.refused[str(events)] = f"is a link of {owner}"
            elif os.path.isdir(events):  # noqa: PTH112 - never raises
                link = self._free_name(run)
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(events, target_is_directory=True)
                self._links[run] = link

    def refusals(self) -> str:
        """A line about paths that are newly refused; empty if there are none."""
        new = sorted({*self.refused.copy().items()} - self._told)  # a copy: a thread adds to it
        self._told.update(new)
        parts = [f"{path} {why}" for path, why in new[:MAX_TOLD]]
        parts += [f"and {len(new) - MAX_TOLD:,} more"] if len(new) > MAX_TOLD else []
        return f"not shown: {'; '.join(parts)}" if new else ""

    def _chosen(self) -> list[Path]:
        """The runs to show, by their paths; those that are shown already stay."""
        every = _runs_below(self.roots, self.refused)
        if self.are_named:
            return every
        changed_s = dict(zip(every, in_threads(_changed_s, every), strict=True))
        newest = sorted(every, key=lambda run: -changed_s[run])[:NUM_NEWEST]
        shown = {*newest, *self._links}
        found = [run for run in every if run in shown]
        if hidden := len(every) - len(found):
            self.left_out = (
                f"these are the newest; {hidden:,} older ones are not shown: name runs, or "
                "folders of runs, to see others"
            )
        return found

    def _free_name(self, run: Path) -> Path:
        # Two levels exactly: a link below another link would be a file in the run's folder.
        group = run.parent.name or "runs"
        if run.is_relative_to(self.runs) and len(run.relative_to(self.runs).parts) > 1:
            group = ".".join(run.relative_to(self.runs).parts[:-1])
        link, number = self.folder / group / run.name, 1
        while os.path.lexists(link):
            number += 1
            link = link.with_name(f"{run.name}-{number}")
        return link


def _changed_s(run: Path) -> float:
    """When something was last written into a run's folder."""
    try:
        return run.stat().st_mtime
    except OSError:  # it was removed meanwhile
        return 0.0


def _runs_below(roots: Iterable[Path], refused: dict[str, str]) -> list[Path]:
    """The runs at or below some folders, including the runs of sweeps; paths are resolved."""
    found = find_runs((root.resolve() for root in roots), ("trials", "winner"), refused)
    return [folder for folder in found if not is_sweep(folder) and not is_ensemble(folder)]


def check_roots(names: Sequence[Path], runs: Path) -> Sequence[Path]:
    """The named runs, or folders of runs; none where none is named.

    Args:
        names: folders, or ids of runs and of Slurm jobs, as `harness status` prints them.
        runs: the folder of all runs.

    Raises:
        InputError: if a name fits no run, or a folder holds none.
    """
    if not names and not runs.is_dir():
        raise InputError(f"--runs {runs}: no such folder; give runs, or a folder of runs")
    roots: list[Path] = []
    for name in names:
        if not name.is_dir():
            roots += [each.folder for each in select_runs([str(name)], runs, None, many=True)]
            continue
        refused: dict[str, str] = {}
        if not _runs_below([name], refused):
            why = "".join(f" ({where} {why})" for where, why in sorted(refused.items())[:1])
            raise InputError(f"RUN {name}: holds no run{why}; give runs, or a folder of runs")
        roots.append(name)
    return roots


# How to reach it


@dataclass(frozen=True)
class Endpoint:
    """Where TensorBoard listens, and how to reach it."""

    port: int  # of the loopback, and of the laptop's end of the tunnel
    secret: str
    host: str
    login: str | None  # USER@HOST of the login node to jump through

    @property
    def address(self) -> str:
        """The secret address; by number, since `localhost` may be another user's port on ::1."""
        return f"http://127.0.0.1:{self.port}/{self.secret}/"

    @property
    def tunnel(self) -> str:
        """The command to paste on a laptop."""
        # With a port that is taken ssh would go on, and the secret would reach whoever has it.
        forward = f"{self.port}:127.0.0.1:{self.port}"
        args = ["ssh", "-N", "-o", "ExitOnForwardFailure=yes", "-L", forward]
        args += ["-J", self.login] if self.login else []
        return shlex.join([*args, f"{_user()}@{self.host}"])

    def text(self) -> str:
        """What its user needs to know."""
        return f"on your laptop:  {self.tunnel}\nthen open:       {self.address}\n"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container that lists no users
        return str(os.getuid())


def jump_host(login: str | None, allocation: SlurmEnvironment | None) -> str | None:
    """The login node to jump through; by default the host where the job was submitted."""
    if login or allocation is None:
        return login
    submitted_at = allocation.submit_host
    elsewhere = submitted_at not in ("", socket.gethostname())
    return f"{_user()}@{submitted_at}" if elsewhere else None


def is_private(file: IO[Any]) -> bool:
    """Whether only the user can read this output: a terminal, or a file of mode 0600."""
    try:
        about = os.fstat(file.fileno())
    except (OSError, ValueError):
        return False
    is_own = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
    return file.isatty() or (is_own and not about.st_mode & 0o077)


def write_connection(endpoint: Endpoint) -> Path:
    """Write how to reach TensorBoard into a file that nobody else can read.

    In the user's cache, not among the runs: those may be another user's, or a group's.

    Raises:
        RunError: if the cache can't be written, or the folder in it is another user's.
    """
    folder = cache_folder() / "tensorboard"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise RunError(write_refusal(folder, error, CACHE_REMEDY)) from None
    file = folder / f"{endpoint.host}-{os.getpid()}.txt"
    atomic_write(file, endpoint.text(), mode=0o600, remedy=CACHE_REMEDY)
    return file


# Serving


class Watch:
    """Decides when it is time to end."""

    def __init__(
        self, hours: float, idle_min: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to count.

        Args:
            hours: after which it ends.
            idle_min: minutes without a request that knew the secret, after which it ends.
            clock: in seconds.
        """
        self.hours, self.idle_min = hours, idle_min
        self.clock = clock
        self.started_s = clock()
        self.used_s = self.started_s  # of the last request that knew the secret
        self.signal: signal.Signals | None = None

    def text(self, in_job: bool) -> str:
        """What its user needs to know."""
        end = time.strftime("%a %H:%M", time.localtime(time.time() + 3600 * self.hours))
        job = ", or with its Slurm job" if in_job else ""
        return f"ends after {self.idle_min:g} min without a request, or {end}{job}"

    def listen(self) -> None:
        """Handle the signals that end it, and a hang-up of the terminal unless nohup ignores it."""
        for number in (*STOPPING, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)

    def used(self) -> None:
        """Count the idle time from now."""
        self.used_s = self.clock()

    def reason(self) -> str | None:
        """Why it is time to end, if it is."""
        if self.signal is not None:
            return f"{self.signal.name} came"
        now_s = self.clock()
        if now_s - self.started_s >= 3600 * self.hours:
            return f"{self.hours:g} hours are over"
        if now_s - self.used_s >= 60 * self.idle_min:
            return f"no request for {self.idle_min:g} min"
        return None


def serve(
    roots: Sequence[Path],
    runs: Path,
    watch: Watch,
    *,
    port: int | None = None,
    login: str | None = None,
    say: Callable[[str], object] = print,
) -> NoReturn:
    """Show the runs below `roots` until it is time to end; no file is left behind.

    Without `roots` these are the newest below `runs`. It ends the process, with exit code 0.

    Args:
        roots: runs, or folders of runs.
        runs: the folder of all runs.
        watch: decides when to end.
        port: to listen on, by default a free one.
        login: the host to come through, by default where the job was submitted.
        say: prints a line.

    Raises:
        InputError: if the port can't be listened on.
    """
    os.umask(0o077)
    allocation = SlurmEnvironment.from_environment()
    watch.listen()
    with scratch_directory() as folder:
        shown = Shown(folder / "runs", roots, runs)
        if _refresh(shown, watch):
            listener = listen(port)
            endpoint = Endpoint(
                port=listener.getsockname()[1],
                secret=secrets.token_urlsafe(32),
                host=socket.gethostname(),
                login=jump_host(login, allocation),
            )
            start_tensorboard(
                shown.folder,
                len(shown.found),
                listener,
                secret=endpoint.secret,
                used=watch.used,
                refused=shown.refused,
            )
            connection = write_connection(endpoint)
            try:
                _announce(endpoint, shown, connection, say=say)
                say(watch.text(in_job=allocation is not None))
                watch.used()  # the time that it took to start is not idle
                _wait(watch, shown, say=say)
            finally:
                connection.unlink(missing_ok=True)
        say(f"ended: {watch.reason()}")
        _end_by_removing(folder)


def _end_by_removing(folder: Path) -> NoReturn:
    """Become the command that removes the folder, so that threads and memory are gone at once.

    Python would wait for a search of a slow disk, and free the points of all runs one by one.
    """
    sys.stdout.flush()
    os.execvp("rm", ["rm", "-rf", "--", str(folder)])  # noqa: S606, S607 - no shell


def _refresh(shown: Shown, watch: Watch) -> bool:
    """Find the runs again, unless a signal comes first: a search of thousands may take long."""
    search = ThreadPoolExecutor(1).submit(shown.refresh)
    while not watch.signal:
        if wait([search], POLL_S).done:
            search.result()  # raises what the search raised
            return True
    return False


def _announce(
    endpoint: Endpoint, shown: Shown, connection: Path, *, say: Callable[[str], object]
) -> None:
    where = ", ".join(map(str, shown.roots))
    num = "1 run" if len(shown.found) == 1 else f"{len(shown.found):,} runs"
    say(f"TensorBoard of {num} in {where}, on port {endpoint.port} of {endpoint.host}")
    for line in filter(None, (shown.left_out, shown.refusals())):
        say(line)
    say("runs show as they begin to log")
    if is_private(sys.stdout):
        say(endpoint.text().rstrip())
    else:
        say("Others may be able to read this output, so the address is in a file:")
        say(f"  cat {shlex.quote(str(connection))}")


def _wait(watch: Watch, shown: Shown, *, say: Callable[[str], object]) -> None:
    """Search for new runs until it is time to end."""
    refresh_s = watch.clock() + RELOAD_S
    while not watch.reason():
        time.sleep(POLL_S)
        if (began_s := watch.clock()) >= refresh_s and _refresh(shown, watch):
            if refusals := shown.refusals():
                say(refusals)
            # Of thousands of runs a search takes seconds, and most of the time is for the page.
            took_s = watch.clock() - began_s
            refresh_s = watch.clock() + max(RELOAD_S, SEARCH_SHARE * took_s)
