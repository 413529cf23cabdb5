"""What the pictures draw: the numbers of the tables."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from harness.report.collect import group_runs, scored_runs
from harness.report.plots import pictures_of
from harness.report.summary import make_parts
from tests.report.made_up_runs import write_run


def test_bars_are_the_intervals_of_the_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the mean to either end of the table's interval, over training time and over size."""
    for seed, accuracy in enumerate((0.86, 0.87, 0.88), 1):
        write_run(tmp_path / str(seed), seed=seed, accuracy=accuracy)
    (part,) = make_parts(group_runs(scored_runs([tmp_path])[0])[0])
    drawn = []
    errorbar = Axes.errorbar

    def record(axes: Axes, x: float, y: float, margin: float, **style: Any) -> object:
        drawn.append((x, y - margin, y + margin))
        return errorbar(axes, x, y, margin, **style)

    monkeypatch.setattr(Axes, "errorbar", record)
    pictures_of(part, None)
    (result,) = part.group.results
    assert drawn == [(at, *map(pytest.approx, result.interval or ())) for at in (10.0, 8320)]
