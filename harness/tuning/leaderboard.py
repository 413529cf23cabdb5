"""The leaderboard and the result of a sweep, which are functions of its trials."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from harness.errors import RunError
from harness.job.search import Parameter, SearchSpec, Value, rounded
from harness.report.text_tables import defused
from harness.tuning.protocol import Trial
from harness.tuning.sweep_dir import SweepDirectory

LEADERBOARD = "leaderboard.csv"
MAX_SAME_FAILURES = 3  # trials with the same error, which end a search
ORDER = ("finished", "running", "waiting", "failed")


def ranked(trials: Iterable[Trial], search: SearchSpec) -> list[Trial]:
    """Sort trials: finished ones from the best to the worst, then running, waiting and failed."""
    sign, objective = -1 if search.goal == "max" else 1, search.table.objective
    return sorted(
        trials, key=lambda t: (ORDER.index(t.status), sign * t.scores.get(objective, 0.0), t.n)
    )


def values_of(trial: Trial, space: Sequence[Parameter]) -> dict[str, Value]:
    """A trial's values without keys whose `when` does not hold; `space` has parents first."""
    values: dict[str, Value] = {}
    for each in space:
        if each.parent and values.get(each.parent) not in each.parent_choices:
            continue
        if (value := trial.values.get(each.key)) is not None:
            values[each.key] = value if each.choices else rounded(value)
    return values


def leaderboard_rows(trials: Iterable[Trial], search: SearchSpec) -> list[dict[str, Any]]:
    """The ranked trials by the columns of the leaderboard; None for missing values."""
    keys, objective = [parameter.key for parameter in search.space], search.table.objective
    rows = []
    for rank, trial in enumerate(ranked(trials, search), 1):
        values = {key: trial.values.get(key) for key in keys}
        row = {
            "rank": rank if trial.status == "finished" else None,
            "trial": trial.n,
            "status": trial.status,
            objective: trial.scores.get(objective),
            **{k: None if v is None else rounded(v) for k, v in values.items()},
            "epochs": trial.epochs,
            "kept_epoch": trial.kept_epoch,
            "training_s": trial.training_s,
            "parameters": trial.parameters,
            "worker": trial.worker,
            "error": " ".join(trial.error.split()),
            "attempt": f"{trial.n}/{trial.attempt}" if trial.attempt else "",  # below `trials/`
        }
        rows.append(row)
    return rows


def leaderboard_csv(trials: Iterable[Trial], search: SearchSpec) -> bytes:
    """The ranked trials as CSV; `defused` stops a spreadsheet from executing formulas."""
    rows = leaderboard_rows(trials, search)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(rows[0] if rows else ["rank", "trial", "status"])
    for row in rows:
        cells = (repr(cell) if isinstance(cell, float) else cell for cell in row.values())
        writer.writerow(map(defused, cells))
    return text.getvalue().encode()


def result_of(sweep: SweepDirectory, search: SearchSpec, trials: Sequence[Trial]) -> dict[str, Any]:
    """The result of a finished search.

    Raises:
        RunError: if no trial has finished.
    """
    in_order = ranked(trials, search)
    if not in_order or in_order[0].status != "finished":
        error = in_order[0].error if in_order else "there were none"
        raise RunError(f"sweep {sweep.folder}: no trial finished: {error}")
    best = in_order[0]
    return {
        "job": search.name,
        "sweep": sweep.folder.name,
        "tuner": search.table.tuner,
        "objective": search.table.objective,
        "trials": search.table.trials,  # as requested, see `is_of_search`
        "num_trials": len(trials),
        "num_failed": sum(trial.status == "failed" for trial in trials),
        "best_trial": best.n,
        "best_score": best.scores[search.table.objective],
        "best_values": {
            each.key: str(rounded(best.values[each.key]))
            for each in search.space
            if each.key in best.values
        },
    }


def same_failure(trials: Iterable[Trial]) -> str:
    """An error that three trials have in common, apart from its numbers; empty without one."""
    errors = [trial.error for trial in trials if trial.error]
    counts = Counter(re.sub(r"[0-9.]+", "#", error) for error in errors)
    alike = (e for e in errors if counts[re.sub(r"[0-9.]+", "#", e)] >= MAX_SAME_FAILURES)
    return next(alike, "")


def describe(trial: Trial, search: SearchSpec) -> str:
    """A line about an ended trial: its score or error, and its values."""
    how = f"failed: {trial.error}"
    if trial.status == "finished":
        how = f"{search.table.objective} {trial.scores[search.table.objective]:.4f}"
    values = ", ".join(f"{key} = {rounded(value)}" for key, value in trial.values.items())
    return f"trial {trial.n}: {how}; {values}"
