"""The TF-IDF baseline reads the tokens of the networks, and is cached."""

import itertools
import json
from pathlib import Path

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


def test_words_are_counted_in_the_tokens_of_the_networks() -> None:
    """Start and unknown tokens count towards `maxlen`, but not as words."""
    split = make_split([[1, 2, 2, 1, 9], [1]], [1, 0])
    # With a vocab_size of 8, the tokens are 1 4 5 5 4 2 and 1 4.
    assert count_words(split, 8, 0).toarray().tolist() == [[2, 2, 0, 0], [1, 0, 0, 0]]
    assert count_words(split, 8, 3).toarray().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    assert count_words(split, 8, 1).toarray().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]


def test_it_equals_a_pipeline_of_scikit_learn(tmp_path: Path) -> None:
    """The pipeline reads the reviews as text."""
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


def test_the_cache_replaces_the_data(tmp_path: Path, group: DatasetGroup) -> None:
    """The cached scores need no data. A broken file in the cache counts as missing."""
    first = baselines(group, tmp_path / "data", print)
    last, whole = first
    assert (last.name, whole.name) == ("tf-idf, last 3", "tf-idf, whole")
    assert whole.accuracy == pytest.approx(0.9)  # the first word shows nine of ten labels
    assert last.accuracy < 0.75
    assert "fit on all 60 training reviews" in last.note
    (tmp_path / "data").rename(tmp_path / "away")
    assert baselines(group, None, print) == first
    cached = sorted((tmp_path / "cache" / "harness" / "baseline").iterdir())
    assert [path.suffix for path in cached] == [".json"] * 2
    for broken in ("{", "[]", '{"accuracy": "x"}'):
        cached[0].write_text(broken)
        said: list[str] = []
        assert baselines(group, None, said.append) == []
        assert "not found here" in said[0]
    again = baselines(group, tmp_path / "away", print)
    assert [each.accuracy for each in again] == [each.accuracy for each in first]


def test_it_is_found_where_the_runs_found_it(tmp_path: Path, group: DatasetGroup) -> None:
    """Without `--data`, the baseline reads the folder in the record of a run."""
    record = tmp_path / "runs" / "a" / "provenance.json"
    record.write_text(json.dumps(stamped({"dataset": {"folder": f"{tmp_path}/data"}})))
    assert len(baselines(group, None, print)) == 2


def test_data_with_another_checksum_are_not_used(tmp_path: Path, group: DatasetGroup) -> None:
    """One line says that there is no baseline."""
    small_data(tmp_path / "other", num=40)
    said: list[str] = []
    assert baselines(group, tmp_path / "other", said.append) == []
    assert len(said) == 1
