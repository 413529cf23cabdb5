"""Scores of a binary classifier, and the pictures that explain them.

Labels are 0 (negative) or 1 (positive). A probability is that of a positive review; above 0.5 the
prediction is positive, as for Keras's binary accuracy.
"""

import io
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.data.dataset import CLASSES
from harness.errors import RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def test_scores(
    labels: ArrayLike, probabilities: ArrayLike
) -> dict[str, float | int | str | list[list[int]] | None]:
    """Score predictions over a test set; every value can go into JSON.

    Precision, recall and F1 are those of the positive class, and 0 if their denominator is 0.
    `confusion_matrix` is [[tn, fp], [fn, tp]]. If `labels` hold only one class,
    `roc_auc` is None and `roc_auc_reason` says why; otherwise the reason is None.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], in 0..1.

    Raises:
        ValueError: if the shapes differ, n is 0, or a label is neither 0 nor 1.
        RunError: if a probability is not finite.
    """
    truth, positive = _checked(labels, probabilities)
    from sklearn.metrics import (
        confusion_matrix,
        precision_recall_fscore_support,
        roc_auc_score,
    )

    predicted = positive > 0.5
    log_loss, accuracy = binary_loss_and_accuracy(truth, positive)
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, average="binary", zero_division=0.0
    )
    reason = _roc_reason(truth)
    return {
        "accuracy": accuracy,
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "roc_auc": None if reason else float(roc_auc_score(truth, positive)),
        "roc_auc_reason": reason,
        "log_loss": log_loss,
        "confusion_matrix": confusion_matrix(truth, predicted, labels=[0, 1]).tolist(),
        "num_reviews": len(truth),
    }


def binary_loss_and_accuracy(labels: ArrayLike, probabilities: ArrayLike) -> tuple[float, float]:
    """Mean binary cross-entropy in nats, and the share of correct predictions, in float64.

    Probabilities are clipped to 1e-7..1 - 1e-7, `keras.config.epsilon()`, as by
    `keras.ops.binary_crossentropy` in float64; in float32 Keras clips at 1 - 1.19e-7. The loss of
    a diverged model is NaN.

    Args:
        labels: [n], 0 or 1.
        probabilities: [n], in 0..1.
    """
    truth = np.asarray(labels, np.float64)
    positive = np.asarray(probabilities, np.float64)
    clipped = np.clip(positive, 1e-7, 1 - 1e-7)
    losses = -(truth * np.log(clipped) + (1 - truth) * np.log1p(-clipped))
    return float(losses.mean()), float(((positive > 0.5) == truth).mean())


def confusion_picture(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str] = CLASSES
) -> bytes:
    """Draw the confusion matrix as a PNG of 640 x 480, with counts and shares of each true class.

    Args and errors are those of `test_scores`; `classes` names the labels 0 and 1.
    """
    truth, positive = _checked(labels, probabilities)
    counts = np.zeros((2, 2), np.int64)
    np.add.at(counts, (truth, (positive > 0.5).astype(np.int64)), 1)
    in_class = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(in_class, 1)
    figure, axes = _figure()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(2, 2):
        dark = shares[row, column] > 0.5
        axes.text(
            column,
            row,
            f"{counts[row, column]:,}\n{shares[row, column]:.1%}",
            ha="center",
            va="center",
            fontsize=20,
            color="white" if dark else "black",
        )
    # A dollar sign would begin mathematics.
    names = [shorten(name, 24, placeholder="…").replace("$", r"\$") for name in classes]
    axes.set_xticks([0, 1], names)
    axes.set_yticks(
        [0, 1],
        [f"{name}\n({int(n):,})" for name, n in zip(names, in_class[:, 0], strict=True)],
    )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (percentages add up to 100 in each row)")
    accuracy = np.trace(counts) / len(truth)
    axes.set_title(f"Confusion matrix: {accuracy:.1%} of {len(truth):,} reviews right")
    return png(figure)


def roc_picture(labels: ArrayLike, probabilities: ArrayLike) -> bytes:
    """Draw the ROC curve as a PNG of 640 x 480, the area under it in the legend.

    Args and errors are those of `test_scores`. If labels hold only one class, the picture says that
    there is no curve.
    """
    truth, positive = _checked(labels, probabilities)
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, axes = _figure()
    reason = _roc_reason(truth)
    if reason:
        axes.text(0.05, 0.9, f"no curve: {reason}", fontsize=13)
    else:
        false_rate, true_rate, _ = roc_curve(truth, positive)
        area = roc_auc_score(truth, positive)
        axes.plot(false_rate, true_rate, linewidth=2, label=f"model (AUC {area:.4f})")
        predicted = positive > 0.5
        point = predicted[truth == 0].mean(), predicted[truth == 1].mean()
        axes.plot(*point, "o", color="C0", label="threshold 0.5")
    axes.plot([0, 1], [0, 1], "--", color="grey", label="chance (AUC 0.5)")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("true positive rate")
    axes.set_title(f"ROC curve over {len(truth):,} reviews")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return png(figure)


def calibration_picture(labels: ArrayLike, probabilities: ArrayLike) -> bytes:
    """Draw how well the probabilities are calibrated, as a PNG of 640 x 640.

    Above, for each non-empty one of 10 equal bins of probability, the share of positive reviews
    over the mean probability; below, the number and share of reviews in each bin.

    Args and errors are those of `test_scores`.
    """
    truth, positive = _checked(labels, probabilities)
    bins = np.minimum((positive * 10).astype(np.int64), 9)
    counts = np.bincount(bins, minlength=10)
    held = counts > 0
    means = np.bincount(bins, positive, minlength=10)[held] / counts[held]
    shares = np.bincount(bins, truth, minlength=10)[held] / counts[held]

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.4), dpi=100, layout="constrained")
    curve, histogram = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    curve.plot([0, 1], [0, 1], "--", color="grey", label="perfectly calibrated")
    curve.plot(means, shares, "o-", linewidth=2, label="model")
    curve.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    curve.set_ylabel("share of positive reviews")
    curve.set_title(f"Calibration over {len(truth):,} reviews")
    curve.grid(alpha=0.3)
    curve.legend(loc="lower right")

    bars = histogram.bar(np.arange(10) / 10 + 0.05, counts, width=0.094)
    histogram.bar_label(
        bars, [f"{n:,}\n{n / len(truth):.1%}" for n in counts], fontsize=8.5, padding=2
    )
    histogram.set_ylim(0, counts.max() * 1.35)
    histogram.locator_params(axis="y", integer=True, nbins=5)
    histogram.set_xticks(np.arange(11) / 10)
    histogram.set_xlabel("predicted probability of a positive review")
    histogram.set_ylabel("reviews")
    return png(figure)


def _checked(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth = np.asarray(labels)
    positive = np.asarray(probabilities, np.float64)
    if truth.shape != positive.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(
            f"labels {list(truth.shape)} and probabilities {list(positive.shape)}: should be "
            "[n] both, n at least 1"
        )
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"labels: hold {np.unique(truth)[:5].tolist()}; should be 0 or 1")
    broken = int((~np.isfinite(positive)).sum())
    if broken:
        raise RunError(
            f"probabilities: {broken:,} of {len(positive):,} are not finite, so the model has "
            "diverged; train again with a lower train.learning_rate"
        )
    return truth.astype(np.int64), positive


def _roc_reason(truth: NDArray[np.int64]) -> str | None:
    if truth.min() != truth.max():
        return None
    return f"all {len(truth):,} reviews are {'positive' if truth[0] else 'negative'}"


def _figure() -> "tuple[Figure, Axes]":
    # The object API: pyplot has a global list of figures, and may choose a backend with a window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), dpi=100, layout="constrained")
    return figure, figure.subplots()


def png(figure: "Figure") -> bytes:
    """The figure as the bytes of a PNG."""
    file = io.BytesIO()
    # Without Matplotlib's version in the file, the same scores give the same bytes.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def describe_scores(scores: Mapping[str, Any]) -> str:
    """The scores of `test_scores` in one line for the console."""
    area = scores["roc_auc"]
    shown = "none, only one class" if area is None else f"{area:.4f}"
    return (
        f"accuracy {100 * scores['accuracy']:.2f} %, F1 {scores['f1']:.4f}, ROC AUC {shown}, "
        f"log loss {scores['log_loss']:.4f}"
    )
