"""What the data show: differences between jobs over the same seeds, each in one sentence.

For each pair of jobs, the differences between their runs of the same seed give a paired t interval.
With several pairs the intervals are simultaneous, by Bonferroni's correction: with 95 % confidence
all of them hold at once. A job is called better only if its interval lies above 0, so sentence and
interval always agree.
"""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.collect import DatasetGroup, JobResult, t_margin

LEVEL = 0.95
NORMAL_95 = 1.959964  # half the width of a normal 95 % interval, in standard errors


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
        """Simultaneous 95 % interval; None if all differences are the same."""
        return self._interval(1 - (1 - LEVEL) / self.num_comparisons)

    @property
    def interval_alone(self) -> tuple[float, float] | None:
        """The 95 % interval of this pair, as if it were the only comparison."""
        return self._interval(LEVEL)

    @property
    def is_shown(self) -> bool:
        """Whether the data show that the first is better."""
        return self.interval is not None and self.interval[0] > 0

    def _interval(self, level: float) -> tuple[float, float] | None:
        margin = t_margin(self.points, level)
        return None if margin is None else (self.mean - margin, self.mean + margin)

    @property
    def sentence(self) -> str:
        """What the data show, or don't show."""
        first, second, num = self.first.name, self.second.name, len(self.points)
        if self.interval is None:
            how = f"{self.mean:.2f} points on each of {num} seeds, too alike for an interval"
            return f"{first} and {second} differ by {how}"
        low, high = self.interval
        figures = f"95 % interval {low:.2f} to {high:.2f}, over {num} seeds"
        if self.is_shown:
            return f"{first} is better than {second} by {self.mean:.2f} points, {figures}"
        return (
            f"not shown which of {first} and {second} is better: {first} is ahead by "
            f"{self.mean:.2f} points, {figures}"
        )


def differences(group: DatasetGroup) -> list[Difference]:
    """Every pair of jobs that share two seeds or more, the largest difference that is shown first.

    Only within one group, whose jobs were all tested on the same reviews.
    """
    pairs = []
    for one, other in itertools.combinations(group.results, 2):
        shared = [seed for seed in one.by_seed if seed in other.by_seed]
        if len(shared) < 2:
            continue
        points = [one.by_seed[seed] - other.by_seed[seed] for seed in shared]
        if statistics.fmean(points) < 0:
            one, other, points = other, one, [-each for each in points]
        pairs.append((one, other, tuple(points)))
    compared = [Difference(*pair, num_comparisons=len(pairs)) for pair in pairs]
    return sorted(compared, key=lambda each: (not each.is_shown, -each.mean))


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
    """One sentence that says whether a network beats a model.

    Args:
        tests: of each job against the model; may be empty.
        model: its name and accuracy.
    """
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


def sampling_margin(accuracy: float, num_reviews: int) -> float:
    """Half the width of the 95 % interval of an accuracy over other reviews of the same kind.

    By the normal approximation of the binomial distribution.

    Args:
        accuracy: per cent.
        num_reviews: in the test set.

    Returns:
        Points.
    """
    share = accuracy / 100
    return float(100 * NORMAL_95 * (share * (1 - share) / num_reviews) ** 0.5)


def explanations(group: DatasetGroup, compared: Sequence[Difference]) -> list[str]:
    """How to read the sentences, and what they can't say."""
    lines = []
    num_pairs = len(group.results) * (len(group.results) - 1) // 2
    if compared:
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
        margin = sampling_margin(best, group.num_test)
        lines.append(
            "All this is about seeds on one test set. On another "
            f"{group.num_test:,} reviews of the same kind, an accuracy of {best:.1f} % has a 95 % "
            f"interval of ± {margin:.2f} points (binomial)."
        )
    return lines
