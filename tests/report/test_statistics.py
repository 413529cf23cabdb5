"""Differences between jobs, whose intervals are those of textbooks; predictions in files."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.report.collect import DatasetGroup, ScoredRun
from harness.report.statistics import differences, explanations, read_arrays

LSTM = {1: 88.10, 2: 88.30, 3: 88.20, 4: 88.15, 5: 88.40}
BILSTM = {1: 88.30, 2: 88.42, 3: 88.36, 4: 88.31, 5: 88.52}
NOISY = {1: 87.10, 2: 89.60, 3: 88.00, 4: 87.20, 5: 89.90}


def group_of(**rows: Mapping[int, float]) -> DatasetGroup:
    """Return rows with these accuracies by seed, in per cent."""
    runs = {
        name: [ScoredRun(Path(name), name, "lstm", n, a / 100, {}, {}) for n, a in by_seed.items()]
        for name, by_seed in rows.items()
    }
    return DatasetGroup("IMDB", "a", 0, False, 25_000, runs)


def compared(group: DatasetGroup) -> list[Any]:
    """Return the rows of `differences`."""
    return [*differences(group).itertuples()]


def points(*shares: float) -> Any:
    """Return shares in points of accuracy, for a comparison with a tolerance."""
    return pytest.approx([100 * each for each in shares], abs=1e-9)


def test_the_interval_of_one_pair_is_scipys() -> None:
    """Two jobs get the interval of the paired t test."""
    (only,) = compared(group_of(lstm=LSTM, bilstm=BILSTM))
    expected = stats.ttest_rel([*BILSTM.values()], [*LSTM.values()]).confidence_interval(0.95)
    assert (only.first, only.second) == ("bilstm", "lstm")
    assert [expected.low, expected.high] == points(only.low, only.high)
    assert only.sentence == (
        f"bilstm is better than lstm by {100 * only.mean:.2f} points, 95 % interval "
        f"{expected.low:.2f} to {expected.high:.2f}, over 5 seeds"
    )


def test_many_pairs_widen_each_interval() -> None:
    """The intervals of six comparisons have the level 1 - 0.05 / 6, and a line says so."""
    rnn = {1: 80.0, 2: 81.0, 3: 83.0, 4: 80.5, 5: 82.0}
    group = group_of(lstm=LSTM, bilstm=BILSTM, noisy=NOISY, rnn=rnn)
    found = differences(group)
    assert len(found) == 6
    pair = found.set_index(["first", "second"]).loc[("bilstm", "lstm")]
    test = stats.ttest_rel([*BILSTM.values()], [*LSTM.values()])
    expected = test.confidence_interval(1 - 0.05 / 6)
    assert [expected.low, expected.high] == points(pair.low, pair.high)
    assert "comparisons for Bonferroni's correction: 6." in explanations(group, found)[0]


def test_a_difference_that_is_not_shown() -> None:
    """If the interval contains 0, the sentence calls neither job better."""
    (only,) = compared(group_of(lstm=LSTM, noisy=NOISY))
    assert not only.is_shown
    assert only.sentence.startswith("the runs do not show which of noisy and lstm is better")


def test_equal_differences_have_no_interval() -> None:
    """Equal differences show no spread; a t interval of width 0 would be too sure."""
    (only,) = compared(group_of(one={1: 80.1, 2: 80.2}, other={1: 80.0, 2: 80.1}))
    assert (math.isnan(only.low), only.is_shown) == (True, False)
    assert only.sentence.endswith("or the difference is the same at every seed")


def test_equal_means_are_no_lead() -> None:
    """The sentence names no leader, with or without an interval."""
    (only,) = compared(group_of(one={1: 80.0, 2: 81.0}, other={1: 80.0, 2: 81.0}))
    assert only.sentence.startswith("the means of one and other are equal, over 2 seeds; no int")
    (only,) = compared(group_of(one={1: 80.0, 2: 82.0}, other={1: 81.0, 2: 81.0}))
    assert only.sentence.startswith("the runs do not show which of one and other is better; their ")


def test_only_common_seeds_are_compared() -> None:
    """Two jobs need at least two common seeds."""
    (only,) = compared(group_of(lstm=LSTM, other={4: 87.0, 5: 87.1, 6: 99.0}))
    assert (only.num_seeds, points(only.mean)) == (2, [1.225])
    group = group_of(lstm=LSTM, other={5: 87.1, 6: 99.0})
    assert differences(group).empty
    assert explanations(group, differences(group))[0].endswith("fewer than two seeds: 1.")


def many(means: Sequence[float]) -> DatasetGroup:
    """Return jobs with these mean accuracies and a deviation of 0.1 points over five seeds."""
    values = np.random.default_rng(7).normal(means, 0.1, size=(5, len(means))).T
    return group_of(**{f"row{n}": dict(enumerate(each)) for n, each in enumerate(values)})


def test_many_jobs_are_compared_with_the_best() -> None:
    """Every other job has one difference; all intervals use the pooled spread of the jobs."""
    group = many([88.0, *[87.0] * 5, *[87.7] * 14])
    found = differences(group)
    assert len(found) == 19
    assert {*found["first"]} == {"row0"}
    assert {f"row{n}" for n in range(1, 6)} <= {*found["second"][found["is_shown"]]}
    assert "comparisons for Bonferroni's correction: 190." in explanations(group, found)[0]
    (margin,) = {*(found["high"] - found["mean"]).round(9)}
    pooled = statistics.fmean(group.jobs["deviation"] ** 2)
    expected = stats.t.ppf(1 - 0.05 / 190 / 2, 80) * (pooled * 2 / 5) ** 0.5
    assert margin == pytest.approx(expected)
    tukey = stats.studentized_range.ppf(0.95, 20, 80) / 2**0.5 * (pooled * 2 / 5) ** 0.5
    assert tukey < margin < 1.1 * tukey


@pytest.mark.parametrize(("num", "is_pooled"), [(12, False), (13, True)])
def test_the_spread_is_pooled_from_thirteen_jobs_on(num: int, is_pooled: bool) -> None:
    """Up to twelve jobs are compared in pairs over common seeds."""
    group = many([80.0 + n for n in range(num)])
    spread = explanations(group, differences(group))[0].partition("standard deviation for all jobs")
    assert bool(spread[1]) == is_pooled


@pytest.mark.parametrize("second", [{}, {2: 89.0}, {2: 80.0}])
def test_many_jobs_of_one_seed_have_no_interval(second: dict[int, float]) -> None:
    """A second seed of one job does not help, and the sentence gives the reason."""
    rows = {f"row{n}": {1: 80.0 + n / 10} for n in range(14)}
    found = differences(group_of(**{**rows, "row0": {**rows["row0"], **second}}))
    assert found["low"].isna().all()
    assert found["sentence"].str.contains("no interval: too few seeds").all()


def test_several_seeds_are_advised() -> None:
    """One seed per job gives no interval."""
    groups = [group_of(a={1: 88.0}), group_of(a={1: 87.9, 2: 88.1})]
    lines = [explanations(group, differences(group)) for group in groups]
    assert lines == [["No job has two seeds, so there is no interval: train with --seeds 1-5."], []]


# Predictions of reviews

LABELS = np.arange(120) % 3


def write_predictions(folder: Path, labels: np.ndarray, found: np.ndarray) -> Path:
    np.savez(folder / "predictions.npz", labels=labels, probabilities=found)
    return folder / "predictions.npz"


def test_two_classes_are_read_in_any_shape(tmp_path: Path) -> None:
    """A file may contain the probabilities of label 1, flat or as a column, or of both classes."""
    labels, found = LABELS % 2, np.random.default_rng(1).dirichlet([1, 1], len(LABELS))
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
    labels = LABELS if num_reviews else LABELS[:0]
    path = write_predictions(tmp_path, labels, np.full((num_reviews, num_classes), 0.25))
    said = f"has the shape {(num_reviews, num_classes)}, but should have ({max(len(labels), 1)}, 3)"
    with pytest.raises(ValueError, match=re.escape(said)):
        read_arrays(path, 3)
