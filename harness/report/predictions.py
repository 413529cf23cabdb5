"""What the runs said of each test review: curves over seeds, and the reviews that are hard."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.files.lenient_json import number, read_json_lines, whole
from harness.report.collect import DatasetGroup, JobResult, ScoredRun
from harness.report.significance import NORMAL_95, Difference

Floats = NDArray[np.float64]

NUM_BINS = 10  # of probability, for the calibration
BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
TOLERANCE = 1e-6  # of an accuracy, between a run's predictions and its result


@dataclass(frozen=True)
class Predictions:
    """The predictions of a group's runs, those that have them."""

    labels: NDArray[np.int64]  # [num_reviews], 0 or 1, the same for all
    by_row: Mapping[str, Floats]  # of each row's name [num_seeds, num_reviews], in 0..1
    seeds: Mapping[str, tuple[int, ...]]  # of each row's name, in the same order

    @property
    def means(self) -> Floats:
        """Mean probability of each row for each review, `[num_rows, num_reviews]`."""
        return np.stack([each.mean(axis=0) for each in self.by_row.values()])

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each run is right on each review, `[num_runs, num_reviews]`."""
        said = np.concatenate([*self.by_row.values()]) > 0.5
        return np.equal(said, self.labels)


def read_predictions(group: DatasetGroup, say: Callable[[str], None]) -> Predictions | None:
    """Read `predictions.npz` of each run; None where no run has a good one.

    A run whose file is missing, broken or of other reviews is named and left out of all pictures
    of predictions; its scores stay.
    """
    labels: NDArray[np.int64] | None = None
    by_row: dict[str, Floats] = {}
    seeds: dict[str, tuple[int, ...]] = {}
    for row in group.results:
        found: dict[int, Floats] = {}
        for run in row.runs:
            try:
                its_labels, probabilities = _read(run)
                if labels is not None and not np.array_equal(its_labels, labels):
                    raise ValueError("its labels are not those of the other runs")
            except BROKEN as error:
                reason = getattr(error, "strerror", None) or error
                say(f"no predictions of {run.folder}: {reason}")
                continue
            labels, found[run.seed] = its_labels, probabilities
        if found:
            by_row[row.name] = np.stack([*found.values()])
            seeds[row.name] = tuple(found)
    return None if labels is None else Predictions(labels, by_row, seeds)


def _read(run: ScoredRun) -> tuple[NDArray[np.int64], Floats]:
    with np.load(run.folder / "predictions.npz", allow_pickle=False) as arrays:
        labels = np.asarray(arrays["labels"]).astype(np.int64)
        probabilities = np.asarray(arrays["probabilities"], np.float64)
    if labels.ndim != 1 or labels.shape != probabilities.shape or not len(labels):
        raise ValueError(f"{labels.shape} labels for {probabilities.shape} probabilities")
    if not (np.isin(labels, (0, 1)).all() and ((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError("a label is neither 0 nor 1, or a probability outside of 0 to 1")
    accuracy = float(((probabilities > 0.5) == labels).mean())
    if abs(100 * accuracy - run.accuracy) > 100 * TOLERANCE:
        raise ValueError(
            f"they have {accuracy:.4f} right, result.json says {run.accuracy / 100:.4f}"
        )
    return labels, probabilities


# Curves, each the mean over the seeds of a row


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
    """How sure and how right, all seeds together, in ten equal bins without the empty ones.

    Returns:
        Mean probability and share of positive reviews of each bin; and the expected calibration
        error, the mean distance of the two weighted by the bins' reviews (Guo et al., 2017).
    """
    flat = probabilities.ravel()
    truth = np.tile(labels, len(probabilities))
    bins = np.minimum((flat * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    held = counts > 0
    means = np.bincount(bins, flat, minlength=NUM_BINS)[held] / counts[held]
    shares = np.bincount(bins, truth, minlength=NUM_BINS)[held] / counts[held]
    error = float(np.abs(means - shares) @ counts[held] / len(flat))
    return means, shares, error


def mean_confusion(labels: NDArray[np.int64], probabilities: Floats) -> Floats:
    """The confusion matrix [[tn, fp], [fn, tp]], counts averaged over the seeds."""
    said = probabilities > 0.5
    return np.array([
        [(said[:, labels == truth] == answer).sum(axis=1).mean() for answer in (0, 1)]
        for truth in (0, 1)
    ])  # fmt: skip


# Reviews


def wrong_by_all(predictions: Predictions) -> NDArray[np.int64]:
    """The reviews that every run gets wrong, the surest mistake first."""
    places = np.flatnonzero(~predictions.right.any(axis=0))
    distance = np.abs(predictions.means.mean(axis=0) - predictions.labels)[places]
    return places[np.argsort(-distance, kind="stable")].astype(np.int64)


def most_disputed(predictions: Predictions, num: int) -> NDArray[np.int64]:
    """The reviews on which the rows' mean probabilities differ most, by their spread."""
    spread = predictions.means.std(axis=0)
    return np.argsort(-spread, kind="stable")[:num].astype(np.int64)


def over_reviews(difference: Difference, predictions: Predictions) -> float | None:
    """Half the 95 % interval of a difference over other reviews of the same kind, in points.

    The same two sets of trained models on other reviews: paired, by the normal approximation over
    the reviews. None where a run has no predictions.
    """
    shared = set(difference.first.by_seed) & set(difference.second.by_seed)
    means = []
    for row in (difference.first, difference.second):
        seeds = predictions.seeds.get(row.name, ())
        if not shared <= set(seeds):
            return None
        places = [place for place, seed in enumerate(seeds) if seed in shared]
        right = (predictions.by_row[row.name][places] > 0.5) == predictions.labels
        means.append(right.mean(axis=0))
    gain = means[0] - means[1]
    if len(gain) < 2:
        return None
    return float(100 * NORMAL_95 * gain.std(ddof=1) / len(gain) ** 0.5)


# Epochs


def epochs_of(row: JobResult, key: str) -> dict[int, list[float]]:
    """A number of `metrics.jsonl` in each epoch, of every seed that has it."""
    found: dict[int, list[float]] = {}
    for run in row.runs:
        for line in read_json_lines(run.folder / "metrics.jsonl"):
            epoch, value = whole(line.get("epoch")), number(line.get(key))
            if epoch is not None and value is not None:
                found.setdefault(epoch, []).append(value)
    return dict(sorted(found.items()))
