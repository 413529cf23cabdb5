"""The pictures show the numbers of the tables."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from harness.report.collect import group_runs, scored_runs
from harness.report.plots import pictures_of
from harness.report.statistics import read_predictions
from harness.report.summary import make_parts
from tests.made_up_runs import write_run, write_scored_run
from tests.report.small_data import small_data


def test_bars_are_the_intervals_of_the_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds over training time and over size. The axis has room for a marker at zero."""
    for seed, accuracy in enumerate((0.86, 0.97, 0.98), 1):  # the interval is cut at 100 %
        write_run(tmp_path / str(seed), seed=seed, accuracy=accuracy)
    (part,) = make_parts(group_runs(scored_runs([tmp_path])[0])[0])
    drawn, plots = [], []
    errorbar = Axes.errorbar

    def record(axes: Axes, x: float, y: float, bars: Any, **style: Any) -> object:
        ((below,), (above,)) = bars
        drawn.append((x, y - below, y + above))
        plots.append(axes)
        return errorbar(axes, x, y, bars, **style)

    monkeypatch.setattr(Axes, "errorbar", record)
    pictures_of(part.group, (), None)
    ends = part.group.jobs.loc["lstm", ["interval_low", "interval_high"]]
    assert drawn == [(at, *map(pytest.approx, 100 * ends)) for at in (10.0, 8320)]
    assert all(axes.get_xlim()[0] <= -0.04 * axes.get_xlim()[1] for axes in plots)


def test_odd_names_of_jobs(tmp_path: Path) -> None:
    """Matplotlib reads a dollar as mathematics, and hides labels that begin with an underscore."""
    dataset = small_data(tmp_path / "data")
    for name in ("$^a_$", "_b"):
        write_scored_run(tmp_path / name, dataset, [True] * 60, job=name)
        (part,) = make_parts(group_runs(scored_runs([tmp_path / name])[0])[0])
        assert len(pictures_of(part.group, (), read_predictions(part.group, print))) > 3
