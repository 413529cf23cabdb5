"""Reports over jobs with other seeds, and over texts with words of their own."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.report.html import _words
from harness.report.predictions import margin_over_reviews
from harness.report.significance import PooledDifference
from tests.report.small_data import small_data
from tests.report.test_html import parts_of, predictions_of, runs  # noqa: F401 - a fixture


def test_many_jobs_are_compared_over_reviews_with_their_own_seeds(
    runs: Path,  # noqa: F811 - the fixture
) -> None:
    """Where the spread is that of all jobs, two of them may share no seed."""
    (only,) = parts_of(runs)[0].differences
    one, other = (
        replace(each, runs=(each.runs[n],)) for n, each in enumerate((only.first, only.second))
    )
    assert not {*one.by_seed} & {*other.by_seed}
    pooled = PooledDifference(one, other, (one.mean - other.mean,), 1, 1.0, 9)
    margin = margin_over_reviews(pooled, predictions_of(runs))
    assert margin is not None
    assert np.isfinite(margin)


def test_a_word_of_a_test_review_alone_is_shown_as_unknown(tmp_path: Path) -> None:
    """It has no rank among the words of the training reviews."""
    dataset = small_data(tmp_path / "data")
    cut = replace(dataset, vocab=dataset.vocab[:1])
    assert _words(cut, 0) == [
        word if word == dataset.vocab[0] else "<unknown>" for word in _words(dataset, 0)
    ]
    assert "<unknown>" in _words(cut, 0)
