"""TensorBoard for one user, on a machine with other users.

TensorBoard has no login, and any user of a node can connect to the ports of the node's loopback
address. To keep other users out, the path of every request must begin with a secret. This process
makes the secret and shows it only to the user who started the process, on a terminal or in a file
of mode 0600. No command line, environment variable or log contains the secret.
"""

import contextlib
import logging
import os
import secrets
import shlex
import signal
import socket
import sys
import time
import webbrowser
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from harness.board.server import RELOAD_S, start_tensorboard
from harness.errors import InputError, RunError
from harness.job.search import is_sweep
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.pool import usable_memory_gb
from harness.system.console import log, quoted
from harness.system.files import (
    atomic_write,
    cache_folder,
    foreign_link,
    owner_name,
    scratch_directory,
    write_refusal,
)
from harness.system.lenient_json import read_json
from harness.system.processes import STOPPING, in_threads, leave
from harness.tracking.run_dir import RESULT, attempt_of, find_runs, is_ensemble, named_or_all
from harness.tracking.status import select_runs

NUM_NEWEST = 200  # how many runs are shown if the user names no runs
BASE_GB, GB_PER_RUN = 0.2, 0.003  # memory of TensorBoard, and for each run of a few thousand steps
MAX_LISTED = 10  # largest number of paths in a line about paths that are not shown

POLL_S = 0.2  # seconds between two checks whether TensorBoard should end
IDLE_MIN = 60  # TensorBoard ends after so many minutes without a request that has the secret
SEARCH_SHARE = 20  # ratio of the pause after a search to the duration of the search
CACHE_REMEDY = "set XDG_CACHE_HOME to a folder of your own"


class Shown:
    """The runs to show, as a folder of symbolic links `<job>/<run-id>` that TensorBoard reads."""

    def __init__(self, folder: Path, roots: Sequence[Path], runs: Path) -> None:
        """Make an empty folder for the symbolic links to the runs.

        Args:
            folder: the new folder for the symbolic links.
            roots: runs, or folders of runs, to show; if empty, the newest runs are shown.
            runs: the folder that contains all runs.
        """
        self.folder = folder
        folder.mkdir()
        self.are_named = bool(roots)
        self.roots = roots or [runs]
        self.runs = runs.resolve()
        self.found: list[Path] = []
        self.left_out = ""  # a line about the older runs that are not shown
        self.refused: dict[str, str] = {}  # each path that is not shown, with the reason
        self._reported: set[tuple[str, str]] = set()
        self._links: dict[Path, Path] = {}

    def refresh(self) -> None:
        """Search for runs, and make a link to each run that has begun to log."""
        self.found = self._chosen()
        for run in self._links.keys() - {*self.found}:  # removed, or a later attempt replaces it
            self._links.pop(run).unlink()
        for run in self.found:
            events = run / "tensorboard"
            if run in self._links:
                continue
            if owner := foreign_link(events):
                self.refused[str(events)] = f"is a symbolic link that belongs to {owner}"
            elif os.path.isdir(events):  # noqa: PTH112 - `Path.is_dir` may raise an error
                link = self._free_name(run)
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(events, target_is_directory=True)
                self._links[run] = link

    @property
    def finished(self) -> bool:
        """Whether all runs have finished, and at least one exists.

        A trial counts as finished only when its whole search has finished.
        """
        ends = {run.parents[3] if attempt_of(run) else run for run in self.found}
        return bool(ends) and all(map(_has_finished, ends))

    def refusals(self) -> str:
        """Return a line about the runs and folders refused since the last call; "" if none."""
        # Read a copy of `refused`, because other threads add items.
        new = sorted({*self.refused.copy().items()} - self._reported)
        self._reported.update(new)
        parts = [f"{path} {why}" for path, why in new[:MAX_LISTED]]
        parts += [f"and {len(new) - MAX_LISTED:,} more"] if len(new) > MAX_LISTED else []
        return f"not shown: {'; '.join(parts)}" if new else ""

    def _chosen(self) -> list[Path]:
        """Return the paths of the runs to show, including all runs that are shown already."""
        every = _runs_below(self.roots, self.refused)
        if self.are_named:
            return every
        changed_s = dict(zip(every, in_threads(_changed_s, every), strict=True))
        newest = sorted(every, key=lambda run: -changed_s[run])[:NUM_NEWEST]
        shown = {*newest, *self._links}
        found = [run for run in every if run in shown]
        if hidden := len(every) - len(found):
            self.left_out = (
                f"only the newest runs are shown, and {hidden:,} older runs are not; to see "
                "older runs, specify runs or folders of runs"
            )
        return found

    def _free_name(self, run: Path) -> Path:
        # Each link is exactly two levels below `self.folder`. If links had different depths, a new
        # link could lie below another link, and so in the folder of a run.
        group = run.parent.name or "runs"
        if run.is_relative_to(self.runs) and len(run.relative_to(self.runs).parts) > 1:
            group = ".".join(run.relative_to(self.runs).parts[:-1])
        link, number = self.folder / group / run.name, 1
        while os.path.lexists(link):
            number += 1
            link = link.with_name(f"{run.name}-{number}")
        return link


def _has_finished(run: Path) -> bool:
    """Whether a run or a sweep has finished."""
    if not os.path.exists(run / RESULT):  # noqa: PTH110 - see `Shown.refresh`
        return False
    # A sweep keeps its old result while its search continues with more trials.
    return not is_sweep(run) or read_json(run / "state.json").get("phase") in (None, "finished")


def _changed_s(run: Path) -> float:
    """Return the time of the last change in a run's folder."""
    try:
        return run.stat().st_mtime
    except OSError:  # the run was removed in the meantime
        return 0.0


def _runs_below(roots: Iterable[Path], refused: dict[str, str]) -> list[Path]:
    """Return the resolved paths of the runs at or below `roots`, including runs of sweeps.

    Of a trial's attempts, only the latest is included, because TensorBoard would show each attempt
    as another run of the same seed. If a path can't be searched, add the path and the reason to
    `refused`.
    """
    found = find_runs(
        (root.resolve() for root in roots), ("trials", "winner"), refused, foreign_links=False
    )
    runs = [run.path for run in found if not is_sweep(run.path) and not is_ensemble(run.path)]
    latest: dict[Path, int] = {}  # the path of a run without its attempt → the latest attempt
    for run in runs:
        same = run.parent.parent / run.name
        latest[same] = max(attempt_of(run), latest.get(same, 0))
    return [run for run in runs if attempt_of(run) == latest[run.parent.parent / run.name]]


def check_roots(names: Sequence[Path], runs: Path) -> Sequence[Path]:
    """Return the folders to show: runs, or folders of runs; empty if `names` is empty.

    Args:
        names: folders, or ids of runs and of Slurm jobs, as `harness status` prints them.
        runs: the folder that contains all runs.

    Raises:
        InputError: if a name matches no run, a folder contains no run, or `runs` is missing.
    """
    named_or_all(names, runs)
    roots: list[Path] = []
    for name in names:
        if not name.is_dir():
            roots += [each.folder for each in select_runs([str(name)], runs, None, many=True)]
            continue
        refused: dict[str, str] = {}
        if not _runs_below([name], refused):
            why = "".join(f" ({where} {why})" for where, why in sorted(refused.items())[:1])
            raise InputError(f"RUN {name}: contains no run{why}; give runs, or a folder of runs")
        roots.append(name)
    return roots


# The address of TensorBoard


def how_to_connect(
    port: int, secret: str, login: str | None, allocation: SlurmEnvironment | None
) -> str:
    """Return two lines: the ssh command to paste on a laptop, and the address to open there.

    Args:
        port: the port on the loopback address, on this machine and on the laptop.
        secret: the first part of the address's path.
        login: USER@HOST of the login node that the SSH tunnel goes through; by default the host
            where the Slurm job was submitted.
        allocation: the Slurm job, if there is one.
    """
    # A container may lack the user's account.
    user = os.environ.get("USER") or owner_name(os.getuid())
    host = socket.gethostname()
    if not login and allocation and allocation.submit_host not in ("", host):
        login = f"{user}@{allocation.submit_host}"
    # If another program already listens on this port of the laptop, ssh has to stop with an error.
    # Otherwise the browser would send the secret to that program.
    args = ["ssh", "-N", "-o", "ExitOnForwardFailure=yes", "-L", f"{port}:127.0.0.1:{port}"]
    args += ["-J", login] if login else []
    tunnel = shlex.join([*args, f"{user}@{host}"])
    # Use 127.0.0.1, because `localhost` may mean ::1, where another user may listen on this port.
    address = f"http://127.0.0.1:{port}/{secret}/"
    return f"on your laptop:  {tunnel}\nthen open:       {address}\n"


def write_connection(text: str) -> Path:
    """Write the text of `how_to_connect` into a file that nobody else can read.

    The file is in the user's cache, because the folder of the runs may belong to other users or be
    open to them.

    Raises:
        RunError: if the cache can't be written, or if the cache's folder `tensorboard` belongs to
            another user.
    """
    folder = cache_folder() / "tensorboard"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise RunError(write_refusal(folder, error, CACHE_REMEDY)) from None
    file = folder / f"{socket.gethostname()}-{os.getpid()}.txt"
    atomic_write(file, text, mode=0o600, remedy=CACHE_REMEDY)
    return file


# Serving


class Signalled(Exception):  # noqa: N818 - not an error
    """A signal ends TensorBoard."""


class Watch:
    """Decides when TensorBoard ends."""

    def __init__(self, hours: float, *, until_finished: bool = False) -> None:
        """Start the clock.

        Args:
            hours: the number of hours after which TensorBoard ends.
            until_finished: whether TensorBoard ends when all its runs have finished.
        """
        self.hours, self.until_finished = hours, until_finished
        self.all_finished = False
        self.started_s = self.used_s = time.monotonic()  # `used_s`: the time of the last request
        self.signal: signal.Signals | None = None  # the signal that ends TensorBoard

    def text(self, in_job: bool) -> str:
        """Return a line that says when TensorBoard ends."""
        end = time.strftime("%a %d %b %H:%M", time.localtime(time.time() + 3600 * self.hours))
        job = ", or with its Slurm job" if in_job else ""
        done = " when all runs have finished, or" if self.until_finished else ""
        return f"ends{done} after {IDLE_MIN} min without a request, at the latest {end}{job}"

    def listen(self) -> None:
        """End TensorBoard at the first signal, even while it still searches for runs.

        Under nohup, SIGHUP stays ignored.
        """
        for number in (*STOPPING, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:  # a second signal must not interrupt the removal of files
            self.signal = signal.Signals(number)
            raise Signalled

    def used(self) -> None:
        """Restart the idle time, because a request came."""
        self.used_s = time.monotonic()

    def reason(self) -> str | None:
        """Return the reason to end, or None as long as there is no reason."""
        if self.signal is not None:
            return f"received {self.signal.name}"
        if self.until_finished and self.all_finished:
            return "all runs have finished"
        now_s = time.monotonic()
        if now_s - self.started_s >= 3600 * self.hours:
            return f"{self.hours:g} hours are over"
        if now_s - self.used_s >= 60 * IDLE_MIN:
            return f"no request for {IDLE_MIN} min"
        return None


def open_browser(address: str, folder: Path) -> bool:
    """Show the address in this desktop's browser; return whether there is a browser.

    All users of this machine can see a browser's command line, but the address must stay secret. So
    the function writes the address into a private file in `folder`, and passes only the file's path
    to the browser.
    """
    known = {"DISPLAY", "WAYLAND_DISPLAY", "BROWSER"} & os.environ.keys()
    if sys.platform == "linux" and not known:
        return False
    page = folder / "open.html"
    content = '<!doctype html><meta name="referrer" content="no-referrer">'
    content += f'<meta http-equiv="refresh" content="0; url={address}">\n'
    atomic_write(page, content, mode=0o600)
    return webbrowser.open(page.as_uri())


def serve(
    roots: Sequence[Path],
    runs: Path,
    watch: Watch,
    *,
    login: str | None,
    opens_page: bool = False,
) -> NoReturn:
    """Show runs in TensorBoard until `watch` says that it should end; then exit with code 0.

    At the end, the function removes two things: the file with the address, and the folder of links.

    Args:
        roots: runs, or folders of runs, to show; if empty, the newest runs below `runs`.
        runs: the folder that contains all runs.
        watch: the object that decides when to end.
        login: the login node for the tunnel; by default the host where the job was submitted.
        opens_page: whether to open the page in this machine's browser.

    Raises:
        InputError: if the runs need more memory than there is.
        RunError: if the file with the address can't be written.
    """
    os.umask(0o077)
    allocation = SlurmEnvironment.from_environment()
    watch.listen()
    with contextlib.suppress(Signalled), scratch_directory() as folder:
        shown = Shown(folder / "runs", roots, runs)
        shown.refresh()
        check_memory(roots, len(shown.found), usable_memory_gb(allocation))
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        port, secret = listener.getsockname()[1], secrets.token_urlsafe(32)
        start_tensorboard(
            shown.folder,
            len(shown.found),
            listener,
            secret=secret,
            used=watch.used,
            refused=shown.refused,
        )
        text = how_to_connect(port, secret, login, allocation)
        connection = write_connection(text)
        try:
            _announce(shown, port, text, connection)
            _say(watch.text(in_job=allocation is not None))
            if opens_page and not open_browser(f"http://127.0.0.1:{port}/{secret}/", folder):
                _say("found no browser on this machine; open the address yourself")
            watch.used()  # the idle time begins now
            _wait(watch, shown)
        finally:
            connection.unlink(missing_ok=True)
    _say(f"ended: {watch.reason()}")
    leave(0)  # an ordinary exit would first free the points of all runs one by one


def check_memory(roots: Sequence[Path], num_runs: int, memory_gb: float) -> None:
    """Check that TensorBoard has enough memory to show the `num_runs` runs that `roots` contain.

    Raises:
        InputError: if TensorBoard needs more than `memory_gb`.
    """
    needed_gb = BASE_GB + GB_PER_RUN * num_runs
    if needed_gb > memory_gb:
        command = ("sbatch", f"--mem={needed_gb + 1:.0f}G", "slurm/tensorboard.sh")
        raise InputError(
            f"{num_runs:,} runs: TensorBoard needs about {needed_gb:.1f} GB of memory for them, "
            f"but {memory_gb:.1f} GB are free; specify fewer runs, or request more memory: "
            + shlex.join([*command, *map(str, roots)])
        )


def _say(text: str) -> None:
    if text:
        log(logging.INFO, text)


def _announce(shown: Shown, port: int, text: str, connection: Path) -> None:
    where = ", ".join(map(str, shown.roots))
    num = "1 run" if len(shown.found) == 1 else f"{len(shown.found):,} runs"
    _say(f"TensorBoard on port {port} of {socket.gethostname()} shows {num} in {where}")
    _say(shown.left_out)
    _say(shown.refusals())
    _say("a run appears in TensorBoard when it begins to log")
    if sys.stdout.isatty():
        _say(text.rstrip())
    else:
        _say("Others may be able to read this output, so the address is in a file:")
        _say(f"  cat {quoted(connection)}")


def _wait(watch: Watch, shown: Shown) -> None:
    """Search for new runs again and again until there is a reason to end."""
    refresh_s = time.monotonic() + RELOAD_S
    watch.all_finished = shown.finished
    while not watch.reason():
        time.sleep(POLL_S)
        if (began_s := time.monotonic()) >= refresh_s:
            shown.refresh()
            watch.all_finished = shown.finished
            _say(shown.refusals())
            # Wait longer after a long search: a search through thousands of runs takes seconds,
            # during which the page gets no answer.
            took_s = time.monotonic() - began_s
            refresh_s = time.monotonic() + max(RELOAD_S, SEARCH_SHARE * took_s)
