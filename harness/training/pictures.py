"""The pictures that explain a classifier's scores.

Args and errors of each are those of `harness.training.metrics.test_scores`.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.data.dataset import CLASSES
from harness.training.metrics import checked, test_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COUNTS = 12  # classes of a confusion matrix whose counts can be read
MOST_NAMES = 30  # and whose names can
MAX_NAME = 24  # characters of a class's name
# Of the figure. To fit margins to the texts, Matplotlib lays out everything twice.
MARGINS = {"left": 0.11, "right": 0.97, "bottom": 0.11, "top": 0.93}


def confusion_picture(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str] = CLASSES
) -> bytes:
    """Draw the confusion matrix as a PNG of 640 x 480, with counts and shares of each true class.

    Of more than 12 classes the shares alone are shown, by colour. `classes` names the labels.
    """
    truth, found = checked(labels, probabilities)
    num_classes = found.shape[1]
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (truth, found.argmax(axis=1)), 1)
    in_class = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(in_class, 1)
    figure, axes = new_figure()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    cells = np.ndindex(counts.shape) if num_classes <= MOST_COUNTS else ()
    font_size = min(20, max(6, 66 // num_classes))
    for row, column in cells:
        dark = shares[row, column] > 0.5
        axes.text(
            column,
            row,
            f"{counts[row, column]:,}\n{shares[row, column]:.1%}",
            ha="center",
            va="center",
            fontsize=font_size,
            color="white" if dark else "black",
        )
    # A dollar sign would begin mathematics.
    names = [shortened(name).replace("$", r"\$") for name in classes]
    if num_classes == 2:
        axes.set_xticks([0, 1], names)
        lines = [f"{name}\n({int(n):,})" for name, n in zip(names, in_class[:, 0], strict=True)]
        axes.set_yticks([0, 1], lines)
    elif num_classes <= MOST_NAMES:
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=8)
        axes.set_yticks(range(num_classes), names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true (percentages add up to 100 in each row)")
    accuracy = np.trace(counts) / len(truth)
    axes.set_title(f"Confusion matrix: {accuracy:.1%} of {len(truth):,} reviews right")
    return png(figure)


def shortened(name: str, length: int = MAX_NAME) -> str:
    """A name in a picture, on one line; `textwrap.shorten` leaves nothing of a long word."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length - 1]}…"


def roc_picture(labels: ArrayLike, probabilities: ArrayLike) -> bytes:
    """Draw the ROC curve as a PNG of 640 x 480, the area under it in the legend.

    Of more than two classes it is the mean of the curves of each class against the rest. If labels
    hold only one class, the picture says that there is no curve.
    """
    truth, found = checked(labels, probabilities)
    from sklearn.metrics import roc_auc_score, roc_curve

    figure, axes = new_figure(MARGINS)
    if truth.min() == truth.max():
        axes.text(0.05, 0.9, f"no curve: all {len(truth):,} reviews are of one class", fontsize=13)
    elif found.shape[1] == 2:
        positive = found[:, 1]
        false_rate, true_rate, _ = roc_curve(truth, positive)
        area = roc_auc_score(truth, positive)
        axes.plot(false_rate, true_rate, linewidth=2, label=f"model (AUC {area:.4f})")
        predicted = positive > 0.5
        point = predicted[truth == 0].mean(), predicted[truth == 1].mean()
        axes.plot(*point, "o", color="C0", label="threshold 0.5")
    else:
        rates, true_rates = mean_roc_curve(truth, found)
        area = test_scores(truth, found)["roc_auc"]
        label = f"mean of each class against the rest (AUC {area:.4f})"
        axes.plot(rates, true_rates, linewidth=2, label=label)
    axes.plot([0, 1], [0, 1], "--", color="grey", label="chance (AUC 0.5)")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.set_title(f"ROC curve over {len(truth):,} reviews")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return png(figure)


def calibration_picture(labels: ArrayLike, probabilities: ArrayLike) -> bytes:
    """Draw how well the probabilities are calibrated, as a PNG of 640 x 640.

    Above, for each non-empty one of 10 equal bins of probability, the share of positive reviews
    over the mean probability; below, the number and share of reviews in each bin. Of more than two
    classes it is the probability of the predicted class, and the share of correct predictions.
    """
    truth, found = checked(labels, probabilities)
    if found.shape[1] == 2:
        of, share, positive, is_so = "a positive review", "positive reviews", found[:, 1], truth
    else:
        of, share, positive = "the predicted class", "correct predictions", found.max(axis=1)
        is_so = found.argmax(axis=1) == truth
    counts, means, shares = calibration_bins(positive, is_so)

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 6.4), dpi=100)
    grid = {"height_ratios": [2, 1], "hspace": 0.06, **MARGINS}
    curve, histogram = figure.subplots(2, 1, sharex=True, gridspec_kw=grid)
    curve.plot([0, 1], [0, 1], "--", color="grey", label="perfectly calibrated")
    curve.plot(means, shares, "o-", linewidth=2, label="model")
    curve.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    curve.set(ylabel=f"share of {share}", title=f"Calibration over {len(truth):,} reviews")
    curve.grid(alpha=0.3)
    curve.legend(loc="lower right")

    bars = histogram.bar(np.arange(10) / 10 + 0.05, counts, width=0.094)
    histogram.bar_label(
        bars, [f"{n:,}\n{n / len(truth):.1%}" for n in counts], fontsize=8.5, padding=2
    )
    histogram.set_ylim(0, counts.max() * 1.35)
    histogram.locator_params(axis="y", integer=True, nbins=5)
    histogram.set_xticks(np.arange(11) / 10)
    histogram.set(xlabel=f"predicted probability of {of}", ylabel="reviews")
    return png(figure)


def calibration_bins(
    probabilities: NDArray[np.float64], is_so: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Ten equal bins of probabilities `[n]` of what is so or not, `[n]`.

    Returns:
        Number in each bin, `[10]`; mean probability and share that is so of each that is not empty.
    """
    bins = np.clip((probabilities * 10).astype(np.int64), 0, 9)
    counts = np.bincount(bins, minlength=10)
    held = counts > 0
    means = np.bincount(bins, probabilities, minlength=10)[held] / counts[held]
    shares = np.bincount(bins, is_so, minlength=10)[held] / counts[held]
    return counts, means, shares


def mean_roc_curve(
    truth: NDArray[np.int64], found: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean ROC curve of the classes, each against the rest; of two classes that of label 1.

    True positive rates are averaged at the same false positive rates.

    Args:
        truth: [n], of two classes at least.
        found: [n, num_classes].

    Returns:
        False and true positive rates, `[501]` both.
    """
    from sklearn.metrics import roc_curve

    rates = np.linspace(0, 1, 501) ** 2  # denser where the curve bends
    labels = [1] if found.shape[1] == 2 else np.unique(truth)
    curves = []
    for label in labels:
        false_rate, true_rate, _ = roc_curve(truth == label, found[:, label])
        curves.append(np.interp(rates, false_rate, true_rate))
    return rates, np.mean(curves, axis=0)


def new_figure(
    margins: Mapping[str, float] = {}, *, size: tuple[float, float] = (6.4, 4.8)
) -> "tuple[Figure, Axes]":
    """A figure of one plot; without margins they are fitted to its texts."""
    # The object API: pyplot has a global list of figures, and may choose a backend with a window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, layout=None if margins else "constrained")
    return figure, figure.subplots(gridspec_kw={**margins})


def png(figure: "Figure") -> bytes:
    """The figure as the bytes of a PNG."""
    file = io.BytesIO()
    # Without Matplotlib's version in the file, the same scores give the same bytes.
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
