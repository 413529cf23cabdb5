"""Scores equal scikit-learn's, Keras's and hand-computed scores; pictures are reproducible."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import ArrayLike

from harness.errors import RunError
from harness.training import metrics as scores
from harness.training.metrics import calibration_picture, confusion_picture, roc_picture

PICTURES = [confusion_picture, calibration_picture]


def png_size(png: bytes) -> tuple[int, int]:
    """Return width and height in pixels from the header of a PNG."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])


def test_worked_example() -> None:
    """Scores of six reviews, computed by hand; a probability of 0.5 counts as negative."""
    found = scores.test_scores([0, 0, 0, 1, 1, 1], [0.1, 0.5, 0.8, 0.4, 0.6, 0.9])
    assert found["confusion_matrix"] == [[2, 1], [1, 2]]
    assert found["num_reviews"] == 6
    for name in ("accuracy", "precision", "recall", "f1"):
        assert found[name] == pytest.approx(2 / 3)
    # Of the 9 pairs of a positive and a negative review, 6 are in the right order:
    # 0.4 is above 0.1 only, 0.6 is above 0.1 and 0.5, and 0.9 is above all three.
    assert found["roc_auc"] == pytest.approx(6 / 9)
    assert found["log_loss"] == pytest.approx(
        -np.log([0.9, 0.5, 0.2, 0.4, 0.6, 0.9]).mean(), rel=1e-12
    )


def made_up(num_classes: int, num: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Make labels whose last class is the rarest, and probabilities that correlate with them."""
    generator = np.random.default_rng(num_classes)
    frequency = 1.0 / np.arange(1, num_classes + 1)
    labels = generator.choice(num_classes, num, p=frequency / frequency.sum())
    logits = generator.normal(size=(num, num_classes))
    logits[np.arange(num), labels] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return labels, probabilities.astype(np.float32)


@pytest.mark.parametrize("num_classes", [3, 11])
def test_scores_of_several_classes_are_those_of_scikit_learn(num_classes: int) -> None:
    """The top-5 accuracy is reported only for more than ten classes."""
    from sklearn import metrics

    labels, probabilities = made_up(num_classes)
    predicted = probabilities.argmax(axis=1)
    found = scores.test_scores(labels, probabilities)
    wanted = {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "precision": metrics.precision_score(labels, predicted, average="macro"),
        "recall": metrics.recall_score(labels, predicted, average="macro"),
        "f1": metrics.f1_score(labels, predicted, average="macro"),
        "f1_macro": metrics.f1_score(labels, predicted, average="macro"),
        "f1_weighted": metrics.f1_score(labels, predicted, average="weighted"),
        "roc_auc": metrics.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "log_loss": metrics.log_loss(labels, probabilities),
    }
    if num_classes > 10:
        top = metrics.top_k_accuracy_score(labels, probabilities, k=5)
        assert found["accuracy"] < top < 1
        wanted["top_5_accuracy"] = top
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert ("top_5_accuracy" in found) == (num_classes > 10)
    by_class = metrics.precision_score(labels, predicted, average=None)
    assert found["precision_by_class"] == pytest.approx(by_class.tolist())
    by_class = metrics.recall_score(labels, predicted, average=None)
    assert found["recall_by_class"] == pytest.approx(by_class.tolist())
    assert found["confusion_matrix"] == metrics.confusion_matrix(labels, predicted).tolist()
    assert (
        len({round(value, 6) for value in wanted.values()}) >= 7
    )  # the test notices swapped scores


def test_a_class_without_reviews_is_left_out_of_means() -> None:
    """Balanced accuracy and ROC AUC are means over the other classes; F1 equals scikit-learn's."""
    from sklearn import metrics

    labels, probabilities = made_up(3)
    some = labels != 2
    labels, probabilities = labels[some], probabilities[some]
    found = scores.test_scores(labels, probabilities)
    predicted = probabilities.argmax(axis=1)
    assert 2 in predicted  # class 2 is predicted by mistake, so its F1 is 0
    assert found["f1_macro"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    recalls = [np.mean(predicted[labels == label] == label) for label in (0, 1)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    areas = [metrics.roc_auc_score(labels == label, probabilities[:, label]) for label in (0, 1)]
    assert found["roc_auc"] == pytest.approx(np.mean(areas))
    assert found["confusion_matrix"][2] == [0, 0, 0]


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.filterwarnings("error")
def test_one_class(label: int) -> None:
    """If all reviews have one class, there is no ROC AUC and no warning."""
    found = scores.test_scores([label] * 3, [0.1, 0.2, 0.3])
    assert found["roc_auc"] is None
    assert found["precision"] == found["recall"] == found["f1"] == 0.0
    assert found["confusion_matrix"] == ([[3, 0], [0, 0]] if label == 0 else [[0, 0], [3, 0]])


def test_loss_and_accuracy_are_those_of_keras() -> None:
    """The values are equal in float64, also where Keras clips the probabilities."""
    import keras

    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 1000).astype(np.float64)
    probabilities = generator.uniform(size=1000)
    probabilities[:4] = [0.0, 1.0, 0.5, 1e-9]
    labels[:4] = [1, 0, 1, 1]
    loss, accuracy = scores.loss_and_accuracy(labels, probabilities)
    keras_loss = keras.ops.binary_crossentropy(labels, probabilities)
    assert loss == pytest.approx(float(np.mean(keras_loss)), rel=1e-12)
    keras_accuracy = keras.metrics.binary_accuracy(labels, probabilities)
    assert accuracy == pytest.approx(float(np.mean(keras_accuracy)), rel=1e-6)


def test_loss_of_a_diverged_model() -> None:
    """One NaN among the probabilities makes the loss NaN."""
    assert np.isnan(scores.loss_and_accuracy([0, 1], [0.5, np.nan])[0])


@pytest.mark.parametrize("score", [scores.test_scores, *PICTURES, roc_picture])
def test_diverged_is_refused(score: Callable[[ArrayLike, ArrayLike], object]) -> None:
    """Scores and pictures refuse NaN in one line with the count."""
    with pytest.raises(RunError, match=r"^probabilities: 1 of 2 are not finite.*learning_rate$"):
        score([0, 1], [0.5, np.nan])


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.filterwarnings("error")
def test_pictures(picture: Callable[[ArrayLike, ArrayLike], bytes]) -> None:
    """A picture is a PNG of 640 x 480 pixels with reproducible bytes, even for a single class.

    The probabilities of a custom network may be outside of 0 to 1.
    """
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 500)
    probabilities = generator.uniform(size=500)
    png = picture(labels, probabilities)
    for each in (png, picture([1, 1], [0.0, 1.0]), picture([0, 1, 1], [-0.5, 1.5, 0.2])):
        assert png_size(each) == (640, 480)
    assert png == picture(labels, probabilities)
    assert png != picture(labels, 1 - probabilities)


@pytest.mark.filterwarnings("error")
def test_names_without_glyphs_give_no_warning() -> None:
    """Matplotlib's font lacks some scripts; its warnings name a path of the package."""
    names = ("日本", "हिन्दी")
    assert png_size(confusion_picture([0, 1], [0.2, 0.8], names)) == (640, 480)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_roc_picture(num_classes: int) -> None:
    """The area under the curve of the picture is the score, also for more than two classes."""
    labels, probabilities = made_up(num_classes)
    rates, true_rates = scores.mean_roc_curve(labels, probabilities)
    area = scores.test_scores(labels, probabilities)["roc_auc"]
    assert np.trapezoid(true_rates, rates) == pytest.approx(area, abs=0.002)
    png = roc_picture(labels, probabilities)
    assert png_size(png) == (640, 480)
    assert png == roc_picture(labels, probabilities) != roc_picture(labels, probabilities[::-1])


def test_the_event_of_several_classes_is_a_correct_prediction() -> None:
    """A calibration curve compares it with the probability of the predicted class."""
    labels, probabilities = np.array([0, 1, 2]), np.array([[7, 2, 1], [6, 3, 1], [1, 1, 8]]) / 10
    hits, found = scores.events(labels, probabilities)
    assert (hits.tolist(), found.tolist()) == ([True, False, True], [0.7, 0.6, 0.8])
