"""Reports over odd names, and broken predictions."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.report.html import write_comparison
from harness.report.statistics import BROKEN, read_arrays
from tests.made_up_runs import write_scored_run
from tests.report.small_data import small_data
from tests.report.test_html import parts_of


def test_half_of_a_character_ends_no_report(tmp_path: Path) -> None:
    """A name of somebody else's may hold one; it is shown in words, in pictures too."""
    dataset = small_data(tmp_path / "data")
    for seed in (1, 2):
        folder = tmp_path / "runs" / str(seed)
        odd = {"architecture": "lstm", "data": "d\ud800", "embeddings_checksum": f"{seed}\ud800"}
        write_scored_run(folder, dataset, [True] * 60, seed=seed, job="a\ud800", **odd)
    parts = parts_of(tmp_path / "runs")
    page = write_comparison(tmp_path / "out", parts, [], say=print).read_text()
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
