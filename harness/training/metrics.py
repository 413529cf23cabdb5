"""Computes and draws the scores of a classifier, and finds the epoch with the best score.

Labels are whole numbers from 0. For two classes a model returns the probability of label 1, and
predicts label 1 if this probability exceeds 0.5, like Keras's binary accuracy. For more than two
classes a model returns the probability of each class, and predicts the most probable class.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.data.dataset import CLASSES, by_class
from harness.errors import RunError
from harness.job.keys import SCORES, TrainConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_MATRIX = 100  # the maximum number of classes for which the result contains a confusion matrix
TOP = 5  # `top_5_accuracy` counts a label among this many most probable classes as correct
CLASSES_FOR_TOP = 10  # `top_5_accuracy` is computed only for more classes than this
MOST_SHARES = 12  # the maximum number of classes for which the confusion matrix shows numbers
MOST_NAMES = 30  # the maximum number of classes for which the confusion matrix shows class names
MAX_NAME = 24  # the maximum length of a class name in a picture; longer names are cut


def test_scores(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """Score predictions on a test set as scikit-learn does. All scores are JSON values.

    For two classes `precision`, `recall` and `f1` are the scores of label 1. For more than two
    classes `precision`, `recall` and `f1` are means over all classes that occur in the labels or
    the predictions. `f1_macro` is the mean of F1 over all classes that occur in the labels or the
    predictions, even for two classes. A score is 0 if its denominator is 0. For more than two
    classes `roc_auc` is the mean of the one-vs-rest areas of all classes in the labels. `roc_auc`
    is None if all labels are equal. `confusion_matrix`, for at most 100 classes, has a row per
    label; for two classes it is [[tn, fp], [fn, tp]]. `top_5_accuracy` is computed for more than 10
    classes.

    Args:
        labels: the index of each example's true class, `[n]`.
        probabilities: the probability of label 1 `[n]`, or of each class `[n, num_classes]`.

    Raises:
        RunError: if a probability is not finite.
    """
    truth, found = checked(labels, probabilities)
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    num_classes = found.shape[1]
    predicted = found.argmax(axis=1)
    loss, accuracy = loss_and_accuracy(truth, probabilities)
    precisions, recalls, f1s, support = precision_recall_fscore_support(
        truth, predicted, labels=range(num_classes), zero_division=0.0
    )
    is_seen = (support > 0) | (np.bincount(predicted, minlength=num_classes) > 0)

    def one(each: NDArray[np.float64]) -> float:
        return float(each[1] if num_classes == 2 else each[is_seen].mean())

    scores = {
        "accuracy": accuracy,
        "balanced_accuracy": float(recalls[support > 0].mean()),
        "precision": one(precisions),
        "recall": one(recalls),
        "f1": one(f1s),
        "f1_macro": float(f1s[is_seen].mean()),
        "f1_weighted": float(f1s @ support / len(truth)),
        "roc_auc": _roc_auc(truth, found),
        "log_loss": loss,
        "precision_by_class": precisions.tolist(),
        "recall_by_class": recalls.tolist(),
        "num_reviews": len(truth),
    }
    if num_classes > CLASSES_FOR_TOP:
        from sklearn.metrics import top_k_accuracy_score

        top = top_k_accuracy_score(truth, found, k=TOP, labels=range(num_classes))
        scores[f"top_{TOP}_accuracy"] = float(top)
    if num_classes <= MAX_MATRIX:
        matrix = confusion_matrix(truth, predicted, labels=range(num_classes))
        scores["confusion_matrix"] = matrix.tolist()
    return scores


def loss_and_accuracy(labels: ArrayLike, probabilities: ArrayLike) -> tuple[float, float]:
    """Return the mean cross-entropy in nats and the share of correct predictions, in float64.

    Probabilities are clipped to the range from 1e-7 to 1 - 1e-7, as `keras.ops.binary_crossentropy`
    clips them in float64; 1e-7 is `keras.config.epsilon()`. The loss of a diverged model is NaN.

    Args:
        labels: the index of each example's true class, `[n]`.
        probabilities: the probability of label 1 `[n]`, or of each class `[n, num_classes]`.
    """
    truth, found = np.asarray(labels, np.int64), by_class(probabilities)
    clipped = np.clip(found, 1e-7, 1 - 1e-7)
    if found.shape[1] == 2:
        positive = clipped[:, 1]
        losses = -(truth * np.log(positive) + (1 - truth) * np.log1p(-positive))
    else:
        losses = -np.log(clipped[np.arange(len(truth)), truth])
    return float(losses.mean()), float((found.argmax(axis=1) == truth).mean())


def checked(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Check probabilities; return labels `[n]` and class probabilities `[n, num_classes]`.

    The arguments and errors are the same as for `test_scores`.
    """
    given = np.asarray(probabilities, np.float64)
    broken = int((~np.isfinite(given)).sum())
    if broken:
        raise RunError(
            f"probabilities: {broken:,} of {given.size:,} are not finite, so the model has "
            "diverged; train again with a lower train.learning_rate"
        )
    return np.asarray(labels, np.int64), by_class(given)


def _roc_auc(truth: NDArray[np.int64], found: NDArray[np.float64]) -> float | None:
    from sklearn.metrics import roc_auc_score

    if truth.min() == truth.max():
        return None
    labels = [1] if found.shape[1] == 2 else np.unique(truth)
    return float(np.mean([roc_auc_score(truth == label, found[:, label]) for label in labels]))


def score_to_keep(train: TrainConfig) -> str | None:
    """Return the name of the score that selects the kept epoch; None if the last epoch is kept."""
    if train.keep == "last":
        return None
    return train.keep if train.keep in SCORES else train.monitor


def exported_epoch(history: Sequence[dict[str, Any]], train: TrainConfig) -> dict[str, Any]:
    """Return the metrics of the kept epoch; of equally good epochs, the first is kept."""
    score = score_to_keep(train)
    if not score:
        return history[-1]
    sign = 1 if SCORES[score] == "min" else -1
    return min(history, key=lambda line: sign * line[score])


def describe_scores(scores: Mapping[str, Any]) -> str:
    """Return the main scores in one line for the console."""
    area = scores["roc_auc"]
    shown = "none, only one class" if area is None else f"{area:.4f}"
    kind = "macro F1" if len(scores["precision_by_class"]) > 2 else "F1"
    return (
        f"accuracy {100 * scores['accuracy']:.2f} %, {kind} {scores['f1']:.4f}, ROC AUC {shown}, "
        f"log loss {scores['log_loss']:.4f}"
    )


# Pictures


def confusion_picture(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str] = CLASSES
) -> bytes:
    """Draw the confusion matrix as a PNG of 640 x 480, with the percentages of each row.

    For more than 12 classes, colours show the percentages, and the picture contains no numbers.
    `classes` are the names of the labels. `labels` and `probabilities` are the same as for
    `test_scores`, and so are the errors that this function raises.
    """
    truth, found = checked(labels, probabilities)
    from sklearn.metrics import ConfusionMatrixDisplay

    num_classes, predicted = found.shape[1], found.argmax(axis=1)
    # Escape dollar signs, because Matplotlib reads text between dollar signs as mathematics.
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
    width. For more than two classes the curve shows the share of correct predictions against the
    mean probability of the predicted class.
    """
    truth, found = checked(labels, probabilities)
    from sklearn.calibration import CalibrationDisplay

    figure, axes = new_figure()
    hits, positive = events(truth, found)
    CalibrationDisplay.from_predictions(hits, positive, n_bins=10, pos_label=True, ax=axes)
    axes.set(**calibration_labels(found.shape[1]))
    axes.set_title(f"Calibration over {len(truth):,} reviews")
    return png(figure)


def events(
    truth: NDArray[np.int64], found: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return what a calibration curve compares: outcomes and their predicted probabilities, `[n]`.

    With two classes, the outcome is whether a review has label 1. With more than two classes, the
    outcome is whether a review belongs to the predicted class. The arguments are the results of
    `checked`.
    """
    hits, of_event = truth == 1, found[:, 1]
    if found.shape[1] > 2:
        hits, of_event = found.argmax(axis=1) == truth, found.max(axis=1)
    # A custom network may return numbers outside 0..1, which scikit-learn rejects.
    return hits, of_event.clip(0, 1)


def calibration_labels(num_classes: int) -> dict[str, str]:
    """Return the labels of the axes of a calibration curve."""
    of, share = "a positive review", "positive reviews"
    if num_classes > 2:
        of, share = "the predicted class", "correct predictions"
    return {"xlabel": f"predicted probability of {of}", "ylabel": f"share of {share}"}


def roc_picture(labels: ArrayLike, probabilities: ArrayLike) -> bytes:
    """Draw the ROC curve as a PNG of 640 x 480, with the area under the curve in the legend.

    The labels must contain at least two classes. For more than two classes the curve is the mean
    of the one-vs-rest curves of all classes in the labels.
    """
    truth, found = checked(labels, probabilities)
    from sklearn.metrics import RocCurveDisplay

    figure, axes = new_figure()
    name = "model" if found.shape[1] == 2 else "mean of the one-vs-rest curves"
    rates, true_rates = mean_roc_curve(truth, found)
    display = RocCurveDisplay(fpr=rates, tpr=true_rates, roc_auc=_roc_auc(truth, found))
    display.plot(ax=axes, name=name, plot_chance_level=True)
    axes.set_title(f"ROC curve over {len(truth):,} reviews")
    return png(figure)


def mean_roc_curve(
    truth: NDArray[np.int64], found: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false positive rates, and the true positive rate at each of them.

    For more than two classes the true positive rate is the mean over the one-vs-rest curves of all
    classes in the labels. The arguments are the results of `checked`.
    """
    from sklearn.metrics import roc_curve

    # The false positive rates at which the curves are drawn: denser near 0, where the curves bend.
    rates = np.linspace(0, 1, 501) ** 2
    labels = [1] if found.shape[1] == 2 else np.unique(truth)
    curves = [np.interp(rates, *roc_curve(truth == each, found[:, each])[:2]) for each in labels]
    return rates, np.mean(curves, axis=0)


def new_figure(size: tuple[float, float] = (6.4, 4.8)) -> "tuple[Figure, Axes]":
    """Make a figure with one plot, and with margins that leave room for its labels."""
    # Don't use pyplot, which would keep a global list of figures, and might open a window.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, layout="constrained")
    return figure, figure.subplots()


def png(figure: "Figure") -> bytes:
    """Return the figure as a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Matplotlib's font lacks some scripts, such as Chinese; a class name may contain any.
        warnings.filterwarnings("ignore", "Glyph .* missing|Matplotlib currently does not support")
        # Leave Matplotlib's version out of the file, so that the file depends only on the scores.
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
