"""What mattered in a search: how the score depends on the values of each hyperparameter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.job.search import Parameter, SearchSpec
from harness.tuning.leaderboard import values_of
from harness.tuning.protocol import Trial

if TYPE_CHECKING:
    import pandas

MIN_TRIALS = 3  # from fewer nothing can be concluded
NUM_BINS = 3  # of a range


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
