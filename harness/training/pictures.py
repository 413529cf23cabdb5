"""Draws the scores of a classifier."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from harness.data.dataset import CLASSES
from harness.training.metrics import checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SHARES = 12  # the maximum number of classes for which the confusion matrix shows numbers
MOST_NAMES = 30  # the maximum number of classes for which the confusion matrix shows class names
MAX_NAME = 24  # the maximum length of a class name in a picture; longer names are cut


def confusion_picture(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str] = CLASSES
) -> bytes:
    """Draw the confusion matrix as a PNG of 640 x 480, with the percentages of each row.

    For more than 12 classes, colours show the percentages, and the picture contains no numbers.
    `classes` are the names of the labels. The other arguments and the errors are the same as for
    `harness.training.metrics.test_scores`.
    """
    truth, found = checked(labels, probabilities)
    from sklearn.metrics import ConfusionMatrixDisplay

    num_classes, predicted = found.shape[1], found.argmax(axis=1)
    # Matplotlib reads text between dollar signs as mathematics.
    names = [" ".join(name.split())[:MAX_NAME].replace("$", r"\$") for name in classes]
    figure, axes = new_figure()
    ConfusionMatrixDisplay.from_predictions(
        truth,
        predicted,
        labels=range(num_classes),
        display_labels=names,
        normalize="true",
        ax=axes,
        cmap="Blues",
        colorbar=False,
        include_values=num_classes <= MOST_SHARES,
        values_format=".1%",
        xticks_rotation="horizontal" if num_classes == 2 else "vertical",
        im_kw={"vmin": 0, "vmax": 1, "aspect": "auto"},
        text_kw={"fontsize": min(20, max(6, 66 // num_classes))},
    )
    if num_classes > MOST_NAMES:
        axes.set(xticks=[], yticks=[])
    accuracy = (predicted == truth).mean()
    axes.set(
        xlabel="predicted label",
        ylabel="true label (each row adds up to 100 %)",
        title=f"Confusion matrix: {accuracy:.1%} of {len(truth):,} reviews correct",
    )
    return png(figure)


def calibration_picture(labels: ArrayLike, probabilities: ArrayLike) -> bytes:
    """Draw how well the probabilities are calibrated, as a PNG of 640 x 480.

    The curve shows the share of positive reviews against the mean probability, in 10 bins of equal
    width. For more than two classes the probability is that of the predicted class, and the share
    is that of correct predictions.
    """
    truth, found = checked(labels, probabilities)
    from sklearn.calibration import CalibrationDisplay

    positive, of, share = found[:, 1], "a positive review", "positive reviews"
    hits = truth == 1
    if found.shape[1] > 2:
        positive, of, share = found.max(axis=1), "the predicted class", "correct predictions"
        hits = found.argmax(axis=1) == truth
    figure, axes = new_figure()
    # A custom network may return numbers outside 0..1, which scikit-learn rejects.
    CalibrationDisplay.from_predictions(
        hits, positive.clip(0, 1), n_bins=10, pos_label=True, ax=axes
    )
    axes.set(xlabel=f"predicted probability of {of}", ylabel=f"share of {share}")
    axes.set_title(f"Calibration over {len(truth):,} reviews")
    return png(figure)


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
