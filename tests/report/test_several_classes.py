"""Comparisons with several classes, and predictions of all shapes."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from harness.report.statistics import read_arrays
from harness.report.summary import SEVERAL_CLASSES
from harness.training.metrics import test_scores as scores_of
from tests.made_up_runs import write_run
from tests.report.test_html import Page, write

NAMES = ("one", "<b>two</b>", "$three$")
LABELS = np.arange(120) % 3


def write_predictions(folder: Path, labels: np.ndarray, found: np.ndarray) -> Path:
    np.savez(folder / "predictions.npz", labels=labels, probabilities=found)
    return folder / "predictions.npz"


def probabilities_of(labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """Return random probabilities; the true class mostly has the highest probability."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += 1.5
    shares: np.ndarray = np.exp(logits)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares.astype(np.float32)


def test_the_report_draws_every_class(tmp_path: Path) -> None:
    """The report contains a confusion matrix per job, and mean ROC curves."""
    for job, seed in itertools.product(("gru", "lstm"), (1, 2)):
        found = probabilities_of(LABELS, 3, seed)
        folder = tmp_path / "runs" / job / str(seed)
        scores = scores_of(LABELS, found) | {"classes": NAMES}
        write_run(folder, job=job, seed=seed, num_test=len(LABELS), **scores)
        write_predictions(folder, LABELS, found)
    page = Page(write(tmp_path / "runs", tmp_path / "out"))
    assert page.open == []
    assert page.text.count("Confusion matrix of") == 2
    assert "each against the rest" in page.text
    assert SEVERAL_CLASSES in page.text
    assert "ROC curves" in page.text


def test_two_classes_are_read_in_any_shape(tmp_path: Path) -> None:
    """A file may contain the probabilities of label 1, flat or as a column, or of both classes."""
    labels = LABELS % 2
    found = probabilities_of(labels, 2, seed=1)
    for given in (found[:, 1], found[:, 1:], found):
        truth, read = read_arrays(write_predictions(tmp_path, labels, given), 2)
        np.testing.assert_array_equal(truth, labels)
        np.testing.assert_allclose(read, found, atol=1e-6)


@pytest.mark.parametrize(
    ("num_reviews", "num_classes"), [(120, 2), (119, 3), (120, 4), (0, 3)], ids=str
)
def test_predictions_of_another_shape_are_refused(
    tmp_path: Path, num_reviews: int, num_classes: int
) -> None:
    """The error names the difference."""
    labels = LABELS[:num_reviews] if num_reviews == 0 else LABELS
    path = write_predictions(tmp_path, labels, np.full((num_reviews, num_classes), 0.25))
    said = f"has the shape {(num_reviews, num_classes)}, but should have ({max(len(labels), 1)}, 3)"
    with pytest.raises(ValueError, match=re.escape(said)):
        read_arrays(path, 3)


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut", b"\x93NUMPY\x01\x00\x02\x00{("])
def test_broken_predictions(tmp_path: Path, content: bytes) -> None:
    """NumPy raises many kinds of errors; a broken run must not end a comparison."""
    (tmp_path / "predictions.npz").write_bytes(content)
    with pytest.raises(ValueError, match="is broken"):
        read_arrays(tmp_path / "predictions.npz", 2)
