"""Fixtures for the tests of baselines."""

from pathlib import Path

import pytest

from harness.report.collect import DatasetGroup, group_runs, scored_runs
from tests.made_up_runs import write_scored_run
from tests.report.small_data import small_data


@pytest.fixture
def no_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the data and the cache of this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.delenv("HARNESS_DATA", raising=False)


@pytest.fixture
def group(tmp_path: Path) -> DatasetGroup:
    """A group of one run on a small dataset."""
    dataset = small_data(tmp_path / "data")
    write_scored_run(tmp_path / "runs" / "a", dataset, [True] * 60)
    return group_runs(scored_runs([tmp_path / "runs"])[0])[0][0]
