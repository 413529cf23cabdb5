"""Computes the leaderboard and the result of a sweep from its trials alone."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from harness.errors import RunError
from harness.job.search import SearchSpec
from harness.report.text_tables import defused
from harness.tuning.protocol import Trial
from harness.tuning.sweep_dir import SweepDirectory

LEADERBOARD = "leaderboard.csv"
MAX_SAME_FAILURES = 3  # number of trials with the same error after which a search ends
ORDER = ("finished", "running", "waiting", "failed")  # statuses in the leaderboard's order


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
    """Return an error that three trials had; "" if none. Numbers in the errors may differ."""
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
