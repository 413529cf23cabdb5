"""Reports over jobs with other seeds, texts with words of their own, and broken predictions."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.report.html import _words, write_comparison
from harness.report.statistics import BROKEN, margin_over_reviews, read_arrays
from tests.made_up_runs import write_scored_run
from tests.report.small_data import small_data
from tests.report.test_html import parts_of, predictions_of, runs  # noqa: F401 - a fixture


def test_many_jobs_are_compared_over_reviews_with_their_own_seeds(
    runs: Path,  # noqa: F811 - the fixture
) -> None:
    """Where the spread is that of all jobs, two of them may share no seed."""
    (part,) = parts_of(runs)
    (only,) = part.differences
    alone = {name: [each[n]] for n, (name, each) in enumerate(part.group.runs.items())}
    pooled, group = replace(only, is_pooled=True), replace(part.group, runs=alone)
    margin = margin_over_reviews(pooled, group, predictions_of(runs))
    assert margin is not None
    assert np.isfinite(margin)


def test_a_word_of_a_test_review_alone_is_shown_as_unknown(tmp_path: Path) -> None:
    """It has no rank among the words of the training reviews."""
    dataset = small_data(tmp_path / "data")
    words = _words(dataset, 0)
    first = min(words, key=dataset.vocab.index)
    cut = replace(dataset, vocab=dataset.vocab[: dataset.vocab.index(first) + 1])
    assert _words(cut, 0) == [word if word == first else "<unknown>" for word in words]
    assert {*_words(cut, 0)} == {first, "<unknown>"}


def test_half_of_a_character_ends_no_report(tmp_path: Path) -> None:
    """A name of somebody else's may hold one; it is shown in words, in pictures too."""
    dataset = small_data(tmp_path / "data")
    for seed in (1, 2):
        folder = tmp_path / "runs" / str(seed)
        odd = {"architecture": "lstm", "data": "d\ud800", "embeddings_checksum": f"{seed}\ud800"}
        write_scored_run(folder, dataset, [True] * 60, seed=seed, job="a\ud800", **odd)
    parts = parts_of(tmp_path / "runs")
    page = write_comparison(tmp_path / "out", parts, [], data=None, say=print).read_text()
    assert "a\\ud800" in page


def broken_archives() -> Iterator[bytes]:
    """What NumPy refuses by an error of each kind."""
    file = io.BytesIO()
    np.save(file, [0.5])
    yield file.getvalue()  # an array alone
    yield b"\x93NUMPY\x01\x00\x02\x00{("  # of half a header
    file = io.BytesIO()
    np.savez(file, labels=[1], probabilities=[0.5])
    for flags in (b"\x01\x00\x00\x00", b"\x00\x00\x63\x00"):  # with a password; compressed oddly
        at = file.getvalue().index(b"PK\x01\x02") + 8
        yield file.getvalue()[:at] + flags + file.getvalue()[at + 4 :]


@pytest.mark.parametrize("content", [*broken_archives()], ids=range(4))
def test_broken_predictions_are_told_from_those_of_a_run(tmp_path: Path, content: bytes) -> None:
    """However they are broken: one run of many should not end a comparison."""
    (tmp_path / "predictions.npz").write_bytes(content)
    with pytest.raises(BROKEN):
        read_arrays(tmp_path / "predictions.npz")
