"""`harness sweep show`: leaderboard, importance of keys, plot."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from matplotlib.image import imread

from harness.job.search import Parameter, short_names
from harness.tuning.leaderboard import (
    MISSING,
    PLOT,
    SPREAD,
    axis_of,
    comparable,
    compare,
    digits_of,
    effects,
    parallel_coordinates,
    scored_trials,
    show,
)
from harness.tuning.protocol import Trial
from tests.conftest import PROJECT
from tests.made_up_runs import write_run
from tests.tuning.made_up_sweep import HYPERBAND, RANDOM, make_sweep, trial

UNKNOWN = "the importance of keys is unknown: "


def scored(n: int, score: float, pooling: str, units: int = 16, rate: float = 1e-3) -> Trial:
    values = {"model.pooling": pooling, "model.units": units, "train.learning_rate": rate}
    return trial(n, score, values=values)


# The scores depend mostly on the pooling, and a little on the units.
SCORES = {("last", 16): 0.8, ("last", 32): 0.9, ("max", 16): 0.6, ("max", 32): 0.7}
FOUR = [scored(n, score, *values) for n, (values, score) in enumerate(SCORES.items())]
MANY = [
    scored(n, 0.5 + n / 100, "last" if n % 2 else "max", rate=round(1e-4 * (1 + n), 6))
    for n in range(13)
]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that `show` printed, with single blanks."""
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_importance_is_eta_squared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand, the poolings explain 0.04 of the sum of squares of 0.05, and the units 0.01."""
    sweep = make_sweep(tmp_path / "s", RANDOM, *FOUR, finished=True)
    found = scored_trials(sweep.trials(), sweep.search())
    assert {*effects(found.assign(score=0.5), sweep.search())["explains"]} == {0}
    table = effects(found, sweep.search())
    assert [*table["key"]] == ["model.pooling"] * 2 + ["model.units"] * 2
    assert [*table["explains"]] == pytest.approx([0.8, 0.8, 0.2, 0.2])
    assert [*table["by chance"]] == pytest.approx([1 / 3] * 4)
    assert [*table["mean"]] == pytest.approx([0.85, 0.65, 0.7, 0.8])
    show(sweep)
    lines = printed(capsys)
    assert "pooling 80 % 33 % last 2 0.8500 0.9000" in lines
    assert "max 2 0.6500 0.7000" in lines
    assert any(line.startswith("The table gives hints, not proof: 4 of 4 trials") for line in lines)


def test_sweeps_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table shows the results of each sweep, and only settings in which the sweeps differ.

    The training time of a trial that continues another one contains the time of the other one.
    """
    continued = FOUR[0].model_copy(update={"n": 1, "parent": 0, "training_s": 90.0})
    failed = trial(4, None, error="too large", worker="w")
    other = RANDOM.replace("epochs = 6", "epochs = 7")
    compare(
        [
            make_sweep(tmp_path / "a", RANDOM, *FOUR, failed, finished=True),
            make_sweep(tmp_path / "b", other, FOUR[0], continued),
            make_sweep(tmp_path / "c", RANDOM),
        ]
    )
    assert printed(capsys) == [
        f"sweep {tmp_path}/a {tmp_path}/b {tmp_path}/c",
        "best score 0.9000 0.8000",
        "best trial 1 0",
        "trials finished 4 2 0",
        "trials failed 1 0 0",
        "training time 4m04s 1m30s 0s",
        "train.epochs 6 7 6",
        "best.model.pooling last last",
        "best.model.units 32 16",
        "best.train.learning_rate 0.001 0.001",
    ]


@pytest.mark.parametrize(
    ("rates", "bins"),
    [
        (
            (1e-4, 1.1e-4, 1.2e-4, 2e-4, 3e-4, 4e-4, 1e-3, 5e-3, 1e-2),
            {"0.0001 to 0.00012": 3, "0.0002 to 0.0004": 3, "0.001 to 0.01": 3},
        ),
        ((1e-4, 2e-4, 3e-4, 3e-4, 4e-4), {"0.0001 to 0.0002": 2, "0.0003": 2, "0.0004": 1}),
        ((16, 64, 64, 64), {"16": 1, "64": 3}),
        ((1e-4,) * 9 + (2e-4, 3e-4, 4e-4), {"0.0001": 9, "0.0002 to 0.0004": 3}),
        ((0.001, 0.001, 0.001), {}),
    ],
)
def test_a_range_is_divided_into_thirds(
    tmp_path: Path, rates: tuple[float, ...], bins: dict[str, int]
) -> None:
    """The thirds have equal numbers of trials, but equal values stay together: one may be empty."""
    trials = [
        trial(n, 0.5 + n / 100, values={"train.learning_rate": rate})
        for n, rate in enumerate(rates)
    ]
    search = make_sweep(tmp_path / "s", RANDOM).search()
    table = effects(scored_trials(trials, search), search)
    assert dict(zip(table.get("value", ()), table.get("n", ()), strict=True)) == bins


def test_only_trials_of_one_length_are_compared(tmp_path: Path) -> None:
    """The most common length counts, in a tie the longer one; random search compares all trials."""
    trials = [trial(n, 0.5, epochs=epochs) for n, epochs in enumerate((1, 1, 1, 1, 3, 3, 9))]
    search = make_sweep(tmp_path / "h", HYPERBAND).search()
    found = scored_trials(trials, search)
    assert sorted(comparable(found, search).index) == [0, 1, 2, 3]
    assert {*comparable(found.loc[[0, 1, 4, 5]], search)["epochs"]} == {3}
    random = make_sweep(tmp_path / "r", RANDOM).search()
    assert len(comparable(found, random)) == 7


def test_the_leaderboard_in_a_file_has_whole_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table has the best ten trials, the number of other trials, and one line per error.

    A line names the plot; a plot that can't be written causes one line.
    """
    out_of_memory = "the device is out of memory; lower train.batch_size or data.maxlen, or so"
    sweep = make_sweep(
        tmp_path / "s",
        RANDOM,
        *MANY,
        trial(13, None, error=out_of_memory),
        trial(14, None, error=out_of_memory),
        trial(15, None, worker="w1", values={"model.units": 32}),
    )
    show(sweep)
    lines = printed(capsys)
    assert lines[1] == "13 finished, 1 running, 0 waiting, 2 failed of 24 trials"
    assert "1 12 finished 0.6200 3 1m01s pooling=max units=16 learning_rate=0.0013" in lines
    assert sum(" finished " in line for line in lines) == 10
    assert f"and 4 more trials, listed in {sweep.path('leaderboard.csv')}" in lines
    assert f"failed trials 13, 14: {out_of_memory}" in lines
    assert f"plot: {sweep.path(PLOT)}" in lines
    assert imread(sweep.path(PLOT)).shape[0] == 480
    sweep.path(PLOT).unlink()
    sweep.path(PLOT).mkdir()
    show(sweep)
    output = capsys.readouterr()
    assert f"{PLOT}: can't be written" in output.err
    assert "pooling" in output.out


@pytest.mark.parametrize(
    ("trials", "lines"),
    [
        ([], {"no trial has finished", f"{UNKNOWN}it needs at least 3"}),
        ([trial(0, None)], {"1 waiting", "0 waiting units=16"}),
        ([trial(0, None, error="it broke")], {"no trial has finished"}),
        ([trial(0, float("nan"), values={"model.pooling": "last"})], {"0 finished nan"}),
        ([trial(n, 0.7) for n in range(3)], {f"{UNKNOWN}it needs at least 3"}),
    ],
)
def test_an_unfinished_sweep_is_shown(
    tmp_path: Path, trials: list[Trial], lines: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The sweep may have no trial, only a waiting or failed trial, or too few trials."""
    sweep = make_sweep(tmp_path / "s", RANDOM, *trials)
    show(sweep)
    text = "\n".join(printed(capsys))
    assert "unfinished (not begun); to continue the sweep or to add workers, run: " in text
    assert all(line in text for line in lines)
    has_score = any(each.scores.get("val_accuracy", 0) > 0 for each in trials)
    assert sweep.path(PLOT).exists() == has_score


def test_decimals_of_scores() -> None:
    """There are at least four decimals, and enough to distinguish different scores."""
    assert digits_of([]) == digits_of([0.5, 0.5 + 1e-16]) == 4
    assert digits_of([0.5, 0.50004]) == 5
    assert digits_of([0.1, 0.10000001]) == 8


def test_axes_of_keys() -> None:
    """An axis is a logarithmic range, a linear range, or a list with the missing value below it."""
    log = Parameter("train.learning_rate", low=1e-4, high=1e-2, log=True)
    heights, ticks = axis_of(log, pandas.Series([1e-3]))
    assert [*heights] == pytest.approx([0.5])
    assert [text for _, text in ticks] == ["0.0001", "0.001", "0.01"]
    linear = Parameter("model.dropout", low=0.1, high=0.6)
    assert [*axis_of(linear, pandas.Series([0.35]))[0]] == pytest.approx([0.5])
    pooling = Parameter("model.pooling", ("last", "max", "mean"))
    heights, ticks = axis_of(pooling, pandas.Series(["last", "max", "mean", None], dtype=object))
    assert [*heights] == pytest.approx([0, 0.5, 1, MISSING], abs=SPREAD / 2)
    assert ticks[-1] == (MISSING, "none")


def test_a_dollar_sign_in_a_value_starts_no_formula(tmp_path: Path) -> None:
    """The plot shows the value as it is."""
    search = make_sweep(tmp_path / "s", RANDOM).search()
    search = replace(search, space=(Parameter("model.units", ("$a_$", "$b")),))
    one = [trial(0, 0.7, values={"model.units": "$b"})]
    assert parallel_coordinates(scored_trials(one, search), search)


@pytest.mark.parametrize(("epochs", "names"), [((1, 3), ["epochs"]), ((3, 3), [])])
def test_the_number_of_epochs_has_an_axis_if_it_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: tuple[int, int], names: list[str]
) -> None:
    """Hyperband trains some trials for fewer epochs."""
    search = make_sweep(tmp_path / "h", HYPERBAND).search()
    values = {"model.architecture": "stacked_lstm", "model.second_units": 8, "model.dropout": 0.3}
    trials = [trial(n, 0.7, values=values, epochs=num) for n, num in enumerate(epochs)]
    labels: list[str] = []

    def read(figure: Any) -> bytes:
        labels.extend(each.get_text() for each in figure.axes[0].get_xticklabels())
        return b""

    monkeypatch.setattr("harness.tuning.leaderboard.png", read)
    parallel_coordinates(scored_trials(trials, search), search)
    assert [name for name in labels if name == "epochs"] == names


def test_short_names() -> None:
    """`model.units` becomes `units`; keys with the same last part keep their full names."""
    names = short_names(["model.units", "model.seed", "train.seed"])
    assert [*names.values()] == ["units", "model.seed", "train.seed"]


@pytest.mark.full
def test_commands_import_no_large_library(tmp_path: Path) -> None:
    """`compare`, `show` and `best` answer at once, and `tune` needs little memory on a login node.

    Only `show`, which draws a plot, imports Matplotlib.
    """
    sweep = make_sweep(tmp_path / "s", RANDOM, *FOUR)
    for seed in (1, 2):
        write_run(tmp_path / "lstm" / str(seed), seed=seed)
    program = (
        "import sys, harness.tuning.tune; from harness.cli.main import app\n"
        "def run(*words): app(words, standalone_mode=False)\n"
        "run('compare', sys.argv[2], '--baseline=none')\n"
        "assert 'matplotlib' not in sys.modules\n"
        "for name in ('show', 'best'): run('sweep', name, sys.argv[1])\n"
        "assert not {'tensorflow', 'keras', 'keras_tuner', 'sklearn'} & {*sys.modules}"
    )
    words = [sys.executable, "-c", program, str(sweep.folder), str(tmp_path / "lstm")]
    subprocess.run(words, cwd=PROJECT, timeout=60, check=True)
