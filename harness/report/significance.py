"""What the data show: differences between jobs over the same seeds, each in one sentence.

For each pair of jobs, the differences between their runs of the same seed give a paired t interval.
With several pairs the intervals are simultaneous, by Bonferroni's correction: with 95 % confidence
all of them hold at once. A job is called better only if its interval lies above 0, so sentence and
interval always agree.

Of many jobs the spread over the seeds is pooled: the few seeds of one pair would leave intervals
that say nothing. The intervals hold for all pairs together, also where only those with the best job
are shown: it was picked by the same data, and bounds for a best job that is given beforehand, such
as Dunnett's, would find differences between equal jobs in a quarter of all comparisons.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.report.collect import NO_SPREAD, DatasetGroup, JobResult, t_margin

LEVEL = 0.95
NORMAL_95 = 1.959964  # half the width of a normal 95 % interval, in standard errors
MAX_PAIRED = 12  # jobs, above which the spread is pooled
WIDEST = 100.0  # points: no two accuracies differ by more


@dataclass(frozen=True)
class Difference:
    """Two jobs over the seeds that both have; `first` has the higher mean over these."""

    first: JobResult
    second: JobResult
    points: tuple[float, ...]  # first minus second for each shared seed, points of accuracy
    num_comparisons: int  # made together

    @property
    def mean(self) -> float:
        """Mean difference in points, 0 or more."""
        return statistics.fmean(self.points)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Simultaneous 95 % interval; None if there is none that says anything."""
        return self._interval(1 - (1 - LEVEL) / self.num_comparisons)

    @property
    def interval_alone(self) -> tuple[float, float] | None:
        """The 95 % interval of this pair, as if it were the only comparison."""
        return self._interval(LEVEL)

    @property
    def is_shown(self) -> bool:
        """Whether the data show that the first is better."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def num_seeds(self) -> int:
        """The number of seeds that both have."""
        return len(self.points)

    def _interval(self, level: float) -> tuple[float, float] | None:
        margin = t_margin(self.points, level)
        return None if margin is None else _possible(self.mean - margin, self.mean + margin)

    @property
    def _why_none(self) -> str:
        if t_margin(self.points, LEVEL) is None:
            return f"the same on each of {self.num_seeds} seeds, too alike for an interval"
        return f"over {self.num_seeds} seeds, too few for an interval among so many comparisons"

    @property
    def sentence(self) -> str:
        """What the data show, or don't show."""
        first, second, num = self.first.name, self.second.name, self.num_seeds
        if self.interval is None:
            return f"{first} is ahead of {second} by {self.mean:.2f} points, {self._why_none}"
        low, high = self.interval
        figures = f"95 % interval {low:.2f} to {high:.2f}, over {num} seeds"
        if self.is_shown:
            return f"{first} is better than {second} by {self.mean:.2f} points, {figures}"
        return (
            f"not shown which of {first} and {second} is better: {first} is ahead by "
            f"{self.mean:.2f} points, {figures}"
        )


def _possible(low: float, high: float) -> tuple[float, float] | None:
    """An interval of a difference of accuracies, None if it is wider than any of these can be."""
    return (low, high) if high - low < 2 * WIDEST else None


@dataclass(frozen=True)
class PooledDifference(Difference):
    """Two jobs of many, each with the mean over its own seeds.

    The spread over the seeds is taken to be the same for all jobs. The seeds are not paired, and
    `points` holds the difference of the means.
    """

    deviation: float  # over the seeds, of all jobs together, in points
    dof: int  # of the deviation

    @property
    def num_seeds(self) -> int:
        """The seeds of the job that has fewer."""
        return min(len(self.first.runs), len(self.second.runs))

    def _interval(self, level: float) -> tuple[float, float] | None:
        from scipy.special import stdtrit  # a tenth of the time that scipy.stats takes

        if not self.dof or self.deviation < NO_SPREAD:
            return None
        scale = (1 / len(self.first.runs) + 1 / len(self.second.runs)) ** 0.5
        margin = float(stdtrit(self.dof, (1 + level) / 2)) * self.deviation * scale
        return _possible(self.mean - margin, self.mean + margin)

    @property
    def _why_none(self) -> str:
        if not self.dof:
            return "no spread over the seeds is known"
        if self.deviation < NO_SPREAD:
            return "the seeds of each job too alike for an interval"
        return "with too few seeds for an interval among so many comparisons"


def differences(group: DatasetGroup, *, all_pairs: bool = False) -> list[Difference]:
    """How the jobs differ, the largest difference that is shown first.

    Only within one group, whose jobs were all tested on the same reviews.

    Args:
        all_pairs: show every pair of more than `MAX_PAIRED` jobs, not only those with the best.
    """
    if len(group.results) > MAX_PAIRED:
        compared = _pooled(group, all_pairs=all_pairs)
    else:
        pairs = list(_pairs(group))
        compared = [Difference(*pair, num_comparisons=len(pairs)) for pair in pairs]
    return sorted(compared, key=lambda each: (not each.is_shown, -each.mean))


def _pairs(group: DatasetGroup) -> Iterator[tuple[JobResult, JobResult, tuple[float, ...]]]:
    """Each pair of jobs that share two seeds or more."""
    for one, other in itertools.combinations(group.results, 2):
        shared = [seed for seed in one.by_seed if seed in other.by_seed]
        if len(shared) < 2:
            continue
        points = [one.by_seed[seed] - other.by_seed[seed] for seed in shared]
        if statistics.fmean(points) < 0:
            one, other, points = other, one, [-each for each in points]
        yield one, other, tuple(points)


def _pooled(group: DatasetGroup, *, all_pairs: bool) -> list[Difference]:
    ranked = sorted(group.results, key=lambda each: -each.mean)
    dof = sum(len(each.runs) - 1 for each in ranked)
    squares = sum((len(each.runs) - 1) * (each.deviation or 0.0) ** 2 for each in ranked)
    deviation = (squares / dof) ** 0.5 if dof else 0.0
    num_pairs = math.comb(len(ranked), 2)
    pairs = itertools.combinations(ranked, 2)  # those with the best first
    return [
        PooledDifference(one, other, (one.mean - other.mean,), num_pairs, deviation, dof)
        for one, other in (pairs if all_pairs else itertools.islice(pairs, len(ranked) - 1))
    ]


@dataclass(frozen=True)
class PairedTest:
    """A job's runs against one fixed model on the same test reviews, by McNemar's exact test."""

    name: str  # the job's
    points: tuple[float, ...]  # of accuracy, each run minus the model
    p_values: tuple[float, ...]  # two-sided, for each run
    level: float  # below which all must lie, by Bonferroni for the number of jobs

    @property
    def mean(self) -> float:
        """Mean difference in points; below 0 the model is ahead."""
        return statistics.fmean(self.points)

    @property
    def is_better(self) -> bool:
        """Whether each run is better than the model beyond chance."""
        return min(self.points) > 0 and max(self.p_values) < self.level

    @property
    def is_worse(self) -> bool:
        """Whether each run is worse than the model beyond chance."""
        return max(self.points) < 0 and max(self.p_values) < self.level

    @property
    def is_shown(self) -> bool:
        """Whether each run differs from the model beyond chance, in the same direction."""
        return self.is_better or self.is_worse

    @property
    def figures(self) -> str:
        """The largest p-value, which decides, and what it has to be below."""
        largest, num = max(self.p_values), len(self.p_values)
        of = f"largest p of {num} seeds" if num > 1 else "p"
        p = f"{of} < 0.0001" if largest < 0.0001 else f"{of} = {largest:.4f}"
        return f"McNemar's exact test on the same reviews, {p}, level {self.level:.2g}"


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p-value of McNemar's exact test.

    Args:
        gained: reviews that only the first of two models predicts correctly.
        lost: reviews that only the second predicts correctly.
    """
    from scipy.special import bdtr  # a tenth of the time that scipy.stats takes

    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def verdict(tests: Sequence[PairedTest], model: str) -> str:
    """One sentence that says whether a network beats a model, given by its name and accuracy."""
    if not tests:
        return f"no run's predictions can be compared with {model} review by review"
    first, *others = sorted(tests, key=lambda each: (not each.is_better, -each.mean))
    points = f"{abs(first.mean):.2f} points"
    if first.is_better:
        also = [each.name for each in others if each.is_better]
        too = f"; so {'do' if len(also) > 1 else 'does'} {', '.join(also)}" if also else ""
        return f"{first.name} beats {model} by {points}, {first.figures}{too}"
    if all(each.is_worse for each in tests):
        how = f"{first.name} comes closest, {points} behind"
        return f"no network beats {model}: {how}, {first.figures}"
    where = "ahead" if first.mean > 0 else "behind"
    return (
        f"not shown that a network beats {model}: {first.name} is {points} {where}, {first.figures}"
    )


def sampling_interval(accuracy: float, num_reviews: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy over other reviews of the same kind, per cent.

    Wilson's (1927) for the binomial distribution: it says something of few reviews and near 100 %.

    Args:
        accuracy: per cent.
        num_reviews: in the test set.
    """
    share, extra = accuracy / 100, NORMAL_95**2 / num_reviews
    centre = (share + extra / 2) / (1 + extra)
    half = (extra * share * (1 - share) + extra**2 / 4) ** 0.5 / (1 + extra)
    return max(100 * (centre - half), 0.0), min(100 * (centre + half), 100.0)


def explanations(group: DatasetGroup, compared: Sequence[Difference]) -> list[str]:
    """How to read the sentences, and what they can't say."""
    lines = []
    num_pairs = len(group.results) * (len(group.results) - 1) // 2
    if any(isinstance(each, PooledDifference) for each in compared):
        shown = "" if len(compared) == num_pairs else "; those with the best job are shown"
        lines.append(
            f"t intervals with the spread over the seeds of all {len(group.results)} jobs, "
            f"widened until those of all {num_pairs:,} pairs hold together (Bonferroni){shown}."
        )
        num_pairs = len(compared)
    elif compared:
        count = len(compared)
        corrected = (
            f"{count} comparisons are made at once, so each interval is widened until all of them "
            "hold together (Bonferroni); name fewer runs for fewer comparisons"
            if count > 1
            else "one comparison is made"
        )
        lines.append(f"Paired t intervals over the seeds that both jobs have: {corrected}.")
    if left := num_pairs - len(compared):
        are = "pair shares" if left == 1 else "pairs share"
        lines.append(f"{left} {are} fewer than two seeds and can't be compared.")
    if group.num_test:
        best = max(result.mean for result in group.results)
        low, high = sampling_interval(best, group.num_test)
        lines.append(
            "All this is about seeds on one test set. On another "
            f"{group.num_test:,} reviews of the same kind, an accuracy of {best:.1f} % has a 95 % "
            f"interval of {low:.2f} to {high:.2f} % (binomial, Wilson's)."
        )
    return lines
