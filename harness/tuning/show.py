"""`harness sweep show`: prints the leaderboard and the importance of keys, and plots the trials."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from harness.errors import RunError
from harness.job.search import SearchSpec, short_names
from harness.report.text_tables import plain_table
from harness.system.console import log, quoted, rich_console
from harness.system.files import atomic_write
from harness.tracking.status import format_duration
from harness.tuning.leaderboard import LEADERBOARD, ORDER, leaderboard_rows, ranked
from harness.tuning.plots import parallel_coordinates
from harness.tuning.protocol import Trial
from harness.tuning.sweep_dir import SweepDirectory

if TYPE_CHECKING:
    import pandas

PLOT = "parallel_coordinates.png"
NUM_SHOWN = 10  # number of printed rows of the leaderboard
DIGITS = (4, 12)  # smallest and largest number of decimals of a score
MIN_TRIALS = 3  # smallest number of trials for which the importance of a key is computed
NUM_BINS = 3  # number of groups into which the values of a range are divided


def show(sweep: SweepDirectory) -> None:
    """Print the leaderboard and the importance of keys; save a plot in the sweep's folder.

    Raises:
        InputError: if `search.toml` is broken, or another version of harness wrote the sweep.
        DiskError: if the trials are unreadable.
    """
    search, console = sweep.search(), rich_console()
    width = console.width if console.is_terminal else None
    trials = ranked(sweep.trials(), search)
    scored = scored_trials(trials, search)
    parts = [*heading(sweep, search, trials), *leaderboard(sweep, search, trials)]
    for part in [*parts, *importance(scored, search)]:
        text = part if isinstance(part, str) else plain_table(part, width)
        console.print(Text(text), soft_wrap=width is None)
    if scored.empty:
        return
    path = sweep.path(PLOT)
    try:
        atomic_write(path, parallel_coordinates(scored, search))
    except RunError as error:  # for example, the sweep belongs to a colleague
        log(logging.ERROR, str(error))
    else:
        console.print(Text(f"plot: {path}"), soft_wrap=True)


def heading(sweep: SweepDirectory, search: SearchSpec, trials: Sequence[Trial]) -> Iterator[str]:
    """Yield lines about the search and its progress."""
    best = "highest" if search.goal == "max" else "lowest"
    tuner, objective = search.table.tuner, search.table.objective
    yield f"sweep {sweep.folder}: {tuner} search for the {best} {objective}"
    counts = Counter(trial.status for trial in trials)
    total = f" of {search.max_trials} trials" if search.max_trials else ""
    yield ", ".join(f"{counts[status]} {status}" for status in ORDER) + total
    if not sweep.finished():
        phase = sweep.read_json("state.json").get("phase", "not begun")
        folder = quoted(sweep.folder)
        yield (
            f"unfinished ({phase}); to continue the sweep or to add workers, run: "
            f"harness resume {folder}"
        )


def leaderboard(
    sweep: SweepDirectory, search: SearchSpec, trials: Sequence[Trial]
) -> "Iterator[str | pandas.DataFrame]":
    """Yield a table of the best trials, the number of other trials, and errors of failed trials."""
    import pandas

    yield ""
    rows, failed = [], defaultdict[str, list[str]](list)
    objective, names = search.table.objective, short_names([each.key for each in search.space])
    digits = digits_of([each.scores[objective] for each in trials[:NUM_SHOWN] if each.scores])
    for rank, trial in enumerate(trials, 1):
        if trial.error:
            failed[" ".join(trial.error.split())].append(str(trial.n))
            continue
        values, is_done = search.used(trial.values), trial.status == "finished"
        row = {
            "rank": str(rank) if is_done else "",
            "trial": str(trial.n),
            "status": trial.status,
            objective: f"{trial.scores[objective]:.{digits}f}" if is_done else "",
            "epochs": str(trial.epochs) if is_done else "",
            "time": format_duration(trial.training_s or 0.0) if is_done else "",
            "values": "  ".join(f"{names[key]}={value}" for key, value in values.items()),
        }
        rows.append(row)
    yield pandas.DataFrame(rows[:NUM_SHOWN]) if rows else "no trial has finished"
    if len(rows) > NUM_SHOWN:
        yield f"and {len(rows) - NUM_SHOWN} more trials, listed in {sweep.path(LEADERBOARD)}"
    for error, numbers in failed.items():
        yield f"failed trials {', '.join(numbers)}: {error}"


def digits_of(scores: Sequence[float]) -> int:
    """Return the smallest number of decimals with which different scores look different."""
    least, most = DIGITS
    counts = {d: len({f"{score:.{d}f}" for score in scores}) for d in range(least, most + 1)}
    return next(digits for digits, count in counts.items() if count == counts[most])


# Importance


def scored_trials(trials: Sequence[Trial], search: SearchSpec) -> "pandas.DataFrame":
    """Tabulate the trials with a finite score, the best first.

    Returns:
        A table with a row for each trial, indexed by the trial's number. The columns are `score`
        (the objective), `epochs` (the number of trained epochs), and each searched key. A cell is
        missing if the trial does not use the key.
    """
    import pandas

    objective, rows = search.table.objective, leaderboard_rows(trials, search)
    columns = ["trial", objective, "epochs", *(each.key for each in search.space)]
    # With dtype=object, whole numbers do not become floats in a column with missing values.
    found = pandas.DataFrame(rows, columns=columns, dtype=object).set_index("trial")
    found = found.rename(columns={objective: "score"}).astype({"score": float})
    return found[np.isfinite(found["score"])].astype({"epochs": int})


def comparable(trials: "pandas.DataFrame", search: SearchSpec) -> "pandas.DataFrame":
    """Return the trials with comparable scores: all, or those with the same number of epochs.

    hyperband and asha train good settings for more epochs, which also changes the scores. So for
    hyperband and asha, only the trials with the most common number of epochs are returned. If two
    numbers of epochs are equally common, the trials with the larger number are returned.
    """
    if not search.continues_trials or trials.empty:
        return trials
    return trials[trials["epochs"] == trials["epochs"].mode().max()]


def effects(trials: "pandas.DataFrame", search: SearchSpec) -> "pandas.DataFrame":
    """Compare the scores of each key's values, the most important key first.

    Returns:
        A table. A key that is searched over a list has a row for each value. A key that is searched
        over a range has a row for each third of its values, or for each value if there are at most
        three. The columns `key` and `value` name the value of a row. Three columns describe the
        scores of the trials with this value: `n` is the number of scores, `mean` their mean and
        `best` the best score. `explains` is eta squared of the key: the between-group sum of
        squares divided by the total sum of squares (Fisher, 1925), or 0 if all scores are equal.
        `by chance` is the expected eta squared of a key without effect: (k - 1) / (n - 1) for n
        trials in k groups. A key with one value or with too few trials has no rows.
    """
    import pandas

    rows, best = [], max if search.goal == "max" else min
    for parameter in search.space:
        having = trials.dropna(subset=parameter.key)
        scores, values = having["score"], having[parameter.key]
        groups = values
        if not parameter.choices and values.nunique() > NUM_BINS:
            groups = pandas.cut(values.astype(float).rank(), NUM_BINS)
        parts = [part for _, part in having.groupby(groups, observed=True)]
        if len(having) < MIN_TRIALS or len(parts) < 2:
            continue
        between = sum(len(x) * (x["score"].mean() - scores.mean()) ** 2 for x in parts)
        share = between / (scores.var(ddof=0) * len(scores)) if scores.nunique() > 1 else 0.0
        for part in parts:
            inside = part[parameter.key]
            ends = [inside.iloc[0]] if parameter.choices else [inside.min(), inside.max()]
            row = {
                "key": parameter.key,
                "explains": share,
                "by chance": (len(parts) - 1) / (len(having) - 1),
                "value": " to ".join(
                    dict.fromkeys(str(x) if parameter.choices else f"{x:.4g}" for x in ends)
                ),
                "n": len(part),
                "mean": part["score"].mean(),
                "best": best(part["score"]),
            }
            rows.append(row)
    return pandas.DataFrame(sorted(rows, key=lambda row: -row["explains"]))


def importance(
    finished: "pandas.DataFrame", search: SearchSpec
) -> "Iterator[str | pandas.DataFrame]":
    """Yield a table of the scores of each key's values, and notes on how to read it."""
    trials = comparable(finished, search)
    yield f"\nimportance for {search.table.objective}"
    cells = effects(trials, search)
    if cells.empty:
        yield (
            "the importance of keys is unknown: no key had several values in at least "
            f"{MIN_TRIALS} comparable trials"
        )
        return
    for share in ("explains", "by chance"):
        cells[share] = [f"{100 * value:.0f} %" for value in cells[share]]
    for score in ("mean", "best"):
        cells[score] = cells[score].map("{:.4f}".format)
    cells["key"] = cells["key"].map(short_names([each.key for each in search.space]))
    cells = cells.astype(str)
    cells.loc[cells.duplicated("key"), ["key", "explains", "by chance"]] = ""
    yield cells
    yield (
        f"The table gives hints, not proof: {len(trials)} of {len(finished)} trials are compared, "
        "and two trials may differ in several keys. Column 'explains': the share of the scores' "
        "variance that a key explains (eta squared). Column 'by chance': the share to expect for a "
        "key without any effect."
    )
    if search.continues_trials:
        yield "Only trials with the most common number of epochs are compared."
