"""`harness sweep show`: the leaderboard of a sweep, what mattered, and a picture."""

import logging
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, RenderableType
from rich.text import Text

from harness.errors import RunError
from harness.job.search import Parameter, SearchSpec, rounded, short_names
from harness.report.text_tables import narrowest, screen_table, table_lines
from harness.system.console import log, rich_console
from harness.system.files import atomic_write
from harness.tracking.status import format_duration
from harness.tuning.leaderboard import LEADERBOARD, ranked, values_of
from harness.tuning.protocol import Trial
from harness.tuning.sweep_dir import SweepDirectory

if TYPE_CHECKING:
    import pandas

NUM_SHOWN = 10
DIGITS = (4, 12)  # of a score, at least and at most
STYLES = {"status": {"running": "green", "waiting": "yellow", "failed": "red"}}
COUNTED = ("finished", "failed", "running", "waiting")
MIN_TRIALS = 3  # from fewer nothing can be concluded
NUM_BINS = 3  # of a range


def show(sweep: SweepDirectory) -> None:
    """Print the leaderboard and what mattered, and draw a picture into the sweep's folder.

    An unfinished sweep is shown as far as it has come.

    Raises:
        InputError: if the sweep's `search.toml` is none.
    """
    search, console = sweep.search(), rich_console()
    trials = ranked(sweep.trials(), search)
    for part in (
        *heading(sweep, search, trials),
        *leaderboard(sweep, search, trials, console),
        *what_mattered(search, trials, console),
        *(Text(f"picture      {path}") for path in draw(sweep, search, trials)),
    ):
        console.print(part, soft_wrap=not console.is_terminal)


# The leaderboard


def heading(sweep: SweepDirectory, search: SearchSpec, trials: Sequence[Trial]) -> list[Text]:
    """Which sweep this is, and how far it has come."""
    table = search.table
    best = "highest" if search.goal == "max" else "lowest"
    counts = Counter(trial.status for trial in trials)
    by_status = ", ".join(f"{counts[status]} {status}" for status in COUNTED)
    total = f" of {search.max_trials:,} trials" if search.max_trials else ""
    lines = [
        Text(f"sweep {sweep.folder}: {table.tuner} search for the {best} {table.objective}"),
        Text(f"{by_status}{total}"),
    ]
    if not sweep.finished():
        phase = sweep.read_json("state.json").get("phase")
        remedy = f"; continue with: harness resume {shlex.quote(str(sweep.folder))}"
        lines.append(
            Text(f"unfinished: {phase or 'not begun'}{'' if phase == 'searching' else remedy}")
        )
    return lines


def leaderboard(
    sweep: SweepDirectory, search: SearchSpec, trials: Sequence[Trial], console: Console
) -> list[RenderableType]:
    """The best trials, the number of the others, and why trials failed."""
    import pandas

    going = [trial for trial in trials if trial.status != "failed"]
    parts: list[RenderableType] = [Text()]
    if going:
        before, after = ["rank", "trial", "status", search.table.objective], ["epochs", "time"]
        short = short_names([dimension.key for dimension in search.space])
        names = {k: k if name in (*before, *after) else name for k, name in short.items()}
        best = going[:NUM_SHOWN]
        digits = digits_of([each.scores.get(search.table.objective) for each in best])
        lines = [_cells(i, each, search, names, digits) for i, each in enumerate(best, 1)]
        cells = pandas.DataFrame(lines)[[*before, *names.values(), *after]]
        parts.append(_leaderboard_table(cells, console))
    else:
        how = "finished, all have failed" if trials else "begun yet"
        parts.append(Text(f"no trial has {how}"))
    if (more := len(going) - NUM_SHOWN) > 0:
        parts.append(Text(f"and {more:,} more in {sweep.path(LEADERBOARD)}", "dim"))
    return parts + [Text(line, "red") for line in failures(trials)]


def digits_of(scores: Sequence[float | None]) -> int:
    """The decimals that tell different scores apart."""
    least, most = DIGITS
    known = [score for score in scores if score is not None]
    counts = {d: len({f"{score:.{d}f}" for score in known}) for d in range(least, most + 1)}
    return next(digits for digits, count in counts.items() if count == counts[most])


def failures(trials: Iterable[Trial]) -> list[str]:
    """A line for each error, with the trials that it ended."""
    by_error: dict[str, list[str]] = {}
    for trial in trials:
        if trial.error:
            by_error.setdefault(" ".join(trial.error.split()), []).append(str(trial.n))
    return [
        f"failed: trial{'s' if len(failed) > 1 else ''} {', '.join(failed)}: {error}"
        for error, failed in by_error.items()
    ]


def _cells(
    rank: int, trial: Trial, search: SearchSpec, names: Mapping[str, str], digits: int
) -> dict[str, str]:
    score, values = trial.scores.get(search.table.objective), values_of(trial, search.space)
    return {
        "rank": "" if score is None else str(rank),
        "trial": str(trial.n),
        "status": trial.status,
        "epochs": "" if trial.epochs is None else str(trial.epochs),
        **{name: str(rounded(values[key])) if key in values else "" for key, name in names.items()},
        search.table.objective: "" if score is None else f"{score:.{digits}f}",
        "time": "" if trial.training_s is None else format_duration(trial.training_s),
    }


def _leaderboard_table(cells: "pandas.DataFrame", console: Console) -> RenderableType:
    if not console.is_terminal:
        return Text("\n".join(table_lines(cells)))
    if narrowest(cells) > console.width:
        # Too narrow for a column each: all figures of a trial in one cell, which wraps.
        figures = [
            "  ".join(f"{name}={figure}" for name, figure in row.items() if figure)
            for row in cells.iloc[:, 3:].to_dict("records")
        ]
        cells = cells.iloc[:, :3].assign(values=figures)
    return screen_table(cells, STYLES)


# What mattered


@dataclass(frozen=True)
class Effect:
    """How the score depends on a key."""

    key: str
    explained: float  # eta squared, the share in 0..1 of the variation that lies between the groups
    by_chance: float  # the expected eta squared of a key without effect: (k - 1) / (n - 1)
    groups: "Sequence[tuple[str, pandas.Series]]"  # each value, or third of a range: its scores


def scored_trials(trials: Sequence[Trial], search: SearchSpec) -> "pandas.DataFrame":
    """The finished trials in their order, without those whose score isn't finite.

    Returns:
        By the number of the trial: `score` (the objective), `epochs` trained, and its value of each
        key, NaN where the key was inactive.
    """
    import pandas

    rows = {
        trial.n: {
            "score": trial.scores.get(search.table.objective, np.nan),
            "epochs": trial.epochs or 0,
            **values_of(trial, search.space),
        }
        for trial in trials
        if trial.status == "finished"
    }
    columns = ["score", "epochs", *(each.key for each in search.space)]
    # Of objects: whole numbers beside a NaN would become floats.
    found = pandas.DataFrame([*rows.values()], [*rows], columns, dtype=object)
    found = found.astype({"score": float, "epochs": int})
    return found[np.isfinite(found["score"])]


def comparable(trials: "pandas.DataFrame", search: SearchSpec) -> "pandas.DataFrame":
    """The trials whose scores may be compared: all, or those of one length if lengths differ.

    That is the number of epochs that most trials had, the larger one of two equally common:
    a search that trains good settings longer would otherwise mix how good a setting is with how
    long it was trained.
    """
    if not search.continues_trials or trials.empty:
        return trials
    return trials[trials["epochs"] == trials["epochs"].mode().max()]


def effects_of(trials: "pandas.DataFrame", search: SearchSpec) -> list[Effect]:
    """The effect of each key that had several values, in falling order of what it explains.

    Eta squared is the between-group sum of squares over the total (Fisher, 1925); 0 if all scores
    are equal.
    """
    effects = []
    for parameter in search.space:
        having = trials.dropna(subset=parameter.key)
        groups = _groups(parameter, having)
        if len(having) < MIN_TRIALS or len(groups) < 2:
            continue
        within = sum(scores.var(ddof=0) * len(scores) for _, scores in groups)
        total = having["score"].var(ddof=0) * len(having)
        explained = max(1 - float(within / total), 0.0) if total > 0 else 0.0
        by_chance = (len(groups) - 1) / (len(having) - 1)
        effects.append(Effect(parameter.key, explained, by_chance, groups))
    return sorted(effects, key=lambda effect: -effect.explained)


def _groups(parameter: Parameter, trials: "pandas.DataFrame") -> "list[tuple[str, pandas.Series]]":
    """The scores of each choice, or of bins of a range that are as equal in number as possible."""
    values, scores = trials[parameter.key], trials["score"]
    if parameter.choices:
        by_choice = ((str(each), scores[values == each]) for each in parameter.choices)
        return [(name, found) for name, found in by_choice if len(found)]
    numbers = values.astype(float)
    bins = numbers.rank(method="dense")
    if bins.max() > NUM_BINS:  # equal values have one rank, and so one bin
        bins = (NUM_BINS * (numbers.rank() - 0.5) / len(numbers)).astype(int)
    groups = []
    for _, inside in numbers.groupby(bins):
        ends = dict.fromkeys(f"{end:.3g}" for end in (inside.min(), inside.max()))
        groups.append((" to ".join(ends), scores[inside.index]))
    return groups


def what_mattered(
    search: SearchSpec, ranked: Sequence[Trial], console: Console
) -> list[RenderableType]:
    """The score by the values of each key, the key that explains most first."""
    import pandas

    finished = scored_trials(ranked, search)
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
    cells = pandas.DataFrame([line for each in effects for line in _effect_lines(each, search)])
    plain = Text("\n".join(table_lines(cells)))
    parts.append(screen_table(cells) if console.is_terminal else plain)
    return parts + [Text(line, "dim") for line in caveats(search, len(trials), len(finished))]


def _effect_lines(effect: Effect, search: SearchSpec) -> list[dict[str, str]]:
    names = short_names([dimension.key for dimension in search.space])
    best = max if search.goal == "max" else min
    of_key = {
        "key": names[effect.key],
        "explains": f"{100 * effect.explained:.0f} %",
        "by chance": f"{100 * effect.by_chance:.0f} %",
    }
    return [
        {
            **(of_key if index == 0 else dict.fromkeys(of_key, "")),
            "value": value,
            "n": str(len(scores)),
            "mean": f"{scores.mean():.4f}",
            "best": f"{best(scores):.4f}",
        }
        for index, (value, scores) in enumerate(effect.groups)
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


# The picture


def draw(sweep: SweepDirectory, search: SearchSpec, ranked: Sequence[Trial]) -> list[Path]:
    """Draw the finished trials into the sweep's folder, if there are any.

    Returns:
        The file. If it can't be written, a line on standard error says so instead.
    """
    finished = scored_trials(ranked, search)
    if finished.empty:
        return []
    from harness.tuning.plots import parallel_coordinates

    path = sweep.path("parallel_coordinates.png")
    try:
        atomic_write(path, parallel_coordinates(finished, search))
    except RunError as error:
        log(logging.ERROR, str(error))
        return []
    return [path]
