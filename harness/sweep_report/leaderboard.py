"""`harness sweep show`: the leaderboard of a sweep, what mattered, and pictures of both."""

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from harness.errors import RunError
from harness.files.atomic_file import atomic_write
from harness.monitoring.status import format_duration
from harness.report.text_tables import Line, table_lines
from harness.search_space import SearchSpec, short_names
from harness.sweep_report.importance import (
    MIN_TRIALS,
    Effect,
    comparable,
    effects_of,
    scored_trials,
)
from harness.tuning.sweep_dir import LEADERBOARD, SweepDirectory, ranked_rows

NUM_SHOWN = 10
STYLES = {"running": "green", "waiting": "yellow", "failed": "red"}
COUNTED = ("finished", "failed", "running", "waiting")


def show(sweep: SweepDirectory) -> None:
    """Print the leaderboard and what mattered, and draw both into the sweep's folder.

    An unfinished sweep is shown as far as it is.

    Raises:
        InputError: if the sweep's `search.toml` is none.
    """
    search, rows = sweep.search(), ranked_rows(sweep)
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    for part in (
        *heading(sweep, search, rows),
        *leaderboard(sweep, search, rows, console),
        *what_mattered(search, rows),
    ):
        if console.is_terminal:
            console.print(part, soft_wrap=False)
        else:  # whole lines, without the blanks that fill a terminal's
            console.print(part)
    for path in draw(sweep, search, rows):
        console.print(f"picture      {path}", markup=False)


# The leaderboard


def heading(sweep: SweepDirectory, search: SearchSpec, rows: Sequence[Line]) -> list[Text]:
    """Which sweep this is, and how far."""
    table = search.table
    best = "highest" if search.goal == "max" else "lowest"
    counts = Counter(row["status"] for row in rows)
    told = ", ".join(f"{counts[status]} {status}" for status in COUNTED)
    total = f" of {table.trials:,} trials" if table.trials else ""
    lines = [
        Text(f"sweep {sweep.folder}: {table.tuner} search for the {best} {table.objective}"),
        Text(f"{told}{total}"),
    ]
    if not sweep.finished():
        phase = sweep.read_json("state.json").get("phase")
        remedy = f"; go on by: harness resume {shlex.quote(str(sweep.folder))}"
        lines.append(
            Text(f"unfinished: {phase or 'not begun'}{'' if phase == 'searching' else remedy}")
        )
    return lines


def leaderboard(
    sweep: SweepDirectory, search: SearchSpec, rows: Sequence[Line], console: Console
) -> list[RenderableType]:
    """The best trials, how many more there are, and why others failed."""
    going = [row for row in rows if row["status"] != "failed"]
    parts: list[RenderableType] = [Text()]
    if going:
        keys = [dimension.key for dimension in search.space]
        lines = [_cells(row, search, keys) for row in going[:NUM_SHOWN]]
        names = short_names(keys)
        fields = ("rank", "trial", "status", search.table.objective)
        columns = [*fields, *names.values(), "epochs", "time"]
        if console.is_terminal and len(table_lines(columns, lines)[0]) > console.width:
            parts += _narrow([*fields, "epochs", "time"], list(names.values()), lines)
        else:
            first, *others = table_lines(columns, lines)
            parts += [Text(first, "bold"), *map(_coloured, others, going)]
    else:
        parts.append(Text("no trial has begun yet"))
    if more := len(going) - NUM_SHOWN if len(going) > NUM_SHOWN else 0:
        parts.append(Text(f"and {more:,} more in {sweep.path(LEADERBOARD)}", "dim"))
    return parts + [Text(line, "red") for line in failures(rows)]


def failures(rows: Iterable[Line]) -> list[str]:
    """A line for each error, with the trials that failed by it."""
    by_error: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "failed":
            by_error.setdefault(row.get("error") or "no reason is known", []).append(row["trial"])
    return [
        f"failed: trial{'s' if len(trials) > 1 else ''} {', '.join(trials)}: {error}"
        for error, trials in by_error.items()
    ]


def _cells(row: Line, search: SearchSpec, keys: Sequence[str]) -> dict[str, str]:
    names, objective = short_names(keys), search.table.objective
    time_s = row.get("training_s")
    return {
        **{field: row.get(field) or "" for field in ("rank", "trial", "status", "epochs")},
        **{names[key]: row.get(key) or "" for key in keys},
        objective: f"{float(row[objective]):.4f}" if row.get(objective) else "",
        "time": format_duration(float(time_s)) if time_s else "",
    }


def _narrow(
    columns: Sequence[str], values: Sequence[str], rows: Sequence[Line]
) -> list[RenderableType]:
    """A table for a narrow terminal: a trial's values stand below it."""
    first, *others = table_lines(columns, rows)
    parts: list[RenderableType] = [Text(first, "bold")]
    for line, row in zip(others, rows, strict=True):
        told = "  ".join(f"{name}={row[name]}" for name in values if row[name])
        parts.append(Group(_coloured(line, row), Padding(Text(told, "dim"), (0, 0, 0, 6))))
    return parts


def _coloured(line: str, row: Line) -> Text:
    text = Text(line)
    if style := STYLES.get(row["status"]):
        text.highlight_words([row["status"]], style)
    return text


# What mattered


def what_mattered(search: SearchSpec, rows: Sequence[Line]) -> list[Text]:
    """The score by the values of each key, the key that explains most first."""
    finished = scored_trials(rows, search)
    trials = comparable(finished, search)
    lines = [Text(), Text(f"what mattered for {search.table.objective}", "bold")]
    if len(trials) < MIN_TRIALS:
        told = f"{len(trials)} finished trials" + (
            " of the same number of epochs" if len(trials) < len(finished) else ""
        )
        return [*lines, Text(f"not to be told yet: {told}, at least {MIN_TRIALS} are needed")]
    effects = effects_of(trials, search)
    if not effects:
        return [*lines, Text("not to be told: no key had several values")]
    first, *others = table_lines(
        ("key", "explains", "by chance", "value", "n", "mean", "best"),
        [line for effect in effects for line in _effect_lines(effect, search)],
    )
    lines += [Text(first, "bold"), *map(Text, others)]
    return lines + [Text(line, "dim") for line in caveats(search, len(trials), len(finished))]


def _effect_lines(effect: Effect, search: SearchSpec) -> list[Line]:
    names = short_names([dimension.key for dimension in search.space])
    best = max if search.goal == "max" else min
    told = {
        "key": names[effect.dimension.key],
        "explains": f"{100 * effect.explained:.0f} %",
        "by chance": f"{100 * effect.by_chance:.0f} %",
    }
    return [
        {
            **(told if place == 0 else dict.fromkeys(told, "")),
            "value": group.label,
            "n": str(len(group.scores)),
            "mean": f"{group.mean:.4f}",
            "best": f"{best(group.scores):.4f}",
        }
        for place, group in enumerate(effect.groups)
    ]


def caveats(search: SearchSpec, num_trials: int, num_finished: int) -> list[str]:
    """What the table above it can't say."""
    lines = [
        f"Hints, no proof: {num_trials} trials, in which {len(search.space)} keys change at once. "
        "A key explains its share of the scores' variation (eta squared); one without any effect "
        "would explain as much as stands under by chance."
    ]
    if search.table.tuner == "hyperband":
        lines.append(
            "Only trials of the same number of epochs may be compared, so these are the "
            f"{num_trials} of {num_finished} with the most common one; after few epochs what "
            "learns fast looks best."
        )
    if search.table.stop_hopeless:
        lines.append("Trials that were ended early as hopeless count with the score they had.")
    return lines


# The pictures


def draw(sweep: SweepDirectory, search: SearchSpec, rows: Sequence[Line]) -> list[Path]:
    """Draw the finished trials into the sweep's folder; a picture of nothing is left out.

    Returns:
        What was written. Where the folder can't be, a line on standard error says so.
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
            print(f"harness: {error}", file=sys.stderr)  # noqa: T201
        else:
            written.append(sweep.path(name))
    return written
