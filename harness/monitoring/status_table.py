"""The table of `harness status`: for a terminal of 80 columns, and whole in a file."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from harness.monitoring.status import format_duration
from harness.tracking.records import RunStatus

NUM_ENDED_SHOWN = 20
STYLES = {
    "running": "green",
    "starting": "green",
    "pending": "yellow",
    "submitted": "yellow",
    "suspended": "yellow",
    "interrupted": "yellow",
    "stale": "red",
    "lost": "red",
    "dead": "red",
    "failed": "red",
}
HEADINGS = ("run", "seed", "state", "epoch", "rev/s", "ETA", "val %", "test %")
GAP = 2
RIGHT = {"seed", "epoch", "rev/s", "ETA", "val %", "test %", "restarts"}


def split_shown(statuses: Sequence[RunStatus], *, everything: bool) -> tuple[list[RunStatus], str]:
    """The runs to show, and a line about the older ones that have ended, if any."""
    ended = [each for each in statuses if not each.alive]
    hidden = [] if everything else ended[NUM_ENDED_SHOWN:]
    left_out = {id(each) for each in hidden}
    counts = Counter(each.state for each in hidden)
    told = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    line = f"and {len(hidden)} older: {told} (--all shows them)" if hidden else ""
    return [each for each in statuses if id(each) not in left_out], line


def cells(status: RunStatus) -> dict[str, str]:
    """A run's figures as text, empty where unknown."""
    goes_on = status.state in ("running", "stale")
    speed = status.reviews_per_s if goes_on else None
    eta = status.eta_s if status.state == "running" else None
    epochs = status.epoch
    return {
        "run": status.run,
        "seed": "" if status.seed is None else str(status.seed),
        "state": status.state,
        "epoch": f"{epochs or '-'}/{status.num_epochs}" if status.num_epochs else "",
        "rev/s": "" if speed is None else f"{speed:.0f}",
        "ETA": "" if eta is None else format_duration(eta),
        "val %": _per_cent(status.val_accuracy),
        "test %": _per_cent(status.test_accuracy),
        "job": status.job or "",
        "architecture": status.architecture or "",
        "restarts": str(status.restarts) if status.restarts else "",
        "Slurm job": status.slurm_job or "",
        "use": use(status),
        "note": _one_line(status.note),
    }


def _per_cent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _one_line(words: str) -> str:
    return " ".join(words.split())


def use(status: RunStatus) -> str:
    """How a run uses its machine: `step 24 ms, 3 % of it waiting for input, CPU 96 %, 1.2 GB`."""
    if status.state != "running":
        return ""
    told = [] if status.step_ms is None else [f"step {status.step_ms:.3g} ms"]
    if status.input_wait_share is not None:
        told.append(f"{100 * status.input_wait_share:.0f} % of it waiting for input")
    parts: dict[str, list[str]] = {}
    for name, value in sorted(
        status.device.items(), key=lambda item: (item[0].startswith("gpu"), "memory" in item[0])
    ):
        what, _, figure = name.partition("_")  # gpu0_share, gpu0_memory_gb, cpu_share, memory_gb
        shown = f"{100 * value:.0f} %" if figure == "share" else f"{value:.1f} GB"
        parts.setdefault("CPU" if what in ("cpu", "memory") else what.upper(), []).append(shown)
    return ", ".join((*told, *(" ".join((what, *shown)) for what, shown in parts.items())))


def notes(status: RunStatus) -> str:
    """What has no column of its own on a terminal."""
    told = []
    job, architecture = status.job or "", status.architecture
    if architecture and job != architecture and not job.endswith(f"_{architecture}"):
        told.append(architecture)
    if status.slurm_job and status.slurm_job not in status.run:
        told.append(f"Slurm job {status.slurm_job}")
    if status.restarts:
        times = "once" if status.restarts == 1 else f"{status.restarts} times"
        told.append(f"{'requeued' if status.slurm_job else 'resumed'} {times}")
    return "; ".join(filter(None, (*told, use(status), _one_line(status.note))))


def as_renderable(statuses: Sequence[RunStatus], width: int) -> RenderableType:
    """The table for a terminal: what has no column there stands in a line below its run."""
    rows = [cells(each) for each in statuses]
    names = [name for name in HEADINGS if name == "run" or any(row[name] for row in rows)]
    widths = _widths(names, rows)
    widths["run"] -= max(0, sum(widths.values()) + GAP * (len(names) - 1) - width)
    widths["run"] = max(widths["run"], len("run"))
    parts: list[RenderableType] = [Text(_line(names, widths, {n: n for n in names}), "bold")]
    for status, row in zip(statuses, rows, strict=True):
        if len(row["run"]) > widths["run"]:  # a line of its own, so that it can be copied whole
            parts.append(Text(row["run"], overflow="fold"))
            row["run"] = ""
        line = Text(_line(names, widths, row), overflow="fold")
        line.highlight_words([row["state"]], STYLES.get(status.state, ""))
        parts.append(line)
        if words := notes(status):
            style = "red" if status.warning else "dim"
            parts.append(Padding(Text(words, style), (0, 0, 0, 4)))
    return Group(*parts)


def as_lines(statuses: Sequence[RunStatus]) -> list[str]:
    """The table for a file: a line a run, every column, nothing cut."""
    rows = [cells(each) for each in statuses]
    names = [*HEADINGS, "job", "architecture", "restarts", "Slurm job", "use", "note"]
    widths = _widths(names, rows)
    return [_line(names, widths, row) for row in ({name: name for name in names}, *rows)]


def _widths(names: Sequence[str], rows: Sequence[dict[str, str]]) -> dict[str, int]:
    return {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}


def _line(names: Sequence[str], widths: dict[str, int], row: dict[str, str]) -> str:
    padded = (
        row[name].rjust(widths[name]) if name in RIGHT else row[name].ljust(widths[name])
        for name in names
    )
    return (" " * GAP).join(padded).rstrip()


class StatusScreen:
    """Where the table is shown; a context manager for as long as it is drawn again and again."""

    def __init__(self, runs: Path, *, everything: bool) -> None:
        self.runs, self.everything = runs, everything
        self.console = Console(highlight=False, emoji=False)
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
        """Print the table, and on standard error what is wrong with the queue."""
        shown, older = split_shown(statuses, everything=self.everything)
        if self.console.is_terminal:
            self.console.print(self._on_terminal(shown, older))
        else:
            self._print_lines(shown, older)
        self.complain(problem)

    def draw(self, statuses: Sequence[RunStatus], problem: str | None) -> bool:
        """Draw the table over the one before, or print it anew where it changed in a file.

        Returns:
            Whether anything goes on or waits.
        """
        shown, older = split_shown(statuses, everything=self.everything)
        if self._live:
            parts = [self._on_terminal(shown, older)]
            if problem:
                parts.append(Text(f"{problem}; run folders alone", "red"))
            self._live.update(Group(*parts), refresh=True)
        else:
            lines = as_lines(shown) if shown else []
            if lines != self._before:
                if self._before:
                    print()  # noqa: T201
                self._print_lines(shown, older)
            self._before = lines
            self.complain(problem)
        return any(each.alive for each in statuses)

    def complain(self, problem: str | None) -> None:
        """Say on standard error that the queue gives no answer, once."""
        if problem and problem != self._complained:
            print(f"harness: {problem}; run folders alone", file=sys.stderr)  # noqa: T201
        self._complained = problem

    def _nothing(self) -> str:
        return f"no runs below {self.runs}; harness train jobs/lstm.toml makes one"

    def _on_terminal(self, shown: Sequence[RunStatus], older: str) -> RenderableType:
        if not shown:
            return Text(self._nothing())
        table = as_renderable(shown, self.console.width)
        return Group(table, Text(older, "dim")) if older else table

    def _print_lines(self, shown: Sequence[RunStatus], older: str) -> None:
        lines = [*as_lines(shown), *([older] if older else [])] if shown else [self._nothing()]
        print("\n".join(lines), flush=True)  # noqa: T201
