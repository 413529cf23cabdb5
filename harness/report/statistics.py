"""What the data show: scores, predictions and epochs of jobs over their seeds.

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
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import CLASSES, by_class
from harness.report.baseline import Baseline
from harness.report.collect import NO_SPREAD, DatasetGroup, ScoredRun, t_margin
from harness.system.files import open_plain_file
from harness.system.lenient_json import number, read_json_lines, whole
from harness.tracking.run_dir import PREDICTIONS

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
MAX_PAIRED = 12  # jobs, above which the spread is pooled
WIDEST = 1.0  # no two accuracies differ by more
# RuntimeError: an archive with a password or an unknown compression. TypeError: a lone array.
BROKEN = (
    *(OSError, ValueError, KeyError, EOFError, SyntaxError, RuntimeError, MemoryError, TypeError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
TOLERANCE = 1e-6  # of an accuracy, between a run's predictions and its result


# Differences between jobs


@dataclass(frozen=True)
class Difference:
    """Two jobs by their names; `first` has the higher mean over the seeds that are compared."""

    first: str
    second: str
    points: tuple[float, ...]  # first minus second, for each shared seed or of the means
    num_seeds: int  # that both have; of a pooled one those of the job that has fewer
    mean: float  # of the points, 0 or more
    interval: tuple[float, float] | None  # simultaneous, 95 %; None if it says nothing
    interval_alone: tuple[float, float] | None  # as if it were the only comparison
    num_comparisons: int  # made together
    is_pooled: bool  # whether the spread is that of all jobs, and the seeds are not paired
    is_shown: bool  # whether the data show that the first is better
    sentence: str  # what the data show, or don't show


def differences(group: DatasetGroup) -> list[Difference]:
    """How the jobs differ, the largest difference that is shown first.

    Only within one group, whose jobs were all tested on the same reviews. Of more than
    `MAX_PAIRED` jobs each is compared with the best.
    """
    if len(group.jobs) > MAX_PAIRED:
        compared = [*_pooled(group)]
    else:
        pairs = [*_pairs(group)]
        compared = [
            _difference(*names, points, len(points), error, len(points) - 1, len(pairs))
            for names, points, error in pairs
        ]
    return sorted(compared, key=lambda each: (not each.is_shown, -round(each.mean, 9)))


def _pairs(group: DatasetGroup) -> Iterator[tuple[tuple[str, str], tuple[float, ...], float]]:
    """Each pair of jobs that share two seeds or more: points, and standard error of their mean."""
    accuracies = group.by_seed["accuracy"].unstack("job")
    for one, other in itertools.combinations(group.jobs.index, 2):
        points = (accuracies[one] - accuracies[other]).dropna()
        if len(points) > 1:
            names = (one, other) if round(points.mean(), 9) >= 0 else (other, one)
            yield names, (*(points if names[0] == one else -points),), float(points.sem())


def _pooled(group: DatasetGroup) -> Iterator[Difference]:
    jobs = group.jobs.sort_values("accuracy", ascending=False, kind="stable")
    dofs, num_pairs = jobs["num_seeds"] - 1, math.comb(len(jobs), 2)
    dof = int(dofs.sum())
    deviation = float((dofs * jobs["deviation"] ** 2).sum() / max(dof, 1)) ** 0.5
    rows = zip(jobs.index, jobs["accuracy"].tolist(), jobs["num_seeds"].tolist(), strict=True)
    one, ahead, num_one = next(rows)
    for other, behind, num_other in rows:
        error = deviation * (1 / num_one + 1 / num_other) ** 0.5
        points, num_seeds = (ahead - behind,), min(num_one, num_other)
        yield _difference(one, other, points, num_seeds, error, dof, num_pairs, is_pooled=True)


def _difference(
    first: str,
    second: str,
    points: tuple[float, ...],
    num_seeds: int,
    error: float,
    dof: int,
    num_comparisons: int,
    *,
    is_pooled: bool = False,
) -> Difference:
    """A difference with its intervals, from the standard error of its mean."""
    mean = max(statistics.fmean(points), 0.0)
    # An interval wider than all differences that there can be says nothing.
    alone, interval = (
        (mean - margin, mean + margin)
        if (margin := float(t_margin(error, dof, level))) < WIDEST
        else None
        for level in (LEVEL, 1 - (1 - LEVEL) / num_comparisons)
    )
    is_shown = interval is not None and interval[0] > 0
    by, over = f"by {100 * mean:.2f} points", f"over {num_seeds} seeds"
    if interval is None:
        is_alike = dof and error < NO_SPREAD
        why = "too alike" if is_alike else "too few among so many comparisons"
        sentence = f"{first} is ahead of {second} {by}, {over}, {why} for an interval"
    else:
        what = f"not shown which of {first} and {second} is better: {first} is ahead"
        what = f"{first} is better than {second}" if is_shown else what
        low, high = (100 * end for end in interval)
        sentence = f"{what} {by}, 95 % interval {low:.2f} to {high:.2f}, {over}"
    about = num_comparisons, is_pooled, is_shown, sentence
    return Difference(first, second, points, num_seeds, mean, interval, alone, *about)


def sampling_interval(accuracy: float, num_reviews: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy over other reviews of the same kind.

    Wilson's (1927) for the binomial distribution: it says something of few reviews and near 100 %.

    Args:
        accuracy: from 0 to 1.
        num_reviews: in the test set.
    """
    from scipy.stats import binomtest

    test = binomtest(round(accuracy * num_reviews), num_reviews)
    low, high = test.proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def explanations(group: DatasetGroup, compared: Sequence[Difference]) -> list[str]:
    """How to read the sentences, and what they can't say."""
    lines, num_pairs = [], math.comb(len(group.runs), 2)
    is_pooled = any(each.is_pooled for each in compared)
    if compared:
        spread = "with the spread over the seeds of all jobs" if is_pooled else "paired over seeds"
        lines.append(
            f"t intervals, {spread}. Comparisons at once: {compared[0].num_comparisons:,}; all of "
            "their intervals hold together (Bonferroni), so fewer jobs give narrower ones."
        )
    if not is_pooled and (left := num_pairs - len(compared)):
        lines.append(f"Pairs that share fewer than two seeds and can't be compared: {left}.")
    if group.num_test:
        best = float(group.jobs["accuracy"].max())
        low, high = sampling_interval(best, group.num_test)
        lines.append(
            "All this is about seeds on one test set. On another "
            f"{group.num_test:,} reviews of the same kind, an accuracy of {best:.1%} has a 95 % "
            f"interval of {low:.2%} to {high:.2%} (binomial, Wilson's)."
        )
    return lines


# Predictions of reviews


@dataclass(frozen=True)
class Predictions:
    """The predictions of those runs of a group that have them."""

    labels: Ints  # [num_reviews], from 0, the same for all
    by_job: Mapping[str, Floats]  # by a row's name: [num_seeds, num_reviews, num_classes]
    seeds: Mapping[str, tuple[int, ...]]  # by a row's name, in the same order
    classes: tuple[str, ...]  # of the labels

    def is_correct_by(self, name: str) -> NDArray[np.bool_]:
        """Whether each run of one row does, `[num_seeds, num_reviews]`."""
        correct: NDArray[np.bool_] = np.equal(self.by_job[name].argmax(axis=2), self.labels)
        return correct


def read_predictions(group: DatasetGroup, say: Callable[[str], None]) -> Predictions | None:
    """Read `predictions.npz` of each run; None if no run has a valid one.

    A run whose file is missing, broken or of other reviews is reported and left out of all plots
    of predictions; its scores stay in the tables.
    """
    labels: Ints | None = None
    by_job: dict[str, dict[int, Floats]] = {}
    num_classes = 0
    for name, runs in group.runs.items():
        for run in runs:
            try:
                own_labels, probabilities = read_own(run)
                if labels is not None and not np.array_equal(own_labels, labels):
                    raise ValueError("its labels are not those of the other runs")
                if num_classes and probabilities.shape[1] != num_classes:
                    raise ValueError("it tells other classes apart than the other runs")
            except BROKEN as error:
                reason = getattr(error, "strerror", None) or error
                say(f"no predictions of {run.folder}: {reason}")
                continue
            labels, num_classes = own_labels, probabilities.shape[1]
            by_job.setdefault(name, {})[run.seed] = probabilities
    if labels is None:
        return None
    unnamed = CLASSES if num_classes == 2 else tuple(map(str, range(num_classes)))
    return Predictions(
        labels,
        {name: np.stack([*by_seed.values()]) for name, by_seed in by_job.items()},
        {name: tuple(by_seed) for name, by_seed in by_job.items()},
        # The names are those of the first run that has them.
        next((names for names in group.classes if len(names) == num_classes), unnamed),
    )


def read_own(run: ScoredRun) -> tuple[Ints, Floats]:
    """The labels of the test reviews and a run's probabilities, as `read_arrays` gives them.

    Raises:
        BROKEN: if the file can't be read, or its accuracy is not that of the run's result.
    """
    labels, probabilities = read_arrays(run.folder / PREDICTIONS)
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    if abs(accuracy - run.accuracy) > TOLERANCE:
        raise ValueError(f"their accuracy is {accuracy:.4f}, result.json says {run.accuracy:.4f}")
    return labels, probabilities


def read_arrays(path: Path) -> tuple[Ints, Floats]:
    """The labels `[num_reviews]` and the probabilities `[num_reviews, num_classes]` of a file.

    Raises:
        BROKEN: if it can't be read, or holds something else.
    """
    with open_plain_file(path) as file, np.load(file, allow_pickle=False) as arrays:
        labels = np.asarray(arrays["labels"]).astype(np.int64)
        given = np.asarray(arrays["probabilities"], np.float64)
    if labels.ndim != 1 or given.ndim not in (1, 2) or len(labels) != len(given) or not len(labels):
        raise ValueError(f"{labels.shape} labels for {given.shape} probabilities")
    probabilities = by_class(given)
    num_classes = probabilities.shape[1]
    if not ((labels >= 0) & (labels < num_classes)).all():
        raise ValueError(f"a label is outside of 0 to {num_classes - 1}")
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError("a probability is outside of 0 to 1")
    return labels, probabilities


# Against a linear model, review by review


@dataclass(frozen=True)
class PairedTest:
    """A job's runs against one fixed model on the same test reviews, by McNemar's exact test."""

    name: str  # the job's
    points: tuple[float, ...]  # of accuracy, each run minus the model
    p_values: tuple[float, ...]  # two-sided, for each run
    level: float  # below which all must lie, by Bonferroni for the number of jobs

    @property
    def mean(self) -> float:
        """Mean difference of accuracy; below 0 the model is ahead."""
        return statistics.fmean(self.points)

    def shows(self, sign: int) -> bool:
        """Whether each run is better (1) or worse (-1) than the model beyond chance."""
        return min(sign * each for each in self.points) > 0 and max(self.p_values) < self.level


def verdict(tests: Sequence[PairedTest], model: str) -> str:
    """One sentence that says whether a network beats a model, given by its name and accuracy."""
    if not tests:
        return f"no run's predictions can be compared with {model} review by review"
    first = min(tests, key=lambda each: (not each.shows(1), -each.mean))
    side = "ahead" if first.mean > 0 else "behind"
    where = f"{first.name} is {abs(100 * first.mean):.2f} points {side}"
    if first.shows(1):
        said = f"better than {model}: {', '.join(each.name for each in tests if each.shows(1))}"
    elif all(each.shows(-1) for each in tests):
        said = f"no network beats {model}"
    else:
        said = f"not shown that a network beats {model}"
    p = f"largest p of its seeds {max(first.p_values):.2g}, level {first.level:.2g}"
    return f"{said}; {where} (McNemar's exact test on the same reviews, {p})"


def tests_against(baseline: Baseline, predictions: Predictions) -> list[PairedTest]:
    """McNemar's exact test of each job's runs against one fixed model on the same reviews.

    Returns:
        One for each job that has predictions; none if the labels are not those of the model.
    """
    from scipy.special import bdtr  # a tenth of the time that scipy.stats takes

    if len(baseline.predicted) != len(predictions.labels):
        return []
    of_model = np.equal(baseline.predicted, predictions.labels)
    if abs(of_model.mean() - baseline.accuracy) > TOLERANCE:
        return []
    level = (1 - LEVEL) / len(predictions.by_job)
    tests = []
    for name in predictions.by_job:
        of_runs = predictions.is_correct_by(name)
        gained = (of_runs & ~of_model).sum(axis=1)
        lost = (~of_runs & of_model).sum(axis=1)
        p_values = np.minimum(1.0, 2 * bdtr(np.minimum(gained, lost), gained + lost, 0.5))
        points = (gained - lost) / len(of_model)
        tests.append(PairedTest(name, tuple(points.tolist()), tuple(p_values.tolist()), level))
    return tests


# Epochs


def epochs_of(runs: Sequence[ScoredRun]) -> "pandas.DataFrame":
    """The epochs of a job's runs by seed and epoch, NaN where a number is not known.

    `loss`; `val_accuracy` and `best`, the highest up to then; `seconds` of training,
    validation included, from the start to the end of the epoch. These two are known only of a run
    that recorded accuracy and time of each epoch.
    """
    import pandas

    found = {}
    for run in runs:
        epochs = _numbers(run.folder / "metrics.jsonl", "loss", "val_accuracy")
        took = _numbers(run.folder / "timings.jsonl", "epoch_s", "validation_s")
        epochs["seconds"] = took["epoch_s"] + took["validation_s"].fillna(0.0)
        timed = epochs.dropna(subset=["val_accuracy", "seconds"])
        is_whole = [*timed.index] == [*range(1, len(timed) + 1)]
        epochs["seconds"] = timed["seconds"].cumsum() if is_whole else np.nan
        epochs["best"] = timed["val_accuracy"].cummax() if is_whole else np.nan
        found[run.seed] = epochs
    return pandas.concat(found, names=["seed", "epoch"])


def _numbers(path: Path, *keys: str) -> "pandas.DataFrame":
    """Some numbers of a file of JSON lines, by epoch."""
    import pandas

    lines = read_json_lines(path)
    by_epoch = {
        epoch: [number(line.get(key)) for key in keys]
        for line in lines
        if (epoch := whole(line.get("epoch"))) is not None
    }
    return pandas.DataFrame([*by_epoch.values()], [*by_epoch], [*keys], dtype=float).sort_index()
