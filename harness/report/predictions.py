"""The runs' predictions for each test review: curves over seeds, and the hardest reviews."""

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import CLASSES, by_class
from harness.files.lenient_json import number, read_json_lines, whole
from harness.files.plain_file import open_plain_file
from harness.report.collect import DatasetGroup, JobResult, ScoredRun, mean_of_all
from harness.report.significance import (
    LEVEL,
    NORMAL_95,
    Difference,
    PairedTest,
    PooledDifference,
    mcnemar,
)
from harness.tracking.run_dir import PREDICTIONS
from harness.training.pictures import mean_roc_curve

Floats = NDArray[np.float64]

NUM_BINS = 10  # of probability, for the calibration
NUM_LEVELS = 5  # of validation accuracy, whose times are told
# RuntimeError: an archive with a password or an unknown compression. TypeError: a lone array.
BROKEN = (
    *(OSError, ValueError, KeyError, EOFError, SyntaxError, RuntimeError, MemoryError, TypeError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
TOLERANCE = 1e-6  # of an accuracy, between a run's predictions and its result


@dataclass(frozen=True)
class Predictions:
    """The predictions of those runs of a group that have them."""

    labels: NDArray[np.int64]  # [num_reviews], from 0, the same for all
    by_job: Mapping[str, Floats]  # by a result's name: [num_seeds, num_reviews, num_classes]
    seeds: Mapping[str, tuple[int, ...]]  # by a result's name, in the same order

    classes: tuple[str, ...]  # of the labels

    @property
    def of_truth(self) -> Floats:
        """Mean probability of each review's own class over a job's seeds, `[jobs, reviews]`."""
        reviews = np.arange(len(self.labels))
        return np.stack(
            [each[:, reviews, self.labels].mean(axis=0) for each in self.by_job.values()]
        )

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether each run predicts each review correctly, `[num_runs, num_reviews]`."""
        return np.concatenate([self.is_correct_by(name) for name in self.by_job])

    def is_correct_by(self, name: str) -> NDArray[np.bool_]:
        """Whether each run of one result does, `[num_seeds, num_reviews]`."""
        correct: NDArray[np.bool_] = np.equal(self.by_job[name].argmax(axis=2), self.labels)
        return correct


def read_predictions(group: DatasetGroup, say: Callable[[str], None]) -> Predictions | None:
    """Read `predictions.npz` of each run; None if no run has a valid one.

    A run whose file is missing, broken or of other reviews is reported and left out of all plots
    of predictions; its scores stay in the tables.
    """
    labels: NDArray[np.int64] | None = None
    by_job: dict[str, Floats] = {}
    seeds: dict[str, tuple[int, ...]] = {}
    num_classes = 0
    for result in group.results:
        by_seed: dict[int, Floats] = {}
        for run in result.runs:
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
            labels, by_seed[run.seed] = own_labels, probabilities
            num_classes = probabilities.shape[1]
        if by_seed:
            by_job[result.name] = np.stack([*by_seed.values()])
            seeds[result.name] = tuple(by_seed)
    if labels is None:
        return None
    return Predictions(labels, by_job, seeds, class_names(group, num_classes))


def class_names(group: DatasetGroup, num_classes: int) -> tuple[str, ...]:
    """The names of the labels, from the first run that has them."""
    for result in group.results:
        for run in result.runs:
            names = run.result.get("classes")
            if isinstance(names, list) and len(names) == num_classes:
                return tuple(map(str, names))
    return CLASSES if num_classes == 2 else tuple(map(str, range(num_classes)))


def read_own(run: ScoredRun) -> tuple[NDArray[np.int64], Floats]:
    """The labels of the test reviews and a run's probabilities, as `read_arrays` gives them.

    Raises:
        BROKEN: if the file can't be read, or its accuracy is not that of the run's result.
    """
    labels, probabilities = read_arrays(run.folder / PREDICTIONS)
    accuracy = float((probabilities.argmax(axis=1) == labels).mean())
    if abs(100 * accuracy - run.accuracy) > 100 * TOLERANCE:
        raise ValueError(
            f"their accuracy is {accuracy:.4f}, result.json says {run.accuracy / 100:.4f}"
        )
    return labels, probabilities


def read_arrays(path: Path) -> tuple[NDArray[np.int64], Floats]:
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


# Curves, each the mean over the seeds of a job


def mean_roc(labels: NDArray[np.int64], probabilities: Floats) -> tuple[Floats, Floats]:
    """The mean ROC curve: true positive rates averaged at the same false positive rates.

    Args:
        labels: [num_reviews], two classes at least.
        probabilities: [num_seeds, num_reviews, num_classes]; of more than two classes each against
            the rest.

    Returns:
        False and true positive rates, `[501]` both.
    """
    curves = [mean_roc_curve(labels, each) for each in probabilities]
    return curves[0][0], np.mean([rates for _, rates in curves], axis=0)


def calibration(labels: NDArray[np.int64], probabilities: Floats) -> tuple[Floats, Floats, float]:
    """Calibration over all seeds together, in ten equal bins without the empty ones.

    Of two classes by the probability of label 1; of more by that of the predicted class, which is
    compared with how often the prediction is correct.

    Args:
        labels: [num_reviews].
        probabilities: [num_seeds, num_reviews, num_classes].

    Returns:
        Mean probability and share of positive reviews, or of correct predictions, of each bin; and
        the expected calibration error, their mean distance weighted by the number of reviews in a
        bin (Guo et al., 2017).
    """
    if probabilities.shape[2] == 2:
        flat, truth = probabilities[:, :, 1].ravel(), np.tile(labels, len(probabilities))
    else:
        flat = probabilities.max(axis=2).ravel()
        truth = (probabilities.argmax(axis=2) == labels).ravel().astype(np.int64)
    bins = np.minimum((flat * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    filled = counts > 0
    means = np.bincount(bins, flat, minlength=NUM_BINS)[filled] / counts[filled]
    shares = np.bincount(bins, truth, minlength=NUM_BINS)[filled] / counts[filled]
    error = float(np.abs(means - shares) @ counts[filled] / len(flat))
    return means, shares, error


def mean_confusion(labels: NDArray[np.int64], probabilities: Floats) -> Floats:
    """The confusion matrix, a row for each label, counts averaged over the seeds.

    Args:
        labels: [num_reviews].
        probabilities: [num_seeds, num_reviews, num_classes].
    """
    counts = np.zeros((probabilities.shape[2],) * 2)
    for predicted in probabilities.argmax(axis=2):
        np.add.at(counts, (labels, predicted), 1)
    return counts / len(probabilities)


# Reviews


def wrong_by_all(predictions: Predictions) -> NDArray[np.int64]:
    """The reviews that every run gets wrong, the most confident mistakes first."""
    indices = np.flatnonzero(~predictions.is_correct.any(axis=0))
    of_truth = predictions.of_truth.mean(axis=0)[indices]
    return indices[np.argsort(of_truth, kind="stable")].astype(np.int64)


def most_disputed(predictions: Predictions, num: int) -> NDArray[np.int64]:
    """The reviews for whose class the jobs' mean probabilities have the largest deviation."""
    spread = predictions.of_truth.std(axis=0)
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
        # Where the spread is that of all jobs, the seeds are not paired.
        wanted = {*result.by_seed} if isinstance(difference, PooledDifference) else shared
        if not wanted or not wanted <= set(seeds):
            return None
        indices = [index for index, seed in enumerate(seeds) if seed in wanted]
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


@dataclass(frozen=True)
class Progress:
    """The validation accuracy of one run by its seconds of training, validation included."""

    seconds: tuple[float, ...]  # at the end of each epoch
    best: tuple[float, ...]  # the highest accuracy up to then, per cent

    def seconds_to(self, accuracy: float) -> float | None:
        """The seconds until a validation accuracy, in per cent; None if it never came to it."""
        reached = (at for at, best in zip(self.seconds, self.best, strict=True) if best >= accuracy)
        return next(reached, None)


def progress_of(result: JobResult) -> list[Progress]:
    """The progress of each seed that has validation reviews and measured times."""
    return [each for run in result.runs if (each := _progress(run))]


def _progress(run: ScoredRun) -> Progress | None:
    took = {}
    for line in read_json_lines(run.folder / "timings.jsonl"):
        epoch, training = whole(line.get("epoch")), number(line.get("epoch_s"))
        if epoch is not None and training is not None:
            took[epoch] = training + (number(line.get("validation_s")) or 0.0)
    accuracies = {}
    for line in read_json_lines(run.folder / "metrics.jsonl"):
        epoch, accuracy = whole(line.get("epoch")), number(line.get("val_accuracy"))
        if epoch in took and accuracy is not None:
            accuracies[epoch] = 100 * accuracy
    if not accuracies or sorted(accuracies) != [*range(1, len(accuracies) + 1)]:
        return None  # the time up to an epoch that is missing is not known
    seconds = accumulate(took[epoch] for epoch in sorted(accuracies))
    best = accumulate((accuracies[epoch] for epoch in sorted(accuracies)), max)
    return Progress(tuple(seconds), tuple(best))


def seconds_to_accuracy(
    by_job: Mapping[str, Sequence[Progress]],
) -> dict[str, dict[int, float | None]]:
    """Mean seconds of training over the seeds until each of five validation accuracies.

    The accuracies are the five whole per cents up to the highest that any job reaches.

    Returns:
        By job and per cent; None where a seed never came to it. Empty without a job.
    """
    if not by_job:
        return {}
    highest = int(max(each.best[-1] for progress in by_job.values() for each in progress))
    levels = range(max(highest - NUM_LEVELS + 1, 1), highest + 1)
    return {
        name: {level: mean_of_all(each.seconds_to(level) for each in progress) for level in levels}
        for name, progress in by_job.items()
    }
