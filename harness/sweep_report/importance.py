"""What mattered in a search: how the score depends on the values of each hyperparameter."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.job.search_parameters import Parameter, Value
from harness.job.search_space import SearchSpec, rounded
from harness.tuning.protocol import Trial

MIN_TRIALS = 3  # from fewer nothing can be concluded
NUM_BINS = 3  # of a range


@dataclass(frozen=True)
class Scored:
    """A finished trial with its hyperparameters."""

    trial: str
    score: float  # the objective
    epochs: int | None  # trained
    values: Mapping[str, Value]  # by the job's keys, without inactive ones


@dataclass(frozen=True)
class Effect:
    """How the score depends on a key."""

    key: str
    explained: float  # eta squared, the share in 0..1 of the variation that lies between the groups
    by_chance: float  # the expected eta squared of a key without effect: (k - 1) / (n - 1)
    groups: Sequence[tuple[str, Sequence[float]]]  # each value, or third of a range: its scores


def values_of(trial: Trial, space: Sequence[Parameter]) -> dict[str, Value]:
    """A trial's values by the keys that it had; `space` has parents first."""
    values: dict[str, Value] = {}
    for each in space:
        if each.parent and values.get(each.parent) not in each.parent_choices:
            continue
        if (value := trial.values.get(each.key)) is not None:
            values[each.key] = value if each.choices else rounded(value)
    return values


def scored_trials(trials: Sequence[Trial], search: SearchSpec) -> list[Scored]:
    """The finished trials in their order, without those whose score isn't finite."""
    scored = []
    for trial in trials:
        score = trial.scores.get(search.table.objective, math.nan)
        if trial.status == "finished" and math.isfinite(score):
            values = values_of(trial, search.space)
            scored.append(Scored(str(trial.n), score, trial.epochs, values))
    return scored


def comparable(trials: Sequence[Scored], search: SearchSpec) -> list[Scored]:
    """The trials whose scores may be compared: all, or those of one length if lengths differ.

    That is the number of epochs that most trials had, the larger one of two equally common:
    a search that trains good settings longer would otherwise mix how good a setting is with how
    long it was trained.
    """
    if not search.continues_trials or not trials:
        return list(trials)
    counts = Counter(trial.epochs or 0 for trial in trials)
    usual = max(counts, key=lambda epochs: (counts[epochs], epochs))
    return [trial for trial in trials if (trial.epochs or 0) == usual]


def effects_of(trials: Sequence[Scored], search: SearchSpec) -> list[Effect]:
    """The effect of each key that had several values, in falling order of what it explains.

    Eta squared is the between-group sum of squares over the total (Fisher, 1925); 0 if all scores
    are equal.
    """
    effects = []
    for dimension in search.space:
        having = [trial for trial in trials if dimension.key in trial.values]
        groups = _groups(dimension, having)
        if len(having) < MIN_TRIALS or len(groups) < 2:
            continue
        scores = np.array([trial.score for trial in having])
        within = sum(np.var(each) * len(each) for _, each in groups)
        total = float(np.var(scores) * len(scores))
        explained = max(1 - float(within) / total, 0.0) if total > 0 else 0.0
        by_chance = (len(groups) - 1) / (len(having) - 1)
        effects.append(Effect(dimension.key, explained, by_chance, groups))
    return sorted(effects, key=lambda effect: -effect.explained)


def _groups(dimension: Parameter, trials: Sequence[Scored]) -> list[tuple[str, list[float]]]:
    values = [trial.values[dimension.key] for trial in trials]
    if dimension.choices:
        order = dimension.choices
        return [
            (str(choice), [t.score for t in trials if t.values[dimension.key] == choice])
            for choice in order
            if choice in values
        ]
    groups = []
    numbers = [float(value) for value in values]
    bins = _bins(numbers)
    for own in sorted({*bins}):
        inside = [n for n, place in enumerate(bins) if place == own]
        ends = sorted({min(numbers[n] for n in inside), max(numbers[n] for n in inside)})
        label = " to ".join(f"{end:.3g}" for end in ends)
        groups.append((label, [trials[n].score for n in inside]))
    return groups


def _bins(values: Sequence[float]) -> list[int]:
    """The bin of each value: bins as equal as possible, with equal values in the same bin."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(counts) <= NUM_BINS:
        return [*places.tolist()]
    middles = np.cumsum(counts) - counts / 2
    return [*(NUM_BINS * middles / len(values)).astype(int)[places].tolist()]
