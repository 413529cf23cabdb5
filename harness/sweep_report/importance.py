"""What mattered in a search: how the score depends on the values of each hyperparameter."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.search_parameters import Parameter, Value
from harness.search_space import SearchSpec, rounded
from harness.tuning.records import Trial

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
class Group:
    """The trials with equal or similar values of a key."""

    label: str  # `gru`, or `0.1 to 0.3`
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean score."""
        return statistics.fmean(self.scores)


@dataclass(frozen=True)
class Effect:
    """How the score depends on a key."""

    dimension: Parameter
    groups: tuple[Group, ...]  # in the order of the values, none empty
    num_trials: int

    @property
    def explained(self) -> float:
        """Eta squared, the share in 0..1 of the scores' variation that lies between the groups.

        Between-group sum of squares over total (Fisher, 1925); 0 if all scores are equal.
        """
        scores = [score for group in self.groups for score in group.scores]
        middle = statistics.fmean(scores)
        total = sum((score - middle) ** 2 for score in scores)
        between = sum(len(g.scores) * (g.mean - middle) ** 2 for g in self.groups)
        return min(between / total, 1.0) if total > 0 else 0.0

    @property
    def by_chance(self) -> float:
        """The expected eta squared of a key without effect: (k - 1) / (n - 1)."""
        return (len(self.groups) - 1) / (self.num_trials - 1)


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
    """The effect of each key that had several values, in falling order of what it explains."""
    effects = []
    for dimension in search.space:
        having = [trial for trial in trials if dimension.key in trial.values]
        groups = _groups(dimension, having)
        if len(having) >= MIN_TRIALS and len(groups) > 1:
            effects.append(Effect(dimension, tuple(groups), len(having)))
    return sorted(effects, key=lambda effect: -effect.explained)


def _groups(dimension: Parameter, trials: Sequence[Scored]) -> list[Group]:
    if dimension.choices:
        order = dimension.choices
        kinds = [order.index(trial.values[dimension.key]) for trial in trials]
    else:
        kinds = _bins([float(trial.values[dimension.key]) for trial in trials])
    return [
        _group([trial for trial, own in zip(trials, kinds, strict=True) if own == kind], dimension)
        for kind in sorted(set(kinds))
    ]


def _bins(values: Sequence[float]) -> list[int]:
    """The bin of each value: bins as equal as possible, with equal values in the same bin."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(counts) <= NUM_BINS:
        return [*places.tolist()]
    middles = np.cumsum(counts) - counts / 2
    return [*(NUM_BINS * middles / len(values)).astype(int)[places].tolist()]


def _group(trials: Sequence[Scored], dimension: Parameter) -> Group:
    values = [trial.values[dimension.key] for trial in trials]
    if dimension.choices:
        label = str(values[0])
    else:
        numbers = [float(value) for value in values]
        label = " to ".join(f"{end:.3g}" for end in sorted({min(numbers), max(numbers)}))
    return Group(label, tuple(trial.score for trial in trials))
