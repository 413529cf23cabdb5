"""A comparison of runs that tell several classes apart, and files of predictions of any shape."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset import Dataset, Split, content_checksum
from harness.data.dataset_folder import save_folder
from harness.errors import InputError
from harness.report.baseline import fit, score_ngrams
from harness.report.collect import group_runs, scored_runs
from harness.report.html import mean_confusion
from harness.report.statistics import Predictions, read_predictions
from harness.report.summary import SEVERAL_CLASSES
from harness.training.metrics import test_scores as scores_of
from tests.made_up_runs import write_run
from tests.report.test_html import Page, write

pytestmark = pytest.mark.usefixtures("no_other_data")
NAMES = ("one", "<b>two</b>", "$three$")
WORDS = [f"word{rank}" for rank in range(1, 40)]


def made_up(names: tuple[str, ...], num: int = 120) -> Dataset:
    """Reviews of five words, one of which tells the class; every tenth tells another one."""
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
    """Probabilities that are right more often than not."""
    logits = np.random.default_rng(seed).normal(size=(len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += 1.5
    shares: np.ndarray = np.exp(logits)
    shares /= shares.sum(axis=1, keepdims=True)
    return shares.astype(np.float32)


def write_runs(folder: Path, dataset: Dataset) -> Path:
    """Two jobs with two seeds each, and their data."""
    save_folder(dataset, folder / "data")
    for job in ("gru", "lstm"):
        for seed in (1, 2):
            labels = dataset.test.labels
            found = probabilities_of(labels, len(dataset.classes), seed + 10 * len(job))
            run = folder / "runs" / job / str(seed)
            write_run(
                run,
                job=job,
                architecture=job,
                seed=seed,
                num_test=len(labels),
                data="topics",
                dataset_checksum=dataset.checksum,
                **{**scores_of(labels, found), "classes": list(dataset.classes)},
            )
            np.savez(run / "predictions.npz", probabilities=found, labels=labels)
    return folder / "runs"


def test_the_report_shows_every_class(tmp_path: Path) -> None:
    """Names as text, a matrix of nine cells for each job, scores of each class, curves."""
    text, said = write(write_runs(tmp_path, made_up(NAMES)), tmp_path / "out")
    assert said == []
    page = Page(text)
    assert page.open == []
    assert "<b>two" not in text
    for name in NAMES:
        assert f"predicted {name}" in page.text
    assert text.count('class="confusion"') == 2
    assert "Precision and recall" in page.text
    assert "each against the rest" in page.text
    assert SEVERAL_CLASSES in page.text
    assert "ROC curves" in page.text


def test_a_matrix_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """Above twelve classes; precision and recall of each class are there."""
    names = tuple(f"class {i}" for i in range(15))
    text, said = write(write_runs(tmp_path, made_up(names)), tmp_path / "out")
    assert said == []
    assert 'class="confusion"' not in text
    assert all(f">{name}</th>" in text for name in names)


def test_figures_of_several_classes_are_means_over_seeds_and_classes() -> None:
    """Three reviews of three classes, two seeds: one is right, one takes each for the next."""
    labels = np.array([0, 1, 2])
    right = np.full((3, 3), 0.1) + 0.7 * np.eye(3)
    both = np.stack([right, np.roll(right, 1, axis=1)])
    found = Predictions(labels, {"a": both}, NAMES)
    assert mean_confusion(found, "a") == [[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]]


@pytest.mark.parametrize("shape", ["flat", "column", "both"])
def test_two_classes_are_read_in_any_shape(tmp_path: Path, shape: str) -> None:
    """Probabilities of label 1 alone, flat or as a column, or those of both classes."""
    dataset = made_up(("no", "yes"))
    labels = dataset.test.labels
    found = probabilities_of(labels, 2, seed=1)
    given = {"flat": found[:, 1], "column": found[:, 1:], "both": found}[shape]
    scores = scores_of(labels, found[:, 1])
    write_run(tmp_path / "runs/a", **scores | {"dataset_checksum": "b", "job": "a"})
    np.savez(tmp_path / "runs/a/predictions.npz", probabilities=given, labels=labels)
    group = group_runs(scored_runs([tmp_path / "runs"])[0])[0][0]
    read = read_predictions(group, pytest.fail)
    assert read
    assert read.classes == ("negative", "positive")
    np.testing.assert_allclose(read.by_job["a"][0], found, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda labels, found: (labels, found[:, :2]), "should be 0 to 1"),
        (lambda labels, found: (labels, found[:-1]), "labels [120] and probabilities [119, 3]"),
        (lambda labels, found: (labels, found[:, :, None]), "probabilities [120, 3, 1]"),
        (lambda labels, found: (labels, found * 2), "a probability is outside of 0 to 1"),
        (lambda labels, found: (labels, np.roll(found, 1, axis=1)), "result.json says"),
        (
            lambda labels, found: (labels, np.pad(found, [(0, 0), (0, 1)])),
            "it tells other classes apart than the other runs",
        ),
    ],
)
def test_a_run_with_predictions_of_another_shape_is_named(
    tmp_path: Path, change: object, said: str
) -> None:
    """It is left out of curves; the others stay."""
    dataset = made_up(NAMES)
    runs = write_runs(tmp_path, dataset)
    path = runs / "lstm/2/predictions.npz"
    with np.load(path) as arrays:
        labels, found = change(arrays["labels"], arrays["probabilities"])  # type: ignore[operator]
    np.savez(path, labels=labels, probabilities=found)
    lines: list[str] = []
    group = group_runs(scored_runs([runs])[0])[0][0]
    read = read_predictions(group, lines.append)
    assert read
    assert {name: len(of_runs) for name, of_runs in read.by_job.items()} == {"gru": 2, "lstm": 1}
    (line,) = lines
    assert line.startswith(f"no predictions of {runs / 'lstm/2'}: ")
    assert said in line


def test_baselines_tell_several_classes_apart() -> None:
    """Both learn what the words tell, nine times in ten; a class that is missing is named."""
    dataset = made_up(NAMES)
    for fitted in (
        fit(dataset, limit=0, maxlen=0, vocab_size=44),
        score_ngrams(dataset, print, limit=0),
    ):
        assert fitted.accuracy == pytest.approx(0.9, abs=0.03)
        assert fitted.f1 == pytest.approx(0.9, abs=0.03)
        assert fitted.roc_auc is not None
        assert fitted.roc_auc > 0.85
    more = dataclasses.replace(dataset, classes=(*NAMES, "four"))
    with pytest.raises(ValueError, match="none of its training reviews is 'four'"):
        fit(more, limit=0, maxlen=0, vocab_size=44)
    more = dataclasses.replace(more, checksum="another")
    with pytest.raises(InputError, match="none of its training reviews is 'four'"):
        score_ngrams(more, print, limit=0)
