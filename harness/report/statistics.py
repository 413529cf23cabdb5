"""Compares jobs statistically: their scores, predictions and epochs over several seeds.

For each pair of jobs, the differences between their runs of the same seed give a paired t interval.
With several pairs, Bonferroni's correction makes the intervals simultaneous: with 95 % confidence
all of them hold at once. The report says that a job is better than another job only if the interval
of their difference lies above 0, so the report's sentences never contradict its intervals.

With more than 12 jobs, each job is compared only with the best job. The spread over the seeds is
pooled over all jobs, because the few seeds of two jobs alone would give useless intervals.
Bonferroni's correction counts all pairs of jobs, not only the compared pairs, because the scores
decide which pairs are compared. Dunnett's intervals are not used, because they need a best job that
is known beforehand. A simulation compared fourteen equally good jobs many times: in 27 % of the
simulated reports, Dunnett's intervals wrongly called a job worse than the best job.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.report.baseline import Baseline
from harness.report.collect import DatasetGroup, ScoredRun, t_interval
from harness.system.console import echo
from harness.system.files import open_plain_file, sha256_of
from harness.system.lenient_json import number, read_json_lines, whole
from harness.tracking.run_dir import CHECKSUMS, PREDICTIONS, RESULT
from harness.training.metrics import checked

if TYPE_CHECKING:
    import pandas

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
MAX_PAIRED = 12  # up to this number of jobs, each pair of jobs is compared
BROKEN = (OSError, ValueError)  # the errors that `read_arrays` raises
NUM_TIMES = 6  # the number of accuracies in `times_to_accuracy`


# Differences between jobs


def differences(group: DatasetGroup, *, in_pairs: bool = False) -> "pandas.DataFrame":
    """Compare the jobs of a group, which were tested on the same reviews.

    With more than `MAX_PAIRED` jobs, each job is compared with the best job only, unless `in_pairs`
    is set.

    Returns:
        A table with a row per comparison. The rows with `is_shown` come before the other rows. Each
        of these two parts is sorted by `mean`, the largest first. The columns `first` and `second`
        are the names of two jobs, of which `first` has the higher mean accuracy over the compared
        seeds. The column `num_seeds` is the number of seeds that both jobs have; if each job is
        compared with the best job only, `num_seeds` is the smaller number of seeds of the two jobs.
        The column `mean` is the accuracy of the first job minus that of the second. The
        columns `low` and `high` are the simultaneous 95 % interval of `mean`, NaN if no useful
        interval exists. The column `is_shown` is true if the data show that the first job is
        better. The column `sentence` is the comparison in words.
    """
    import pandas

    rows = _pooled(group) if is_pooled(group, in_pairs=in_pairs) else _paired(group)
    columns = {"mean": float, "error": float, "num_seeds": int, "dof": int}
    table = pandas.DataFrame([*rows], columns=["first", "second", *columns]).astype(columns)
    level = 1 - (1 - LEVEL) / max(_num_comparisons(group, table), 1)
    low, high = t_interval(table["mean"], table["error"], table["dof"], level)
    # Accuracies differ by 1 at most, so an interval with a width of 2 or more is useless.
    table[["low", "high"]] = np.where(high - low < 2, [low, high], np.nan).T
    table["is_shown"] = table["low"] > 0
    table["sentence"] = [*map(_sentence, table.itertuples())]
    return table.iloc[np.lexsort((-table["mean"].round(9), ~table["is_shown"]))]


def is_pooled(group: DatasetGroup, *, in_pairs: bool) -> bool:
    """Whether each job is compared with the best job only."""
    return len(group.jobs) > MAX_PAIRED and not in_pairs


def _num_comparisons(group: DatasetGroup, compared: "pandas.DataFrame") -> int:
    """Return the number of comparisons for Bonferroni's correction.

    With more than `MAX_PAIRED` jobs, the correction counts all pairs of jobs, also those that are
    not compared.
    """
    num_jobs = len(group.jobs)
    return math.comb(num_jobs, 2) if num_jobs > MAX_PAIRED else len(compared)


def _paired(group: DatasetGroup) -> Iterator[tuple[str, str, float, float, int, int]]:
    """Yield a row for each pair of jobs with two or more common seeds.

    A row compares each run of one job with the run of the other job that has the same seed.
    """
    accuracies = group.by_seed["accuracy"].unstack("job")
    for one, other in itertools.combinations(group.jobs.index, 2):
        points = (accuracies[one] - accuracies[other]).dropna()
        if (num := len(points)) > 1:
            mean, error = points.mean(), points.sem()
            names = (one, other) if round(mean, 9) >= 0 else (other, one)
            yield *names, abs(mean), error, num, num - 1


def _pooled(group: DatasetGroup) -> Iterator[tuple[str, str, float, float, int, int]]:
    """Yield a row for each comparison of the best job with another job.

    The spread over the seeds is pooled over all jobs.
    """
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
    """Return a comparison in words."""
    by, over = f"by {100 * row.mean:.2f} points", f"over {row.num_seeds} seeds"
    is_tie = round(row.mean, 9) == 0
    if math.isnan(row.low):
        why = "too few seeds for so many comparisons, or the difference is the same at every seed"
        lead = f"{row.first} is ahead of {row.second} {by}"
        if is_tie:
            lead = f"the means of {row.first} and {row.second} are equal"
        return f"{lead}, {over}; no interval: {why}"
    what = f"{row.first} is better than {row.second} {by}"
    if not row.is_shown:
        unclear = f"the runs do not show which of {row.first} and {row.second} is better"
        lead = "; their means are equal" if is_tie else f", although {row.first} is ahead {by}"
        what = f"{unclear}{lead}"
    return f"{what}, 95 % interval {100 * row.low:.2f} to {100 * row.high:.2f}, {over}"


def explanations(
    group: DatasetGroup, compared: "pandas.DataFrame", *, in_pairs: bool = False
) -> list[str]:
    """Explain how to read the sentences of `differences`, and what the sentences do not show."""
    lines, num_pairs = [], math.comb(len(group.runs), 2)
    pooled = is_pooled(group, in_pairs=in_pairs)
    if len(compared):
        spread = "with a common standard deviation for all jobs" if pooled else "paired over seeds"
        lines.append(
            f"The intervals are t intervals, {spread}. Number of comparisons for Bonferroni's "
            f"correction: {_num_comparisons(group, compared):,}. The 95 % confidence holds for all "
            "intervals together, so comparing fewer jobs gives narrower intervals."
        )
    if not pooled and (left := num_pairs - len(compared)):
        lines.append(
            f"Pairs of jobs that can't be compared, as they share fewer than two seeds: {left}."
        )
    if (group.jobs["num_seeds"] < 2).all():
        lines.append("No job has two seeds, so there is no interval: train with --seeds 1-5.")
    return lines


# Predictions of reviews


@dataclass(frozen=True)
class Predictions:
    """The predictions of those runs of a group that have a valid file of predictions."""

    labels: Ints  # the index of each review's class, [num_reviews]
    # The probabilities `[num_seeds, num_reviews, num_classes]` for each row of the tables. The keys
    # are the names of the rows.
    by_job: Mapping[str, Floats]
    classes: tuple[str, ...]  # the names of the classes, in the order of the labels


def read_predictions(group: DatasetGroup) -> Predictions | None:
    """Read `predictions.npz` of each run; return None if no run has a valid file.

    Print a line for each run whose file is missing, broken or changed, or has other labels than the
    files of the other runs. The plots of predictions leave out a run without a valid
    `predictions.npz`; the tables contain the scores of all runs.
    """
    labels: Ints | None = None
    by_job: dict[str, list[Floats]] = {}
    for name, runs in group.runs.items():
        for run in runs:
            try:
                checksum = run.result.get(CHECKSUMS[PREDICTIONS])
                own_labels, probabilities = read_arrays(
                    run.folder / PREDICTIONS, len(group.classes), checksum
                )
                if labels is not None and not np.array_equal(own_labels, labels):
                    raise ValueError("the labels differ from those of the other runs")
            except BROKEN as error:
                reason = getattr(error, "strerror", None) or error
                echo(f"the predictions of {run.folder} are left out: {reason}", err=True)
                continue
            labels = own_labels
            by_job.setdefault(name, []).append(probabilities)
    if labels is None:
        return None
    stacked = {name: np.stack(of_runs) for name, of_runs in by_job.items()}
    return Predictions(labels, stacked, group.classes)


def read_arrays(path: Path, num_classes: int, checksum: Any = None) -> tuple[Ints, Floats]:
    """Read the labels `[num_reviews]` and the probabilities `[num_reviews, num_classes]` in a file.

    Args:
        path: the file.
        num_classes: the number of classes.
        checksum: the file's sha256 in `result.json`; None = don't check.

    Raises:
        BROKEN (a tuple of errors): if the file can't be read, has another checksum, or does not
            contain valid labels and probabilities of `num_classes` classes.
    """
    try:
        with open_plain_file(path) as file, np.load(file, allow_pickle=False) as arrays:
            labels, probabilities = checked(arrays["labels"], arrays["probabilities"])
    except OSError:
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds of errors for a broken file
        raise ValueError(f"{path.name} is broken: {error}") from None
    if checksum is not None and checksum != sha256_of(path):
        raise ValueError(f"{path.name} has changed, as its sha256 is not that in {RESULT}")
    shape, expected = probabilities.shape, (max(labels.size, 1), num_classes)
    if shape != expected:
        raise ValueError(f"{path.name} has the shape {shape}, but should have {expected}")
    return labels, probabilities


# Comparison with a linear model, review by review


def verdict(baseline: Baseline, predictions: Predictions | None) -> str:
    """Return a sentence that says which jobs, if any, are better than a linear model.

    McNemar's exact test compares each run with the linear model on the same reviews. A job is
    called better if each of its runs classifies significantly more reviews correctly than the
    linear model does. Bonferroni's correction divides the significance level by the number of jobs.
    """
    import pandas
    from scipy.stats import binom

    model = f"{baseline.name} ({baseline.accuracy:.2%})"
    if not predictions or len(baseline.predicted) != len(predictions.labels):
        return f"no run has predictions that can be compared with those of {model}"
    of_model = np.equal(baseline.predicted, predictions.labels)
    rows = {}
    for name, probabilities in predictions.by_job.items():
        of_runs = probabilities.argmax(axis=2) == predictions.labels
        gained, lost = (of_runs & ~of_model).sum(axis=1), (~of_runs & of_model).sum(axis=1)
        p = np.minimum(1, 2 * binom.cdf(np.minimum(gained, lost), gained + lost, 0.5))
        points = 100 * (gained - lost).mean() / len(of_model)
        rows[name] = {"points": points, "p": p.max(), "is_ahead": (gained > lost).all()}
    jobs = pandas.DataFrame.from_dict(rows, orient="index")
    level = (1 - LEVEL) / len(jobs)
    better = jobs[jobs["is_ahead"] & (jobs["p"] < level)]
    first = (jobs if better.empty else better).sort_values("points", kind="stable").iloc[-1]
    said = f"better than {model}: {', '.join(better.index)}"
    if better.empty:
        said = f"the runs do not show that any network is better than {model}"
    lead = "as often correct"
    if first["points"]:
        side = "ahead" if first["points"] > 0 else "behind"
        lead = f"{abs(first['points']):.2f} points {side}"
    return (
        f"{said}; {first.name} is {lead} (McNemar's exact test on the same reviews, largest "
        f"p-value over the seeds: {first['p']:.2g}, significance level: {level:.2g})"
    )


# Epochs


def epochs_of(runs: Sequence[ScoredRun]) -> "pandas.DataFrame":
    """Read the epochs of a job's runs: a row for each seed and epoch, NaN for an unknown number.

    The columns are `loss`, `val_accuracy`, and `seconds`: how long the run had trained and
    validated when the epoch ended.
    """
    import pandas

    keys, rows = ("loss", "val_accuracy", "seconds"), {}
    for run in runs:
        timings = read_json_lines(run.folder / "timings.jsonl")
        times = {whole(line.get("epoch")): line for line in timings}
        seconds = 0.0
        for line in read_json_lines(run.folder / "metrics.jsonl"):
            if (epoch := whole(line.get("epoch"))) is not None:
                took = times.get(epoch, {})
                training_s = number(took.get("epoch_s"))
                validation_s = number(took.get("validation_s")) or 0.0
                seconds += math.nan if training_s is None else training_s + validation_s
                rows[run.seed, epoch] = [*(number(line.get(key)) for key in keys[:2]), seconds]
    index = pandas.MultiIndex.from_tuples(rows, names=["seed", "epoch"])
    return pandas.DataFrame([*rows.values()], index, keys, dtype=float)


def times_to_accuracy(epochs: "Mapping[str, pandas.DataFrame]") -> "pandas.DataFrame":
    """Tabulate how many seconds each job trained until it reached some validation accuracies.

    The accuracies are evenly spaced between two limits. The lower limit is the lowest accuracy
    that a run had at the end of its first epoch. The upper limit is the highest accuracy that a job
    reached; a job reaches an accuracy when all its seeds have reached it.

    Args:
        epochs: the result of `epochs_of` for each job.

    Returns:
        A table of texts: a row for each job with known times, a column for each accuracy. A time is
        the mean over the seeds, or `never` if a seed did not reach the accuracy. The table is empty
        if no time is known.
    """
    import pandas

    known = pandas.concat(epochs, names=["job"]).dropna()
    of_seed = {"level": ["job", "seed"], "sort": False}
    best = known["val_accuracy"].groupby(**of_seed).cummax()
    ends = best.groupby(**of_seed).agg(["first", "last"])
    low, high = ends["first"].min(), ends["last"].groupby(level="job").min().max()
    steps = np.linspace(low, high, NUM_TIMES + 1)[1:] if low < high else np.empty(0)
    times = {}
    for level in (each for each in np.unique(np.floor(1000 * steps + 1e-6) / 1000) if each > low):
        reached = known["seconds"][best >= level].groupby(**of_seed).first().reindex(ends.index)
        means = reached.groupby(level="job", sort=False).mean(skipna=False)
        times[f"{100 * level:.1f} %"] = means.map("{:,.1f}".format).where(means.notna(), "never")
    return pandas.DataFrame(times).rename_axis("job").reset_index()
