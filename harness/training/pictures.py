"""Draws the scores of a classifier.

The functions `…_picture` take the same labels and probabilities as
`harness.training.metrics.test_scores`, and raise the same errors.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.data.dataset import CLASSES
from harness.training.metrics import checked, test_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COUNTS = 12  # the most classes for which the confusion matrix shows numbers
MOST_NAMES = 30  # the most classes for which the confusion matrix shows the classes' names
MAX_NAME = 24  # the most characters that are shown of a class's name


def confusion_picture(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str] = CLASSES
) -> bytes:
    """Draw the confusion matrix as a PNG of 640 x 480, with each row's counts and percentages.

    For more than 12 classes, colours show the percentages, and the picture contains no numbers.
    `classes` are the names of the labels.
    """
    truth, found = checked(labels, probabilities)
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    num_classes = found.shape[1]
    counts = confusion_matrix(truth, found.argmax(axis=1), labels=range(num_classes))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Matplotlib reads text between dollar signs as mathematics.
    names = [" ".join(name.split())[:MAX_NAME].replace("$", r"\$") for name in classes]
    figure, axes = new_figure()
    display = ConfusionMatrixDisplay(shares, display_labels=names)
    display.plot(
        ax=axes,
        cmap="Blues",
        colorbar=False,
        include_values=num_classes <= MOST_COUNTS,
        values_format=".1%",
        xticks_rotation="horizontal" if num_classes == 2 else "vertical",
        im_kw={"vmin": 0, "vmax": 1, "aspect": "auto"},
        text_kw={"fontsize": min(20, max(6, 66 // num_classes))},
    )
    if display.text_ is not None:
        for text, count in zip(display.text_.ravel(), counts.ravel(), strict=True):
            text.set_text(f"{count:,}\n{text.get_text()}")
    if num_classes > MOST_NAMES:
        axes.set(xticks=[], yticks=[])
    accuracy = np.trace(counts) / len(truth)
    axes.set(
        xlabel="predicted label",
        ylabel="true label (each row adds up to 100 %)",
        title=f"Confusion matrix: {accuracy:.1%} of {len(truth):,} reviews correct",
    )
    return png(figure)


def roc_picture(labels: ArrayLike, probabilities: ArrayLike) -> bytes:
    """Draw the ROC curve as a PNG of 640 x 480, with the area under it in the legend.

    For more than two classes the curve is the mean of the curves of each class against the rest. If
    all labels are equal, there is no curve, and the legend says so.
    """
    truth, found = checked(labels, probabilities)
    from sklearn.metrics import RocCurveDisplay

    figure, axes = new_figure()
    if truth.min() == truth.max():
        axes.plot([], label=f"no curve: all {len(truth):,} reviews are of one class")
    else:
        rates, true_rates = mean_roc_curve(truth, found)
        name = "model" if found.shape[1] == 2 else "mean of each class against the rest"
        area = test_scores(truth, found)["roc_auc"]
        RocCurveDisplay(fpr=rates, tpr=true_rates, roc_auc=area).plot(ax=axes, name=name)
    axes.plot([0, 1], [0, 1], "--", color="grey", label="chance (AUC 0.5)")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.set_title(f"ROC curve over {len(truth):,} reviews")
    axes.legend(loc="lower right")
    return png(figure)


def calibration_picture(labels: ArrayLike, probabilities: ArrayLike) -> bytes:
    """Draw how well the probabilities are calibrated, as a PNG of 640 x 640.

    The upper plot shows the share of positive reviews against the mean probability, in 10 bins of
    equal width. The lower plot shows the number of reviews in each bin. For more than two classes
    the probability is that of the predicted class, and the share is that of correct predictions.
    """
    truth, found = checked(labels, probabilities)
    from matplotlib.figure import Figure
    from sklearn.calibration import CalibrationDisplay

    is_so, positive = truth == 1, found[:, 1]
    of, share = "a positive review", "positive reviews"
    if found.shape[1] > 2:
        is_so, positive = found.argmax(axis=1) == truth, found.max(axis=1)
        of, share = "the predicted class", "correct predictions"
    # A custom network may return numbers outside 0..1, which scikit-learn rejects.
    positive = positive.clip(0, 1)
    figure = Figure(figsize=(6.4, 6.4), dpi=100, layout="constrained")
    curve, histogram = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [2, 1]})
    CalibrationDisplay.from_predictions(is_so, positive, n_bins=10, pos_label=True, ax=curve)
    curve.set(xlabel="", ylabel=f"share of {share}")
    curve.set_title(f"Calibration over {len(truth):,} reviews")
    counts, _, bars = histogram.hist(positive, bins=10, range=(0, 1), rwidth=0.94)
    histogram.bar_label(bars, [f"{n:,.0f}\n{n / len(truth):.1%}" for n in counts], fontsize=8.5)
    histogram.set(ylim=(0, counts.max() * 1.4), ylabel="reviews")
    histogram.set(xlabel=f"predicted probability of {of}")
    return png(figure)


def mean_roc_curve(
    truth: NDArray[np.int64], found: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ROC curve of label 1; for more than two classes, the mean of all classes' curves.

    A class's curve treats all other classes as one class. The true positive rates are averaged at
    equal false positive rates.

    Args:
        truth: the true labels `[n]`, with at least two different labels.
        found: the probabilities `[n, num_classes]`.

    Returns:
        The false positive rates `[501]` and the true positive rates `[501]`.
    """
    from sklearn.metrics import roc_curve

    rates = np.linspace(0, 1, 501) ** 2  # denser near 0, where the curve bends
    labels = [1] if found.shape[1] == 2 else np.unique(truth)
    curves = []
    for label in labels:
        false_rate, true_rate, _ = roc_curve(truth == label, found[:, label])
        curves.append(np.interp(rates, false_rate, true_rate))
    return rates, np.mean(curves, axis=0)


def new_figure(size: tuple[float, float] = (6.4, 4.8)) -> "tuple[Figure, Axes]":
    """Make a figure with one plot, and with margins that leave room for its labels."""
    # pyplot would keep a global list of figures, and might choose a backend with a window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, layout="constrained")
    return figure, figure.subplots()


def png(figure: "Figure") -> bytes:
    """Return the figure as a PNG file."""
    file = io.BytesIO()
    # Matplotlib's version is left out, so that the file depends only on the scores.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
