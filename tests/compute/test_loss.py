"""Cross-entropy, class weights, and the perturbation of word vectors."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from harness.compute.adversarial import perturbation
from harness.compute.loss import class_weights, cross_entropy
from harness.errors import InputError
from harness.job.keys import TrainConfig

CLASSES = ("a", "b", "c")
LABELS = np.array([0, 0, 0, 1, 2, 2])


def test_balanced_weights_equal_scikit_learns() -> None:
    """All classes have the same sum of weights."""
    found = class_weights(TrainConfig(class_weights="balanced"), CLASSES, LABELS)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(found, expected)


def test_weights_by_name_follow_the_labels() -> None:
    """A class that is not named has the weight 1."""
    found = class_weights(TrainConfig(class_weights={"c": 3.0, "a": 0.5}), CLASSES, LABELS)
    assert found == (0.5, 1.0, 3.0)
    left_out = TrainConfig(class_weights={"b": 0.0})
    assert class_weights(left_out, CLASSES, LABELS) == (1.0, 0.0, 1.0)
    assert class_weights(TrainConfig(), CLASSES, LABELS) == ()


def test_impossible_class_weights_are_refused() -> None:
    """The weights name an unknown class, or a class without training reviews."""
    with pytest.raises(InputError, match=r"train\.class_weights\.d: .*the classes are a, b, c"):
        class_weights(TrainConfig(class_weights={"d": 1.0}), CLASSES, LABELS)
    with pytest.raises(InputError, match="all weights are 0"):
        class_weights(TrainConfig(class_weights=dict.fromkeys(CLASSES, 0.0)), CLASSES, LABELS)
    with pytest.raises(InputError, match="class 'c' has no training reviews"):
        class_weights(TrainConfig(class_weights="balanced"), CLASSES, LABELS[:4])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_cross_entropy_of_smoothed_labels(smoothing: float) -> None:
    """Smoothing takes a share of each label and spreads it equally over all classes."""
    of_two = np.array([[0.2], [0.9]], np.float32)
    target = np.array([0.0, 1.0]) * (1 - smoothing) + smoothing / 2
    expected = -target * np.log([0.2, 0.9]) - (1 - target) * np.log([0.8, 0.1])
    labels = np.array([0.0, 1.0], np.float32)
    found = cross_entropy(tf.constant(labels), tf.constant(of_two), smoothing=smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    of_three = np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]], np.float32)
    targets = np.eye(3)[[0, 1]] * (1 - smoothing) + smoothing / 3
    found = cross_entropy(tf.constant(labels), tf.constant(of_three), smoothing=smoothing)
    np.testing.assert_allclose(found, -(targets * np.log(of_three)).sum(axis=1), rtol=1e-5)


def test_a_perturbation_follows_the_gradient_with_the_size_of_the_vectors() -> None:
    """Padding is ignored, and the gradient may be tiny or 0."""
    tokens = np.array([[4, 5, 0], [6, 0, 0], [7, 8, 9]])
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(3, 3, 2)).astype(np.float32)
    gradient = generator.normal(size=(3, 3, 2)).astype(np.float32)
    gradient[1] *= 1e-30  # its square underflows in float32
    gradient[2] = 0
    found = perturbation(tf.constant(gradient), tf.constant(vectors), tf.constant(tokens)).numpy()
    for row, num_words in ((0, 2), (1, 1)):
        words = np.s_[row, :num_words]
        length = np.sqrt(np.mean(np.square(vectors[words])))
        direction = gradient[words].astype(np.float64)
        expected = length * direction / np.sqrt(np.sum(np.square(direction)))
        np.testing.assert_allclose(found[words], expected, rtol=1e-5)
        assert not found[row, num_words:].any()
    assert not found[2].any()
