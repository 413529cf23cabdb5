"""The pictures show the numbers of the tables."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from harness.report.collect import group_runs, scored_runs
from harness.report.plots import pictures_of
from harness.report.statistics import epochs_of, read_predictions
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


def test_accuracy_over_time(tmp_path: Path) -> None:
    """A curve shows the best accuracy so far after each validation, averaged over the seeds."""
    for seed, accuracies in enumerate(([0.80, 0.845, 0.83], [0.84, 0.835, 0.851]), 1):
        folder = tmp_path / str(seed)
        write_run(folder, seed=seed)
        lines: dict[str, list[dict[str, float]]] = {
            "metrics.jsonl": [
                {"epoch": i, "val_accuracy": each} for i, each in enumerate(accuracies, 1)
            ],
            "timings.jsonl": [{"epoch": i, "epoch_s": 10, "validation_s": 1} for i in (1, 2, 3)],
        }
        for name, content in lines.items():
            (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in content))
    (part,) = make_parts(group_runs(scored_runs([tmp_path])[0])[0])
    epochs = epochs_of(part.group.runs["lstm"])
    assert epochs["seconds"].tolist() == [11.0, 22.0, 33.0] * 2
    assert epochs["best"].tolist() == pytest.approx([0.8, 0.845, 0.845, 0.84, 0.84, 0.851])
    (picture,) = (e for e in pictures_of(part.group, (), None) if "over time" in e.title)
    assert "lstm 84.80% after 33 s" in picture.alt


def test_without_the_time_of_an_epoch_there_is_no_curve(tmp_path: Path) -> None:
    """An interrupted write leaves such incomplete times."""
    write_run(tmp_path / "1")
    for name, line in (("metrics", '"val_accuracy": 0.8'), ("timings", '"epoch_s": 3')):
        (tmp_path / "1" / f"{name}.jsonl").write_text(f'{{"epoch": 2, {line}}}\n')
    (part,) = make_parts(group_runs(scored_runs([tmp_path])[0])[0])
    assert epochs_of(part.group.runs["lstm"])[["seconds", "best"]].isna().all(axis=None)
    assert not [each for each in pictures_of(part.group, (), None) if "over time" in each.title]
