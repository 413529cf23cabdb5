"""Comparisons with several classes, and predictions of all shapes."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset import Dataset, Split, content_checksum
from harness.report.baseline import fit, score_ngrams
from harness.report.statistics import read_arrays
from harness.report.summary import SEVERAL_CLASSES
from harness.training.metrics import test_scores as scores_of
from tests.made_up_runs import write_run
from tests.report.test_html import Page, write

NAMES = ("one", "<b>two</b>", "$three$")
WORDS = [f"word{rank}" for rank in range(1, 40)]


def made_up(names: tuple[str, ...], num: int = 120) -> Dataset:
    """Return reviews of five words; the third word shows the class, wrongly in every tenth."""
    generator = np.random.default_rng(len(names))
    splits = []
    for _ in range(2):
        labels = np.arange(num, dtype=np.int32) % len(names)
        told = np.where(np.arange(num) % 10 == 9, (labels + 1) % len(names), labels)
        tokens = generator.integers(20, 40, size=(num, 5)).astype(np.int32)
        tokens[:, 2] = told + 1
        splits.append(Split(tokens.ravel(), np.arange(0, 5 * num + 1, 5), labels))
    train, test = splits
    checksum = content_checksum(train, test, WORDS)
    return Dataset(train, test, WORDS, checksum, classes=names)


def probabilities_of(labels: np.ndarray, num_classes: int, seed: int) -> np.ndarray:
    """Return random probabilities; the true class mostly has the highest probability."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += 1.5
    shares: np.ndarray = np.exp(logits)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares.astype(np.float32)


def test_the_report_draws_every_class(tmp_path: Path) -> None:
    """The report contains a confusion matrix per job, and mean ROC curves."""
    labels = made_up(NAMES).test.labels
    for job, seed in itertools.product(("gru", "lstm"), (1, 2)):
        found = probabilities_of(labels, 3, seed)
        folder = tmp_path / "runs" / job / str(seed)
        scores = scores_of(labels, found) | {"classes": NAMES}
        write_run(folder, job=job, seed=seed, num_test=len(labels), **scores)
        write_predictions(folder, labels, found)
    page = Page(write(tmp_path / "runs", tmp_path / "out"))
    assert page.open == []
    assert page.text.count("Confusion matrix of") == 2
    assert "each against the rest" in page.text
    assert SEVERAL_CLASSES in page.text
    assert "ROC curves" in page.text


def write_predictions(folder: Path, labels: np.ndarray, found: np.ndarray) -> Path:
    np.savez(folder / "predictions.npz", labels=labels, probabilities=found)
    return folder / "predictions.npz"


def test_two_classes_are_read_in_any_shape(tmp_path: Path) -> None:
    """A file may contain the probabilities of label 1, flat or as a column, or of both classes."""
    labels = made_up(("no", "yes")).test.labels
    found = probabilities_of(labels, 2, seed=1)
    for given in (found[:, 1], found[:, 1:], found):
        truth, read = read_arrays(write_predictions(tmp_path, labels, given), 2)
        np.testing.assert_array_equal(truth, labels)
        np.testing.assert_allclose(read, found, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found[:, :2], "has the shape (120, 2), but should have (120, 3)"),
        (lambda found: found[1:], "has the shape (119, 3), but should have (120, 3)"),
        (
            lambda found: np.pad(found, [(0, 0), (0, 1)]),
            "has the shape (120, 4), but should have (120, 3)",
        ),
    ],
)
def test_predictions_of_another_shape_are_refused(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    """The error names the difference."""
    labels = made_up(NAMES).test.labels
    path = write_predictions(tmp_path, labels, change(probabilities_of(labels, 3, seed=1)))
    with pytest.raises(ValueError, match=re.escape(said)):
        read_arrays(path, 3)


def test_baselines_of_several_classes() -> None:
    """TF-IDF and n-grams are right in nine of ten reviews."""
    dataset = made_up(NAMES)
    for fitted in (
        fit(dataset, limit=0, maxlen=0, vocab_size=44),
        score_ngrams(dataset, limit=0),
    ):
        assert fitted.accuracy == pytest.approx(0.9, abs=0.03)
        assert fitted.f1 == pytest.approx(0.9, abs=0.03)
        assert fitted.roc_auc is not None
        assert fitted.roc_auc > 0.85


def test_broken_predictions(tmp_path: Path) -> None:
    """NumPy raises many kinds of errors; a broken run must not end a comparison."""
    for content in (b"PK\x03\x04 cut", b"\x93NUMPY\x01\x00\x02\x00{("):
        (tmp_path / "predictions.npz").write_bytes(content)
        with pytest.raises(ValueError, match="is broken"):
            read_arrays(tmp_path / "predictions.npz", 2)
    np.savez(tmp_path / "predictions.npz", labels=[], probabilities=[])
    with pytest.raises(ValueError, match=r"has the shape \(0, 2\)"):
        read_arrays(tmp_path / "predictions.npz", 2)
