"""`harness sweep show`: the leaderboard of a sweep, what mattered, and pictures of both."""

import logging
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from harness.errors import InputError, RunError
from harness.files.atomic_file import atomic_write
from harness.monitoring.status import format_duration
from harness.report.text_tables import Line, narrowest, screen_table, shown_table, table_lines
from harness.search_space import SearchSpec, short_names
from harness.sweep_report.importance import (
    MIN_TRIALS,
    Effect,
    comparable,
    effects_of,
    scored_trials,
    values_of,
)
from harness.system.console import log, rich_console
from harness.tuning.sweep_dir import LEADERBOARD, SweepDirectory, ranked_rows

NUM_SHOWN = 10
# Columns of the leaderboard that hold texts, and whole numbers; the others, but for keys of the
# search, hold numbers.
TEXTS = ("trial", "status", "worker", "error", "attempt")
WHOLE = ("rank", "epochs", "parameters")
STYLES = {"status": {"running": "green", "waiting": "yellow", "failed": "red"}}
COUNTED = ("finished", "failed", "running", "waiting")


def show(sweep: SweepDirectory) -> None:
    """Print the leaderboard and what mattered, and draw both into the sweep's folder.

    An unfinished sweep is shown as far as it has come.

    Raises:
        InputError: if the sweep's `search.toml` is none.
    """
    search, rows = sweep.search(), ranked_rows(sweep)
    console = rich_console()
    for part in (
        *heading(sweep, search, rows),
        *leaderboard(sweep, rows, console),
        *what_mattered(search, rows, console),
        *(Text(f"picture      {path}") for path in draw(sweep, search, rows)),
    ):
        console.print(part, soft_wrap=not console.is_terminal)


# The leaderboard


def heading(sweep: SweepDirectory, search: SearchSpec, rows: Sequence[Line]) -> list[Text]:
    """Which sweep this is, and how far it has come."""
    table = search.table
    best = "highest" if search.goal == "max" else "lowest"
    counts = Counter(row["status"] for row in rows)
    by_status = ", ".join(f"{counts[status]} {status}" for status in COUNTED)
    total = f" of {search.max_trials:,} trials" if search.max_trials else ""
    lines = [
        Text(f"sweep {sweep.folder}: {table.tuner} search for the {best} {table.objective}"),
        Text(f"{by_status}{total}"),
    ]
    if not sweep.finished():
        phase = sweep.read_json("state.json").get("phase")
        remedy = f"; go on by: harness resume {shlex.quote(str(sweep.folder))}"
        lines.append(
            Text(f"unfinished: {phase or 'not begun'}{'' if phase == 'searching' else remedy}")
        )
    return lines


def leaderboard(
    sweep: SweepDirectory, rows: Sequence[Line], console: Console
) -> list[RenderableType]:
    """The best trials, the number of the others, and why trials failed."""
    search = sweep.search()
    going = [row for row in rows if row["status"] != "failed"]
    parts: list[RenderableType] = [Text()]
    if going:
        before, after = ["rank", "trial", "status", search.table.objective], ["epochs", "time"]
        short = short_names([dimension.key for dimension in search.space])
        names = {k: k if name in (*before, *after) else name for k, name in short.items()}
        lines = [_cells(row, search, names) for row in going[:NUM_SHOWN]]
        columns = [*before, *names.values(), *after]
        parts.append(_leaderboard_table(columns, lines, console))
    else:
        how = "finished, all have failed" if rows else "begun yet"
        parts.append(Text(f"no trial has {how}"))
    if (more := len(going) - NUM_SHOWN) > 0:
        parts.append(Text(f"and {more:,} more in {sweep.path(LEADERBOARD)}", "dim"))
    return parts + [Text(line, "red") for line in failures(rows)]


def typed_rows(sweep: SweepDirectory) -> list[dict[str, Any]]:
    """The leaderboard's rows, the best first, with numbers as numbers and None for empty cells.

    Raises:
        InputError: if a cell is no number and should be one.
    """
    rows = ranked_rows(sweep)
    if not rows:
        return []
    search = sweep.search()
    return [_typed(row, search, sweep.path(LEADERBOARD)) for row in rows]


def _typed(row: Line, search: SearchSpec, path: Path) -> dict[str, Any]:
    values = values_of(row, search.space)
    keys = {dimension.key for dimension in search.space}
    found: dict[str, Any] = {}
    for name, cell in row.items():
        try:
            if name in keys:
                found[name] = values.get(name)
            elif name in TEXTS:
                found[name] = cell
            elif name in WHOLE:
                found[name] = int(cell) if cell else None
            else:
                found[name] = float(cell) if cell else None
        except ValueError:
            raise InputError(
                f"{path}: is broken (trial {row['trial']} has {name} {cell!r}, should be a "
                "number); put it back from a copy of the sweep"
            ) from None
    return found


def failures(rows: Iterable[Line]) -> list[str]:
    """A line for each error, with the trials that it ended."""
    by_error: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "failed":
            by_error.setdefault(row.get("error") or "no reason is known", []).append(row["trial"])
    return [
        f"failed: trial{'s' if len(trials) > 1 else ''} {', '.join(trials)}: {error}"
        for error, trials in by_error.items()
    ]


def _cells(row: Line, search: SearchSpec, names: Mapping[str, str]) -> dict[str, str]:
    time_s, objective = row.get("training_s"), search.table.objective
    return {
        **{field: row.get(field) or "" for field in ("rank", "trial", "status", "epochs")},
        **{name: row.get(key) or "" for key, name in names.items()},
        objective: f"{float(row[objective]):.4f}" if row.get(objective) else "",
        "time": format_duration(float(time_s)) if time_s else "",
    }


def _leaderboard_table(
    columns: Sequence[str], lines: Sequence[Line], console: Console
) -> RenderableType:
    if not console.is_terminal:
        return Text("\n".join(table_lines(columns, lines)))
    if narrowest(columns, lines) <= console.width:
        return screen_table(columns, lines, STYLES)
    # Too narrow for a column each: all figures of a trial in one cell, which wraps.
    cells = [
        {
            **{name: line[name] for name in ("rank", "trial", "status")},
            "values": "  ".join(f"{name}={line[name]}" for name in columns[3:] if line[name]),
        }
        for line in lines
    ]
    return screen_table(("rank", "trial", "status", "values"), cells, STYLES)


# What mattered


def what_mattered(
    search: SearchSpec, rows: Sequence[Line], console: Console
) -> list[RenderableType]:
    """The score by the values of each key, the key that explains most first."""
    finished = scored_trials(rows, search)
    trials = comparable(finished, search)
    parts: list[RenderableType] = [
        Text(),
        Text(f"what mattered for {search.table.objective}", "bold"),
    ]
    if len(trials) < MIN_TRIALS:
        alike = " with the same number of epochs" if len(trials) < len(finished) else ""
        count = f"{len(trials)} finished trials{alike}"
        return [*parts, Text(f"too early to say: {count}, at least {MIN_TRIALS} are needed")]
    effects = effects_of(trials, search)
    if not effects:
        return [*parts, Text("nothing to compare: no key had several values")]
    columns = ("key", "explains", "by chance", "value", "n", "mean", "best")
    lines = [line for effect in effects for line in _effect_lines(effect, search)]
    parts.append(shown_table(columns, lines, console))
    return parts + [Text(line, "dim") for line in caveats(search, len(trials), len(finished))]


def _effect_lines(effect: Effect, search: SearchSpec) -> list[Line]:
    names = short_names([dimension.key for dimension in search.space])
    best = max if search.goal == "max" else min
    of_key = {
        "key": names[effect.dimension.key],
        "explains": f"{100 * effect.explained:.0f} %",
        "by chance": f"{100 * effect.by_chance:.0f} %",
    }
    return [
        {
            **(of_key if index == 0 else dict.fromkeys(of_key, "")),
            "value": group.label,
            "n": str(len(group.scores)),
            "mean": f"{group.mean:.4f}",
            "best": f"{best(group.scores):.4f}",
        }
        for index, group in enumerate(effect.groups)
    ]


def caveats(search: SearchSpec, num_trials: int, num_finished: int) -> list[str]:
    """What can't be concluded from the table above."""
    lines = [
        f"Hints, no proof: {num_trials} trials, in which {len(search.space)} keys change at once. "
        "A key explains its share of the scores' variation (eta squared). A key without any effect "
        "would explain the share under by chance."
    ]
    if search.continues_trials:
        lines.append(
            "Only trials of the same number of epochs may be compared, so these are the "
            f"{num_trials} of {num_finished} with the most common one. After few epochs, settings "
            "that learn fast look best."
        )
    return lines


# The pictures


def draw(sweep: SweepDirectory, search: SearchSpec, rows: Sequence[Line]) -> list[Path]:
    """Draw the finished trials into the sweep's folder; a picture without content is left out.

    Returns:
        The files. A file that can't be written gets a line on standard error instead.
    """
    finished = scored_trials(rows, search)
    if not finished:
        return []
    from harness.sweep_report.plots import objective_by_key, parallel_coordinates

    trials = comparable(finished, search)
    pictures = {"parallel_coordinates.png": parallel_coordinates(finished, search)}
    if effects := effects_of(trials, search):
        pictures["objective_by_key.png"] = objective_by_key(trials, effects, search)
    written = []
    for name, picture in pictures.items():
        try:
            atomic_write(sweep.path(name), picture)
        except RunError as error:
            log(logging.ERROR, str(error))
        else:
            written.append(sweep.path(name))
    return written
