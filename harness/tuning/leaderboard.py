"""Computes a sweep's leaderboard, result, importance of keys and plot, from its trials alone."""

import csv
import io
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from harness.config import flat
from harness.errors import RunError
from harness.job.own_code import source_digest
from harness.job.search import Parameter, SearchSpec, short_names
from harness.report.summary import defused, plain_table
from harness.system.console import log, quoted, rich_console
from harness.system.files import atomic_write
from harness.system.lenient_json import table
from harness.tracking.run_dir import RECORD
from harness.tracking.status import format_duration
from harness.training.metrics import new_figure, png
from harness.tuning.protocol import Trial
from harness.tuning.sweep_dir import SweepDirectory

if TYPE_CHECKING:
    import pandas

LEADERBOARD, PLOT = "leaderboard.csv", "parallel_coordinates.png"
MAX_SAME_FAILURES = 3  # number of trials with the same error after which a search ends
ORDER = ("finished", "running", "waiting", "failed")  # statuses in the leaderboard's order
NUM_SHOWN = 10  # number of printed rows of the leaderboard
DIGITS = (4, 12)  # smallest and largest number of decimals of a score
MIN_TRIALS = 3  # smallest number of trials for which the importance of a key is computed
# The rows about results in a comparison of sweeps.
RESULTS = ("best score", "best trial", "trials finished", "trials failed", "training time")
NUM_BINS = 3  # number of groups into which the values of a range are divided
MISSING = -0.12  # height of a trial's line at the axis of a key that the trial does not use
SPREAD = 0.045  # fraction of the axis over which the lines through one value are spread
Ticks = list[tuple[float, str]]  # height and text of each tick; an axis reaches from 0 to 1


def ranked(trials: Iterable[Trial], search: SearchSpec) -> list[Trial]:
    """Sort trials: finished ones from best to worst, then running, waiting and failed ones."""
    sign, objective = -1 if search.goal == "max" else 1, search.table.objective
    return sorted(
        trials, key=lambda t: (ORDER.index(t.status), sign * t.scores.get(objective, 0.0), t.n)
    )


def leaderboard_rows(trials: Iterable[Trial], search: SearchSpec) -> list[dict[str, Any]]:
    """Rank the trials and return them as rows of the leaderboard; a missing number is None."""
    objective = search.table.objective
    return [
        {
            "rank": rank if trial.status == "finished" else None,
            "trial": trial.n,
            "status": trial.status,
            objective: trial.scores.get(objective),
            **dict.fromkeys(parameter.key for parameter in search.space),
            **search.used(trial.values),
            "epochs": trial.epochs,
            "kept_epoch": trial.kept_epoch,
            "training_s": trial.training_s,
            "parameters": trial.parameters,
            "worker": trial.worker,
            "error": " ".join(trial.error.split()),
            "attempt": f"{trial.n}/{trial.attempt}" if trial.attempt else "",  # path in `trials/`
        }
        for rank, trial in enumerate(ranked(trials, search), 1)
    ]


def leaderboard_csv(trials: Iterable[Trial], search: SearchSpec) -> bytes:
    """Return the leaderboard as CSV, which `defused` makes safe to open in a spreadsheet."""
    rows = leaderboard_rows(trials, search)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(rows[0] if rows else ["rank", "trial", "status"])
    for row in rows:
        writer.writerow(map(defused, row.values()))
    return text.getvalue().encode()


def result_of(sweep: SweepDirectory, search: SearchSpec, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the content of a finished search's `result.json`.

    Raises:
        RunError: if no trial has finished.
    """
    best = next(iter(ranked(trials, search)), None)
    if not best or best.status != "finished":
        error = best.error if best else "the search has no trials"
        raise RunError(
            f"sweep {sweep.folder}: no trial finished: {error}; correct the search's job and begin "
            "another sweep"
        )
    return {
        "job": search.name,
        "sweep": sweep.folder.resolve().name,
        "tuner": search.table.tuner,
        "objective": search.table.objective,
        "trials": search.table.trials,  # `SweepDirectory.finished` compares it with `search.toml`
        "num_trials": len(trials),
        "num_failed": sum(trial.status == "failed" for trial in trials),
        "best_trial": best.n,
        "best_score": best.scores[search.table.objective],
        "best_values": {key: str(value) for key, value in search.used(best.values).items()},
    }


def same_failure(trials: Iterable[Trial]) -> str:
    """Return an error that three trials had; "" if none.

    Errors that differ only in their numbers count as the same error.
    """
    by_text = defaultdict[str, list[str]](list)
    for trial in trials:
        if trial.error:
            by_text[re.sub(r"[0-9.]+", "#", trial.error)].append(trial.error)
    return next((same[0] for same in by_text.values() if len(same) >= MAX_SAME_FAILURES), "")


def describe(trial: Trial, search: SearchSpec) -> str:
    """Describe an ended trial in one line: its score or error, and its values."""
    objective = search.table.objective
    how = f"failed: {trial.error}" if trial.error else f"{objective} {trial.scores[objective]:.4f}"
    values = ", ".join(f"{key} = {value}" for key, value in search.used(trial.values).items())
    return f"trial {trial.n}: {how}; {values}"


# `harness sweep show`


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


def compare(sweeps: Sequence[SweepDirectory]) -> None:
    """Print a column for each sweep: its results, and the settings in which the sweeps differ.

    Raises:
        InputError, DiskError: as for `show`.
    """
    import pandas

    console = rich_console()
    width = console.width if console.is_terminal else None
    columns = [_column(sweep) for sweep in sweeps]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    shown = [row for row in rows if row[0] in RESULTS or len({*row[1:]}) > 1]
    cells = pandas.DataFrame(shown, columns=["sweep", *(str(sweep.folder) for sweep in sweeps)])
    console.print(Text(plain_table(cells, width)), soft_wrap=width is None)


def _column(sweep: SweepDirectory) -> dict[str, str]:
    """Return a sweep's results, the settings of its best trial, and the search's settings."""
    search = sweep.search()
    trials = ranked(sweep.trials(), search)
    counts = Counter(trial.status for trial in trials)
    times = {trial.n: trial.training_s or 0.0 for trial in trials}
    training_s = sum(times.values())
    # The time of a trial that continues a checkpoint contains the time of its parent.
    if not search.job.train.callbacks:
        parents = [trial.parent for trial in trials if trial.training_s]
        training_s -= sum(times[parent] for parent in parents if parent is not None)
    content = {name: value for name, value in search.content.items() if name != "name"}
    content["code"] = {path: source_digest(text) for path, text in search.job.code.items()}
    if counts["finished"]:
        best, score = trials[0], trials[0].scores[search.table.objective]
        found = (f"{score:.{DIGITS[0]}f}", str(best.n))
        content["best"] = search.used(best.values)
    else:
        found = ("", "")
    counted = (str(counts["finished"]), str(counts["failed"]), format_duration(training_s))
    data = table(sweep.certain_json(RECORD), "dataset").get("checksum")
    settings = [pair for name in content for pair in flat(name, content[name])]
    return {
        **dict(zip(RESULTS, (*found, *counted), strict=True)),
        **{key: str(value) for key, value in settings},
        "data": str(data)[:12],
    }


def digits_of(scores: Sequence[float]) -> int:
    """Return the smallest number of decimals at which unequal scores are displayed differently."""
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
    """Return the trials with comparable scores.

    The tuners hyperband and asha train good settings for more epochs, which also changes the
    scores. After a search with hyperband or asha, only the trials with the most common number of
    epochs are returned; after any other search, all trials. If two numbers of epochs are equally
    common, the trials with the larger number are returned.
    """
    if not search.continues_trials or trials.empty:
        return trials
    return trials[trials["epochs"] == trials["epochs"].mode().max()]


def effects(trials: "pandas.DataFrame", search: SearchSpec) -> "pandas.DataFrame":
    """Compare the scores of each key's values, the most important key first.

    Returns:
        A table. A key that is searched over a list has a row for each value. A key that is searched
        over a range has a row for each third of its values, or for each value if there are at most
        three. The columns `key` and `value` contain the row's key and value. Three columns describe
        the scores of the trials with this value: `n` is the number of scores, `mean` their mean and
        `best` the best score. `explains` is eta squared of the key: the between-group sum of
        squares divided by the total sum of squares (Fisher, 1925), or 0 if all scores are equal.
        `by chance` is the expected eta squared of a key without effect: (k - 1) / (n - 1) for n
        trials and k rows of the key. A key with one value or with too few trials has no rows.
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
            f"the importance of keys is unknown: it needs at least {MIN_TRIALS} comparable trials, "
            "and a key with different values in these trials"
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
        yield (
            "Only trials with the most common number of epochs are compared. After few epochs, "
            "settings that learn fast look best."
        )


# The plot: a line for each trial, an axis for each key


def axis_of(parameter: Parameter, values: "pandas.Series") -> "tuple[pandas.Series, Ticks]":
    """Return the height of each trial's line at one axis of the parallel-coordinates plot.

    Also returns the axis's ticks. The axis shows the values of a key. If the search tries a list of
    values for the key, the axis has a tick at each value, and trials with the same value get
    slightly different heights, so that their lines stay visible. If the search tries a range, the
    axis has ticks at its two ends and its middle. The lines of trials that do not use the key lie
    below the axis, at slightly different heights.
    """
    low, high = parameter.low, parameter.high
    if choices := parameter.choices:
        places = np.linspace(0, 1, len(choices)).tolist()
        heights = values.map(dict(zip(choices, places, strict=True))).astype(float)
        ticks = [(place, str(each)) for place, each in zip(places, choices, strict=True)]
    elif parameter.log:
        heights = np.log(values.astype(float) / low) / np.log(high / low)
        ticks = [(0, f"{low:.4g}"), (0.5, f"{(low * high) ** 0.5:.4g}"), (1, f"{high:.4g}")]
    else:
        heights = (values.astype(float) - low) / (high - low or 1)
        ticks = [(0, f"{low:.4g}"), (0.5, f"{(low + high) / 2:.4g}"), (1, f"{high:.4g}")]
    if values.isna().any():
        ticks.append((MISSING, "none"))
    spread = SPREAD * np.linspace(0.5, -0.5, len(values))
    return heights.fillna(MISSING) + spread * (values.isna() | bool(choices)), ticks


def parallel_coordinates(trials: "pandas.DataFrame", search: SearchSpec) -> bytes:
    """Draw each finished trial as a line over the axes of all keys; return a PNG, 480 pixels high.

    The colour shows the score. The worst tenth of the trials share one colour: otherwise a single
    trial that did not learn would make the colours of all other trials almost equal. The best
    trial's line is thick. With hyperband and asha, the number of epochs has an axis too if this
    number differs between trials.

    Args:
        trials: the rows of `scored_trials`, at least one, the best first.
        search: the search space and the objective of these trials.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scores, objective = trials["score"], search.table.objective
    names = short_names([parameter.key for parameter in search.space])
    axes = [(names[each.key], *axis_of(each, trials[each.key])) for each in search.space]
    lengths = tuple(sorted({*trials["epochs"]}))
    if search.continues_trials and len(lengths) > 1:
        axes.append(("epochs", *axis_of(Parameter("epochs", lengths), trials["epochs"])))
    axes.append((objective, *axis_of(Parameter("", low=scores.min(), high=scores.max()), scores)))

    figure, plot = new_figure(size=(max(6.4, 1.2 + 1.05 * len(axes)), 4.8))
    ends = sorted([scores.iloc[0], scores.iloc[-1 - len(scores) // 10]])
    colours = ScalarMappable(Normalize(*ends), "viridis")
    lines = np.stack([heights for _, heights, _ in axes], axis=1)
    for rank in reversed(range(len(lines))):  # draw the best line last, on top
        width, colour = 1.2 if rank else 4, colours.to_rgba(scores.iloc[rank])
        plot.plot(lines[rank], color=colour, linewidth=width)
    for x, (_, _, ticks) in enumerate(axes):
        plot.vlines(x, 0, 1, color="black", linewidth=0.8, zorder=4)
        for height, text in ticks:
            plot.text(
                *(x + 0.06, height, text),
                parse_math=False,  # otherwise a dollar sign would begin a formula
                va="center",
                fontsize=8,
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.8, "linewidth": 0},
            )
    plot.set_xticks(range(len(axes)), [name.replace("_", "\n") for name, *_ in axes])
    plot.tick_params(axis="x", length=0, labelsize=9)
    plot.set(yticks=[], xlim=(-0.15, len(axes) - 0.45))
    plot.spines[:].set_visible(False)
    best = f"trial {scores.index[0]}, {scores.iloc[0]:.4f}"
    plot.set_title(f"{search.name}: {len(scores)} trials; thick line: the best one ({best})")
    beyond = "min" if search.goal == "max" else "max"
    figure.colorbar(colours, ax=plot, pad=0.01, extend=beyond, label=objective)
    return png(figure)
