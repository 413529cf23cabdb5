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
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import CLASSES
from harness.report.baseline import Baseline
from harness.report.collect import NO_SPREAD, DatasetGroup, ScoredRun, t_margin
from harness.system.files import open_plain_file
from harness.system.lenient_json import number, read_json_lines, whole
from harness.tracking.run_dir import PREDICTIONS
from harness.training.metrics import checked

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


def differences(group: DatasetGroup) -> "pandas.DataFrame":
    """How the jobs differ, a row for each comparison, the largest difference that is shown first.

    Only within one group, whose jobs were all tested on the same reviews. Of more than
    `MAX_PAIRED` jobs each is compared with the best.

    Returns:
        `first` and `second`, the names of two jobs, the first with the higher mean over the seeds
        that are compared; `num_seeds` that both have; `mean`, accuracy of the first minus the
        second, 0 or more; `low` and `high`, its simultaneous 95 % interval; `low_alone` and
        `high_alone`, as if it were the only comparison; `is_shown`, whether the data show that the
        first is better; `sentence`, which says so. An interval that says nothing is NaN.
    """
    import pandas

    rows = _pooled(group) if len(group.jobs) > MAX_PAIRED else _paired(group)
    columns = {"mean": float, "error": float, "num_seeds": int, "dof": int}
    table = pandas.DataFrame([*rows], columns=["first", "second", *columns]).astype(columns)
    together = 1 - (1 - LEVEL) / max(_num_comparisons(group, table), 1)
    for level, suffix in ((together, ""), (LEVEL, "_alone")):
        margin = t_margin(table["error"], table["dof"], level)
        # An interval wider than any possible difference is useless.
        margin = np.where(margin < WIDEST, margin, np.nan)
        table[f"low{suffix}"], table[f"high{suffix}"] = (
            table["mean"] - margin,
            table["mean"] + margin,
        )
    table["is_shown"] = table["low"] > 0
    table["sentence"] = [*map(_sentence, table.itertuples())]
    return table.iloc[np.lexsort((-table["mean"].round(9), ~table["is_shown"]))]


def _num_comparisons(group: DatasetGroup, compared: "pandas.DataFrame") -> int:
    """How many intervals hold together; of many jobs all pairs, since the data picked the best."""
    num_jobs = len(group.jobs)
    return math.comb(num_jobs, 2) if num_jobs > MAX_PAIRED else len(compared)


def _paired(group: DatasetGroup) -> Iterator[tuple[str, str, float, float, int, int]]:
    """Each pair of jobs that share two seeds or more, with the standard error of its mean."""
    accuracies = group.by_seed["accuracy"].unstack("job")
    for one, other in itertools.combinations(group.jobs.index, 2):
        points = (accuracies[one] - accuracies[other]).dropna()
        if (num := len(points)) > 1:
            mean, error = points.mean(), points.sem()
            names = (one, other) if round(mean, 9) >= 0 else (other, one)
            yield *names, abs(mean), error, num, num - 1


def _pooled(group: DatasetGroup) -> Iterator[tuple[str, str, float, float, int, int]]:
    """The best job with each other one, with the spread over the seeds of all jobs."""
    jobs = group.jobs.sort_values("accuracy", ascending=False, kind="stable")
    dofs = jobs["num_seeds"] - 1
    dof = int(dofs.sum())
    deviation = float((dofs * jobs["deviation"] ** 2).sum() / max(dof, 1)) ** 0.5
    rows = zip(jobs.index, jobs["accuracy"].tolist(), jobs["num_seeds"].tolist(), strict=True)
    one, ahead, num_one = next(rows)
    for other, behind, num in rows:
        error = deviation * (1 / num_one + 1 / num) ** 0.5
        yield one, other, ahead - behind, error, min(num_one, num), dof


def _sentence(row: Any) -> str:
    """What the data show of a comparison, or don't show."""
    by, over = f"by {100 * row.mean:.2f} points", f"over {row.num_seeds} seeds"
    if math.isnan(row.low):
        is_alike = row.dof and row.error < NO_SPREAD
        why = "too alike" if is_alike else "too few among so many comparisons"
        return f"{row.first} is ahead of {row.second} {by}, {over}, {why} for an interval"
    what = f"{row.first} is better than {row.second}"
    if not row.is_shown:
        what = f"not shown which of {row.first} and {row.second} is better: {row.first} is ahead"
    return f"{what} {by}, 95 % interval {100 * row.low:.2f} to {100 * row.high:.2f}, {over}"


def explanations(group: DatasetGroup, compared: "pandas.DataFrame") -> list[str]:
    """How to read the sentences of `differences`, and what they can't say."""
    lines, num_pairs = [], math.comb(len(group.runs), 2)
    is_pooled = len(group.jobs) > MAX_PAIRED
    if len(compared):
        spread = "with the spread over the seeds of all jobs" if is_pooled else "paired over seeds"
        lines.append(
            f"t intervals, {spread}. Comparisons at once: {_num_comparisons(group, compared):,}; "
            "all of their intervals hold together (Bonferroni), so fewer jobs give narrower ones."
        )
    if not is_pooled and (left := num_pairs - len(compared)):
        lines.append(f"Pairs that share fewer than two seeds and can't be compared: {left}.")
    if group.num_test:
        from scipy.stats import binomtest

        best = float(group.jobs["accuracy"].max())
        test = binomtest(round(best * group.num_test), group.num_test)
        # Wilson's (1927) also holds for few reviews and near 100 %.
        low, high = test.proportion_ci(LEVEL, method="wilson")
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
    classes: tuple[str, ...]  # of the labels


def read_predictions(group: DatasetGroup, say: Callable[[str], None]) -> Predictions | None:
    """Read `predictions.npz` of each run; None if no run has a valid one.

    A run whose file is missing, broken or of other reviews is reported and left out of all plots
    of predictions; its scores stay in the tables.
    """
    labels: Ints | None = None
    by_job: dict[str, list[Floats]] = {}
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
            by_job.setdefault(name, []).append(probabilities)
    if labels is None:
        return None
    unnamed = CLASSES if num_classes == 2 else tuple(map(str, range(num_classes)))
    return Predictions(
        labels,
        {name: np.stack(of_runs) for name, of_runs in by_job.items()},
        # The first run that records names decides.
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
        labels, given = arrays["labels"], arrays["probabilities"]
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError("a probability is outside of 0 to 1")
    return checked(labels, given)


# Against a linear model, review by review


def tests_against(baseline: Baseline, predictions: Predictions | None) -> "pandas.DataFrame":
    """McNemar's exact test of each job's runs against one fixed model on the same test reviews.

    Returns:
        By the job's name, for each that has predictions: `points`, the mean accuracy of its runs
        minus the model's; `p`, the largest two-sided p-value of its runs; `shows`, 1 if each run is
        better than the model beyond chance, -1 if each is worse, else 0. No row without
        predictions, or if their labels are not those of the model.
    """
    import pandas
    from scipy.stats import binom

    rows = {}
    if predictions and len(baseline.predicted) == len(predictions.labels):
        of_model = np.equal(baseline.predicted, predictions.labels)
        is_same = abs(of_model.mean() - baseline.accuracy) <= TOLERANCE
        for name, probabilities in predictions.by_job.items() if is_same else ():
            of_runs = probabilities.argmax(axis=2) == predictions.labels
            gained = (of_runs & ~of_model).sum(axis=1)
            lost = (~of_runs & of_model).sum(axis=1)
            p = np.minimum(1, 2 * binom.cdf(np.minimum(gained, lost), gained + lost, 0.5)).max()
            signs = np.sign(gained - lost)
            is_shown = p < _level(predictions.by_job) and (signs == signs[0]).all()
            points = (gained - lost).mean() / len(of_model)
            rows[name] = (points, p, signs[0] if is_shown else 0)
    return pandas.DataFrame.from_dict(rows, orient="index", columns=["points", "p", "shows"])


def _level(jobs: Sized) -> float:
    """Below which a p-value is beyond chance, by Bonferroni for the number of jobs."""
    return (1 - LEVEL) / len(jobs)


def verdict(tests: "pandas.DataFrame", model: str) -> str:
    """One sentence that says whether a network beats a model, given by its name and accuracy."""
    if tests.empty:
        return f"no run's predictions can be compared with {model} review by review"
    is_better = tests["shows"] > 0
    first = tests[is_better if is_better.any() else slice(None)].nlargest(1, "points").iloc[0]
    side = "ahead" if first["points"] > 0 else "behind"
    where = f"{first.name} is {abs(100 * first['points']):.2f} points {side}"
    if is_better.any():
        said = f"better than {model}: {', '.join(tests.index[is_better])}"
    elif (tests["shows"] < 0).all():
        said = f"no network beats {model}"
    else:
        said = f"not shown that a network beats {model}"
    p = f"largest p of its seeds {first['p']:.2g}, level {_level(tests):.2g}"
    return f"{said}; {where} (McNemar's exact test on the same reviews, {p})"


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
