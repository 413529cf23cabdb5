"""The runs' predictions for each test review: curves over seeds, and the hardest reviews."""

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.files.lenient_json import number, read_json_lines, whole
from harness.files.plain_file import open_plain_file
from harness.report.collect import DatasetGroup, JobResult, ScoredRun
from harness.report.significance import LEVEL, NORMAL_95, Difference, PairedTest, mcnemar

Floats = NDArray[np.float64]

NUM_BINS = 10  # of probability, for the calibration
BROKEN = (
    *(OSError, ValueError, KeyError, EOFError, SyntaxError, RecursionError, MemoryError),
    *(zipfile.BadZipFile, zlib.error),
)
TOLERANCE = 1e-6  # of an accuracy, between a run's predictions and its result


@dataclass(frozen=True)
class Predictions:
    """The predictions of those runs of a group that have them."""

    labels: NDArray[np.int64]  # [num_reviews], 0 or 1, the same for all
    by_job: Mapping[str, Floats]  # by a result's name: [num_seeds, num_reviews], in 0..1
    seeds: Mapping[str, tuple[int, ...]]  # by a result's name, in the same order

    @property
    def means(self) -> Floats:
        """Mean probability for each review over a job's seeds, `[num_jobs, num_reviews]`."""
        return np.stack([each.mean(axis=0) for each in self.by_job.values()])

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether each run predicts each review correctly, `[num_runs, num_reviews]`."""
        return np.concatenate([self.is_correct_by(name) for name in self.by_job])

    def is_correct_by(self, name: str) -> NDArray[np.bool_]:
        """Whether each run of one result does, `[num_seeds, num_reviews]`."""
        return np.equal(self.by_job[name] > 0.5, self.labels)


def read_predictions(group: DatasetGroup, say: Callable[[str], None]) -> Predictions | None:
    """Read `predictions.npz` of each run; None if no run has a valid one.

    A run whose file is missing, broken or of other reviews is reported and left out of all plots
    of predictions; its scores stay in the tables.
    """
    labels: NDArray[np.int64] | None = None
    by_job: dict[str, Floats] = {}
    seeds: dict[str, tuple[int, ...]] = {}
    for result in group.results:
        by_seed: dict[int, Floats] = {}
        for run in result.runs:
            try:
                own_labels, probabilities = _read(run)
                if labels is not None and not np.array_equal(own_labels, labels):
                    raise ValueError("its labels are not those of the other runs")
            except BROKEN as error:
                reason = getattr(error, "strerror", None) or error
                say(f"no predictions of {run.folder}: {reason}")
                continue
            labels, by_seed[run.seed] = own_labels, probabilities
        if by_seed:
            by_job[result.name] = np.stack([*by_seed.values()])
            seeds[result.name] = tuple(by_seed)
    return None if labels is None else Predictions(labels, by_job, seeds)


def _read(run: ScoredRun) -> tuple[NDArray[np.int64], Floats]:
    with (
        open_plain_file(run.folder / "predictions.npz") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        labels = np.asarray(arrays["labels"]).astype(np.int64)
        probabilities = np.asarray(arrays["probabilities"], np.float64)
    if labels.ndim != 1 or labels.shape != probabilities.shape or not len(labels):
        raise ValueError(f"{labels.shape} labels for {probabilities.shape} probabilities")
    if not (np.isin(labels, (0, 1)).all() and ((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError("a label is neither 0 nor 1, or a probability outside of 0 to 1")
    accuracy = float(((probabilities > 0.5) == labels).mean())
    if abs(100 * accuracy - run.accuracy) > 100 * TOLERANCE:
        raise ValueError(
            f"their accuracy is {accuracy:.4f}, result.json says {run.accuracy / 100:.4f}"
        )
    return labels, probabilities


# Curves, each the mean over the seeds of a job


def mean_roc(labels: NDArray[np.int64], probabilities: Floats) -> tuple[Floats, Floats]:
    """The mean ROC curve: true positive rates averaged at the same false positive rates.

    Args:
        labels: [num_reviews], both classes.
        probabilities: [num_seeds, num_reviews].

    Returns:
        False and true positive rates, `[501]` both.
    """
    from sklearn.metrics import roc_curve

    # Denser where the curve bends.
    rates = np.linspace(0, 1, 501) ** 2
    curves = []
    for each in probabilities:
        false_rate, true_rate, _ = roc_curve(labels, each)
        curves.append(np.interp(rates, false_rate, true_rate))
    return rates, np.mean(curves, axis=0)


def calibration(labels: NDArray[np.int64], probabilities: Floats) -> tuple[Floats, Floats, float]:
    """Calibration over all seeds together, in ten equal bins without the empty ones.

    Returns:
        Mean probability and share of positive reviews of each bin; and the expected calibration
        error, their mean distance weighted by the number of reviews in a bin (Guo et al., 2017).
    """
    flat = probabilities.ravel()
    truth = np.tile(labels, len(probabilities))
    bins = np.minimum((flat * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    filled = counts > 0
    means = np.bincount(bins, flat, minlength=NUM_BINS)[filled] / counts[filled]
    shares = np.bincount(bins, truth, minlength=NUM_BINS)[filled] / counts[filled]
    error = float(np.abs(means - shares) @ counts[filled] / len(flat))
    return means, shares, error


def mean_confusion(labels: NDArray[np.int64], probabilities: Floats) -> Floats:
    """The confusion matrix [[tn, fp], [fn, tp]], counts averaged over the seeds."""
    predicted = probabilities > 0.5
    return np.array([
        [(predicted[:, labels == truth] == label).sum(axis=1).mean() for label in (0, 1)]
        for truth in (0, 1)
    ])  # fmt: skip


# Reviews


def wrong_by_all(predictions: Predictions) -> NDArray[np.int64]:
    """The reviews that every run gets wrong, the most confident mistakes first."""
    indices = np.flatnonzero(~predictions.is_correct.any(axis=0))
    distance = np.abs(predictions.means.mean(axis=0) - predictions.labels)[indices]
    return indices[np.argsort(-distance, kind="stable")].astype(np.int64)


def most_disputed(predictions: Predictions, num: int) -> NDArray[np.int64]:
    """The reviews for which the jobs' mean probabilities have the largest standard deviation."""
    spread = predictions.means.std(axis=0)
    return np.argsort(-spread, kind="stable")[:num].astype(np.int64)


def margin_over_reviews(difference: Difference, predictions: Predictions) -> float | None:
    """Half the 95 % interval of a difference over other reviews of the same kind, in points.

    For the same trained models: paired over the reviews, by the normal approximation. None if a
    run has no predictions.
    """
    shared = set(difference.first.by_seed) & set(difference.second.by_seed)
    means = []
    for result in (difference.first, difference.second):
        seeds = predictions.seeds.get(result.name, ())
        if not shared <= set(seeds):
            return None
        indices = [index for index, seed in enumerate(seeds) if seed in shared]
        means.append(predictions.is_correct_by(result.name)[indices].mean(axis=0))
    gain = means[0] - means[1]
    if len(gain) < 2:
        return None
    return float(100 * NORMAL_95 * gain.std(ddof=1) / len(gain) ** 0.5)


def tests_against(
    predicted: Sequence[int], accuracy: float, predictions: Predictions
) -> list[PairedTest]:
    """McNemar's exact test of each job's runs against one fixed model on the same reviews.

    Args:
        predicted: the model's label for each review, `[num_reviews]`.
        accuracy: the model's, per cent.
        predictions: those of the runs.

    Returns:
        One for each job that has predictions; none if the labels are not those of the model.
    """
    if len(predicted) != len(predictions.labels):
        return []
    of_model = np.equal(predicted, predictions.labels)
    if abs(100 * of_model.mean() - accuracy) > 100 * TOLERANCE:
        return []
    level = (1 - LEVEL) / len(predictions.by_job)
    tests = []
    for name in predictions.by_job:
        of_runs = predictions.is_correct_by(name)
        gained = (of_runs & ~of_model).sum(axis=1)
        lost = (~of_runs & of_model).sum(axis=1)
        points = tuple((100 * (gained - lost) / len(of_model)).tolist())
        p_values = tuple(map(mcnemar, gained.tolist(), lost.tolist()))
        tests.append(PairedTest(name, points, p_values, level))
    return tests


# Epochs


def epochs_of(result: JobResult, key: str) -> dict[int, list[float]]:
    """A number of `metrics.jsonl` by epoch, for every seed that has it."""
    by_epoch: dict[int, list[float]] = {}
    for run in result.runs:
        for line in read_json_lines(run.folder / "metrics.jsonl"):
            epoch, value = whole(line.get("epoch")), number(line.get(key))
            if epoch is not None and value is not None:
                by_epoch.setdefault(epoch, []).append(value)
    return dict(sorted(by_epoch.items()))
