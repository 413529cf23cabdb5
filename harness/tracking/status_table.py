"""Shows the table of `harness status`: fitted to a terminal, or with one line per run."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from harness.slurm.client import Queue
from harness.system.console import echo, log, rich_console
from harness.tracking.records import RunStatus, one_line
from harness.tracking.status import NUM_NEWEST, format_duration

STYLES = {
    **dict.fromkeys(("running", "starting"), "green"),
    **dict.fromkeys(("pending", "submitted", "suspended", "interrupted"), "yellow"),
    **dict.fromkeys(("stale", "lost", "dead", "failed"), "red"),
}
FIGURES = ("seed", "state", "epoch", "rev/s", "ETA", "val %", "test %")
RIGHT = {*FIGURES} - {"state"}
GAP = "  "


def split_shown(statuses: Sequence[RunStatus], *, everything: bool) -> tuple[list[RunStatus], str]:
    """Return the runs to show, and a line about the hidden older runs (empty if all are shown)."""
    ended = [each for each in statuses if not each.alive]
    hidden = [] if everything else ended[NUM_NEWEST:]
    left_out = {id(each) for each in hidden}
    counts = Counter(each.state for each in hidden)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    line = f"older runs, not shown: {len(hidden)} ({states}); --all shows them" if hidden else ""
    return [each for each in statuses if id(each) not in left_out], line


def cells(status: RunStatus) -> dict[str, str]:
    """Return the text of each column for a run; the text for an unknown value is empty."""
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
        "note": "; ".join(_notes(status)),
    }
    return {name: one_line(text) for name, text in texts.items()}


def _per_cent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _notes(status: RunStatus) -> Iterator[str]:
    """Yield facts about a run that the other columns do not show."""
    if status.architecture and status.architecture != status.job:
        yield status.architecture
    if status.slurm_job and status.slurm_job not in status.run:
        yield f"Slurm job {status.slurm_job}"
    if status.restarts:
        yield f"restarts: {status.restarts}"
    if status.note:
        yield status.note


def as_lines(
    rows: Sequence[dict[str, str]], names: Sequence[str] = ("run", *FIGURES, "note")
) -> list[str]:
    """Return the headings and one line per row; a column is as wide as its longest text."""
    # Rich's Table takes a second for a thousand runs.
    columns = []
    for name in names:
        texts = [name, *(row[name] for row in rows)]
        width, align = max(map(len, texts)), str.rjust if name in RIGHT else str.ljust
        columns.append([align(text, width) for text in texts])
    return [GAP.join(line).rstrip() for line in zip(*columns, strict=True)]


def as_renderable(statuses: Sequence[RunStatus], width: int) -> RenderableType:
    """Return the table for a terminal, with a line of notes below each run that has notes."""
    rows = [cells(each) for each in statuses]
    figures = [name for name in FIGURES if any(row[name] for row in rows)]
    room = width - len(GAP) - max(map(len, as_lines(rows, figures)))
    # A long name is on a separate line, so that users can copy the name.
    is_long = [len(row["run"]) > room for row in rows]
    shown = [row | {"run": ""} if long else row for row, long in zip(rows, is_long, strict=True)]
    headings, *lines = as_lines(shown, ("run", *figures))
    parts: list[RenderableType] = [Text(headings, "bold", overflow="fold")]
    for status, row, long, line in zip(statuses, rows, is_long, lines, strict=True):
        if long:
            parts.append(Text(row["run"], overflow="fold"))
        parts.append(Text(line, STYLES.get(status.state, ""), overflow="fold"))
        if row["note"]:
            parts.append(Padding(Text(row["note"], "dim"), (0, 0, 0, 4)))
    return Group(*parts)


def print_table(
    statuses: Sequence[RunStatus], runs: Path, *, everything: bool, clears: bool
) -> None:
    """Print the table.

    Args:
        statuses: the status of each run.
        runs: the folder of all runs.
        everything: whether to show all runs that have ended, not only the newest.
        clears: whether to clear a terminal first.
    """
    shown, older = split_shown(statuses, everything=everything)
    none = "" if shown else f"no run below {runs}; start one: harness train jobs/lstm.toml"
    below = [line for line in (none, older) if line]
    console = rich_console()
    if not console.is_terminal:
        echo("\n".join([*(as_lines([*map(cells, shown)]) if shown else []), *below]))
        return
    if clears:
        console.clear()
    if shown:
        console.print(as_renderable(shown, console.width))
    for line in below:
        console.print(Text(line, "dim"))


def warn_of_queue(queue: Queue) -> None:
    """Warn if squeue gave no answer."""
    if queue.problem:
        log(logging.WARNING, f"{queue.problem}; the table shows the run folders only")
