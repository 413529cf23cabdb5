"""Own texts of several classes: their order, their number, and what is refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.data.dataset import SPLITS
from harness.data.own_texts import describe, open_source
from harness.data.sources import open_data
from harness.data.vocabulary import tokenize
from harness.errors import InputError
from tests.data.made_up_texts import make_rows, write_csv
from tests.data.test_text_dataset import job_of, texts_of


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def starred(num: int, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Texts with these labels in turn."""
    return [(text, labels[i % len(labels)]) for i, (text, _) in enumerate(make_rows(num))]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("5", "1", "3", "2", "4"), ("1", "2", "3", "4", "5")),
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("2nd", "10th", "Alpha", "beta"), ("10th", "2nd", "Alpha", "beta")),
        (("neg", "neutral", "pos"), ("neg", "neutral", "pos")),
    ],
)
def test_several_classes_have_an_order(
    tmp_path: Path, labels: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    """That of the numbers where all are numbers, else of the alphabet; every label is right."""
    rows = starred(240, labels)
    dataset = open_source(write_csv(tmp_path / "a.csv", rows))
    assert (dataset.classes, dataset.num_outputs) == (classes, len(classes))
    label_of = {tuple(tokenize(text)): label for text, label in rows}
    found = [
        (words, classes[label])
        for split in dataset.splits().values()
        for words, label in zip(texts_of(dataset, split), split.labels.tolist(), strict=True)
    ]
    # A word that only the test split has is not known.
    known = [(words, label) for words, label in found if "?" not in words]
    assert len(known) > 180
    assert all(label_of[words] == label for words, label in known)
    assert f"{len(classes)} classes: 0 {classes[0]}, 1 {classes[1]}, 2" in dataset.introduction
    counts = [line for line in describe(dataset) if line.startswith("train")]
    assert all(f"% {name}" in counts[0] for name in classes)
    # From the cache as well.
    assert open_source(tmp_path / "a.csv").classes == classes


def test_a_thousand_classes_are_the_most(tmp_path: Path) -> None:
    """More seem to be no classes at all."""
    labels = [f"c{i}" for i in range(1000)]
    rows = [(text, label, "train") for text, label in starred(2000, labels)]
    rows += [(f"{text} too", label, "test") for text, label in starred(20, labels)]
    header = ("text", "label", "split")
    dataset = open_source(write_csv(tmp_path / "a.csv", rows, header))
    assert dataset.num_outputs == 1000
    assert "and 990 more, the rarest 2 reviews" in "\n".join(describe(dataset))
    with pytest.raises(InputError, match="more than 1,000 classes"):
        open_source(write_csv(tmp_path / "b.csv", [*rows, ("x", "one more", "train")], header))


def test_a_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    """The test split may lack a rare one of several; two classes must be in both."""
    for folder, splits in (("one", ("abc", "ab")), ("two", ("ab", "abc"))):
        for name, labels in zip(SPLITS, splits, strict=True):
            write_csv(tmp_path / folder / f"{name}.csv", starred(60, labels))
    assert open_source(tmp_path / "one").classes == ("a", "b", "c")
    with pytest.raises(InputError, match="none of the 60 training reviews is 'c'"):
        open_source(tmp_path / "two")
    # Nor the part of it that is trained on.
    rows = [*starred(120, "ab"), *[(f"late {text}", "c") for text, _ in make_rows(3)]]
    job = job_of(write_csv(tmp_path / "a.csv", rows), "data.limit=20")
    with pytest.raises(
        InputError, match=r"none of the 16 training reviews is 'c', with data.limit"
    ):
        open_data(job, None)
