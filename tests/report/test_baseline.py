"""The baseline: the same reviews, cut as the runs cut them, and kept in the cache."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline

from harness.data.dataset import make_split
from harness.report.baseline import baselines, count_words, fit
from harness.report.collect import DatasetGroup
from harness.tracking.run_dir import stamped
from tests.report.small_data import small_data

pytestmark = pytest.mark.usefixtures("no_other_data")


def test_words_are_counted_where_the_networks_read() -> None:
    """The last tokens with the start and the unknown counted in, which are no words."""
    split = make_split([[1, 2, 2, 1, 9], [1]], [1, 0])
    # Encoded for 8 indices: 1 4 5 5 4 2, and 1 4.
    assert count_words(split, 8, 0).toarray().tolist() == [[2, 2, 0, 0], [1, 0, 0, 0]]
    assert count_words(split, 8, 3).toarray().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert count_words(split, 8, 1).toarray().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]


def test_it_learns_what_the_words_tell(tmp_path: Path, group: DatasetGroup) -> None:
    """Whole reviews tell nine labels in ten; their last three tokens tell nothing."""
    said: list[str] = []
    last, whole = baselines(group, tmp_path / "data", said.append)
    assert (last.name, whole.name) == ("tf-idf, last 3", "tf-idf, whole")
    assert whole.accuracy == pytest.approx(0.9)
    assert last.accuracy < 0.75
    assert (whole.parameters, said) == (5, [])
    assert "fit on all 60 training reviews" in last.note


def test_it_is_what_scikit_learn_makes_of_the_words(tmp_path: Path) -> None:
    """The loss is that of scikit-learn's own pipeline on the reviews as text."""
    dataset = small_data(tmp_path)
    texts = {
        name: [
            " ".join(f"word{rank}" for rank in split.tokens[first:end])
            for first, end in itertools.pairwise(split.offsets)
        ]
        for name, split in dataset.splits().items()
    }
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=1.0))
    model.fit(texts["train"], dataset.train.labels)
    loss = log_loss(dataset.test.labels, model.predict_proba(texts["test"])[:, 1])
    assert fit(dataset, limit=0, maxlen=0, vocab_size=9).log_loss == pytest.approx(loss, abs=1e-4)


def test_the_second_time_it_comes_from_the_cache(
    tmp_path: Path, group: DatasetGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the data the same figures are given again; a broken cache is not believed."""
    first = baselines(group, tmp_path / "data", print)
    (tmp_path / "data").rename(tmp_path / "away")

    def never(*_: Any) -> None:
        pytest.fail("fit again")

    with monkeypatch.context() as patched:
        patched.setattr("harness.report.baseline.fit", never)
        assert baselines(group, None, print) == first
    cached = sorted((tmp_path / "cache" / "harness" / "baseline").iterdir())
    assert [path.suffix for path in cached] == [".json"] * 2
    for broken in ("{", "[]", '{"maxlen": 3}', '{"accuracy": "x"}'):
        cached[0].write_text(broken)
        said: list[str] = []
        assert baselines(group, None, said.append) == []
        assert "not found here" in said[0]
    again = baselines(group, tmp_path / "away", print)
    assert [each.accuracy for each in again] == [each.accuracy for each in first]


def test_it_is_found_where_the_runs_found_it(tmp_path: Path, group: DatasetGroup) -> None:
    """Without a word on where the data are, the runs' own record names the folder."""
    record = tmp_path / "runs" / "a" / "provenance.json"
    record.write_text(json.dumps(stamped({"dataset": {"folder": f"{tmp_path}/data"}})))
    assert len(baselines(group, None, print)) == 2


def test_other_data_are_never_taken_for_these(tmp_path: Path, group: DatasetGroup) -> None:
    """A dataset of another checksum gives no baseline, and one line says so."""
    small_data(tmp_path / "other", num=40)
    said: list[str] = []
    assert baselines(group, tmp_path / "other", said.append) == []
    assert len(said) == 1


def test_one_class_alone_teaches_nothing(tmp_path: Path) -> None:
    """Training reviews of one class are refused in words."""
    dataset = small_data(tmp_path / "data")
    places = np.flatnonzero(dataset.train.labels == dataset.train.labels[0])
    first_other = int(np.setdiff1d(np.arange(60), places)[0])
    with pytest.raises(ValueError, match="none of its training reviews is '"):
        fit(dataset, limit=first_other, maxlen=0, vocab_size=8)
