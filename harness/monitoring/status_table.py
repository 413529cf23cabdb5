"""The table of `harness status`: for a terminal of 80 columns, and whole in a file.

Which runs it is asked for: by job, state and age.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from harness.errors import InputError, suggest
from harness.monitoring.status import format_duration
from harness.monitoring.survey import NUM_NEWEST
from harness.system.console import echo, log, rich_console
from harness.tracking.records import ALIVE, RunStatus, one_line

STYLES = {
    **dict.fromkeys(("running", "starting"), "green"),
    **dict.fromkeys(("pending", "submitted", "suspended", "interrupted"), "yellow"),
    **dict.fromkeys(("stale", "lost", "dead", "failed"), "red"),
}
STATES = (
    *(*ALIVE, "finished", "interrupted", "failed", "cancelled", "lost", "dead", "gone", "unknown"),
)
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DISK = ("disk", "to free")  # of `--disk` alone
HEADINGS = ("run", "seed", "state", "epoch", "rev/s", "ETA", "val %", "test %", *DISK)
GAP = 2
RIGHT = {*DISK, "seed", "epoch", "rev/s", "ETA", "val %", "test %", "restarts"}


def split_shown(statuses: Sequence[RunStatus], *, everything: bool) -> tuple[list[RunStatus], str]:
    """The runs to show, and a line about the older ones that have ended, if any."""
    ended = [each for each in statuses if not each.alive]
    hidden = [] if everything else ended[NUM_NEWEST:]
    left_out = {id(each) for each in hidden}
    counts = Counter(each.state for each in hidden)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    what = "smaller" if any(each.disk for each in statuses) else "older"
    line = f"and {len(hidden)} {what}: {states} (--all shows them)" if hidden else ""
    return [each for each in statuses if id(each) not in left_out], line


def cells(status: RunStatus) -> dict[str, str]:
    """A run's figures as text, empty where unknown."""
    goes_on = status.state in ("running", "stale")
    speed = status.reviews_per_s if goes_on else None
    eta = status.eta_s if status.state == "running" else None
    epochs = f"{status.epoch or '-'}/{status.num_epochs}" if status.num_epochs else ""
    texts = {
        "run": status.run,
        "seed": "" if status.seed is None else str(status.seed),
        "state": status.state,
        "epoch": epochs,
        "rev/s": "" if speed is None else f"{speed:.0f}",
        "ETA": "" if eta is None else format_duration(eta),
        "val %": _per_cent(status.val_accuracy),
        "test %": _per_cent(status.test_accuracy),
        "disk": _disk(status, "bytes", "files"),
        "to free": _disk(status, "free_bytes", "free_files"),
        "job": status.job or "",
        "architecture": status.architecture or "",
        "restarts": str(status.restarts) if status.restarts else "",
        "Slurm job": status.slurm_job or "",
        "use": use(status),
        "note": status.note,
    }
    return {name: one_line(text) for name, text in texts.items()}


def _per_cent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _disk(status: RunStatus, num_bytes: str, num_files: str) -> str:
    if not status.disk or not status.disk[num_files]:
        return ""
    return f"{status.disk[num_bytes] / 1e6:,.1f} MB in {status.disk[num_files]:,}"


def use(status: RunStatus) -> str:
    """How a run uses its machine: `step 24 ms, 3 % of it waiting for input, CPU 96 %, 1.2 GB`."""
    if status.state != "running":
        return ""
    figures = [] if status.step_ms is None else [f"step {status.step_ms:.3g} ms"]
    if status.input_wait_share is not None:
        figures.append(f"{100 * status.input_wait_share:.0f} % of it waiting for input")
    by_device: dict[str, list[str]] = {}
    for name, value in sorted(
        status.device.items(), key=lambda item: (item[0].startswith("gpu"), "memory" in item[0])
    ):
        what, _, figure = name.partition("_")  # gpu0_share, gpu0_memory_gb, cpu_share, memory_gb
        shown = f"{100 * value:.0f} %" if figure == "share" else f"{value:.1f} GB"
        by_device.setdefault("CPU" if what in ("cpu", "memory") else what.upper(), []).append(shown)
    figures += [" ".join((device, *shown)) for device, shown in by_device.items()]
    return ", ".join(figures)


def notes(status: RunStatus) -> str:
    """What has no column of its own on a terminal."""
    parts = []
    job, architecture = status.job or "", status.architecture
    if architecture and job != architecture and not job.endswith(f"_{architecture}"):
        parts.append(architecture)
    if status.slurm_job and status.slurm_job not in status.run:
        parts.append(f"Slurm job {status.slurm_job}")
    if status.restarts:
        times = "once" if status.restarts == 1 else f"{status.restarts} times"
        parts.append(f"{'requeued' if status.slurm_job else 'resumed'} {times}")
    return one_line("; ".join(filter(None, (*parts, use(status), status.note))))


def as_renderable(statuses: Sequence[RunStatus], width: int) -> RenderableType:
    """The table for a terminal: what has no column there is in a line below its run."""
    rows = [cells(each) for each in statuses]
    figures = [name for name in HEADINGS[1:] if any(row[name] for row in rows)]
    room = width - GAP - _table_lines(figures, rows)[0].cell_len
    # A name that is too long gets a line of its own, so that it can be copied whole.
    names = [row["run"] if cell_len(row["run"]) <= room else "" for row in rows]
    shown = [{**row, "run": name} for row, name in zip(rows, names, strict=True)]
    headings, *lines = _table_lines(["run", *figures], shown)
    parts: list[RenderableType] = [headings]
    for status, row, name, line in zip(statuses, rows, names, lines, strict=True):
        if not name:
            parts.append(Text(row["run"], overflow="fold"))
        parts.append(line)
        if note := notes(status):
            style = "red" if status.warning else "dim"
            parts.append(Padding(Text(note, style), (0, 0, 0, 4)))
    return Group(*parts)


def as_lines(statuses: Sequence[RunStatus]) -> list[str]:
    """The table for a file: a line for each run, with every column and nothing cut."""
    rows = [cells(each) for each in statuses]
    columns = []  # not by rich, which takes a second for a thousand runs
    for name in (*HEADINGS, "job", "architecture", "restarts", "Slurm job", "use", "note"):
        texts = [name, *(row[name] for row in rows)]
        if name in DISK and not any(texts[1:]):
            continue
        width = max(map(len, texts))
        columns.append([t.rjust(width) if name in RIGHT else t.ljust(width) for t in texts])
    return [(" " * GAP).join(line).rstrip() for line in zip(*columns, strict=True)]


def _table_lines(names: Sequence[str], rows: Sequence[dict[str, str]]) -> list[Text]:
    """A line of headings and one for each row; every column is as wide as its longest cell."""
    # Not by rich's Table, which takes a second for a thousand runs.
    headings = dict(zip(names, names, strict=True))
    widths = {name: max(cell_len(row[name]) for row in (headings, *rows)) for name in names}
    lines = []
    for row in (headings, *rows):
        line = Text(overflow="fold", style="bold" if row is headings else "")
        for name in names:
            gap, space = " " * (widths[name] - cell_len(row[name])), " " * GAP if line else ""
            style = STYLES.get(row[name], "") if name == "state" else ""
            parts = (gap, row[name]) if name in RIGHT else (row[name], gap)
            line.append(space)
            for part in parts:
                line.append(part, style)
        lines.append(line)
    return lines


def _disk_line(statuses: Sequence[RunStatus]) -> str:
    """What all runs hold, also those that are not shown."""
    known = [each.disk for each in statuses if each.disk]
    if not known:
        return ""
    total = {name: sum(each[name] for each in known) for name in known[0]}
    return (
        f"in all {total['bytes'] / 1e6:,.1f} MB in {total['files']:,} files; harness prune frees "
        f"{total['free_bytes'] / 1e6:,.1f} MB in {total['free_files']:,}"
    )


class StatusScreen:
    """Shows the table; a context manager while it is drawn again and again."""

    def __init__(self, runs: Path, *, everything: bool, is_filtered: bool = False) -> None:
        self.runs, self.everything, self.is_filtered = runs, everything, is_filtered
        self.console = rich_console()
        self._live: Live | None = None
        self._before: list[str] = []
        self._complained: str | None = None

    def __enter__(self) -> "StatusScreen":
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, statuses: Sequence[RunStatus], problem: str | None) -> None:
        """Print the table, and on standard error why the queue gives no answer."""
        shown, older = split_shown(statuses, everything=self.everything)
        older = "\n".join(filter(None, (older, _disk_line(statuses))))
        if self.console.is_terminal:
            self.console.print(self._on_terminal(shown, older))
        else:
            self._print_lines(shown, older)
        self.complain(problem)

    def draw(self, statuses: Sequence[RunStatus], problem: str | None) -> bool:
        """Draw the table over the one before; where output is no terminal, print it if it changed.

        Returns:
            Whether any run is at work or waits.
        """
        shown, older = split_shown(statuses, everything=self.everything)
        if self._live:
            parts = [self._on_terminal(shown, older)]
            if problem:
                parts.append(Text(f"{problem}; shown from the run folders alone", "red"))
            self._live.update(Group(*parts), refresh=True)
        else:
            lines = as_lines(shown) if shown else []
            if lines != self._before:
                if self._before:
                    echo()
                self._print_lines(shown, older)
            self._before = lines
            self.complain(problem)
        return any(each.alive for each in statuses)

    def complain(self, problem: str | None) -> None:
        """Say on standard error that the queue gives no answer, once."""
        if problem and problem != self._complained:
            log(logging.WARNING, f"{problem}; shown from the run folders alone")
        self._complained = problem

    def _nothing(self) -> str:
        if self.is_filtered:
            return f"no such run below {self.runs}; harness status shows the others"
        return f"no runs below {self.runs}; harness train jobs/lstm.toml makes one"

    def _on_terminal(self, shown: Sequence[RunStatus], older: str) -> RenderableType:
        if not shown:
            return Text(self._nothing())
        table = as_renderable(shown, self.console.width)
        return Group(table, Text(older, "dim")) if older else table

    def _print_lines(self, shown: Sequence[RunStatus], older: str) -> None:
        lines = [*as_lines(shown), *([older] if older else [])] if shown else [self._nothing()]
        echo("\n".join(lines))


# The runs that are asked for


@dataclass(frozen=True)
class RunFilter:
    """Which runs are wanted; empty = all."""

    jobs: Sequence[str] = ()
    states: Sequence[str] = ()
    newer: str | None = None  # than this age, such as 2h

    def __post_init__(self) -> None:
        for state in self.states:
            if state not in STATES:
                raise InputError(f"--state {state}: is no state of a run{suggest(state, STATES)}")
        if self.newer is not None:
            age_s(self.newer)

    def __bool__(self) -> bool:
        return bool(self.jobs or self.states or self.newer)

    def choose(self, statuses: Sequence[RunStatus], now: float | None = None) -> list[RunStatus]:
        """The runs that are wanted, in their order.

        Raises:
            InputError: for a job that none of them is of.
        """
        known = sorted({each.job for each in statuses if each.job})
        for job in self.jobs:
            if job not in known:
                raise InputError(f"--job {job}: no run is of this job{suggest(job, known)}")
        now = time.time() if now is None else now
        since_s = now - age_s(self.newer) if self.newer else float("-inf")
        return [
            each
            for each in statuses
            if (not self.jobs or each.job in self.jobs)
            and (not self.states or each.state in self.states)
            and (each.time_s >= since_s or each.alive)
        ]


def age_s(text: str) -> float:
    """An age such as 90m, 2h or 3d in seconds.

    Raises:
        InputError: if it is none.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])", text.strip())
    if not found:
        raise InputError(f"--newer {text}: should be a number and s, m, h, d or w, such as 2h")
    return float(found[1]) * UNITS_S[found[2]]
