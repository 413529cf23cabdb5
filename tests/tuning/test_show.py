"""What `harness sweep show` says of a sweep: the leaderboard, what mattered, the pictures."""

import io
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from matplotlib.image import imread
from rich.console import Console

from harness.job.search import Parameter, short_names
from harness.tuning.leaderboard import ranked
from harness.tuning.plots import MISSING, SPREAD, axis_of, parallel_coordinates
from harness.tuning.protocol import Trial
from harness.tuning.show import comparable, digits_of, effects_of, leaderboard, scored_trials, show
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import PROJECT
from tests.tuning.made_up_sweep import HYPERBAND, RANDOM, make_sweep, trial

SCORES = {("last", 16): 0.8, ("last", 32): 0.9, ("max", 16): 0.6, ("max", 32): 0.7}


def four_trials() -> list[Trial]:
    """Pooling explains most of the score, the units a part."""
    return [
        trial(
            number,
            score,
            values={"model.pooling": pooling, "model.units": units, "train.learning_rate": 1e-3},
        )
        for number, ((pooling, units), score) in enumerate(SCORES.items())
    ]


def many_trials(count: int) -> list[Trial]:
    return [
        trial(
            number,
            0.5 + number / 100,
            values={
                "model.pooling": "last" if number % 2 else "max",
                "model.units": 16,
                "train.learning_rate": round(1e-4 * (1 + number), 6),
            },
        )
        for number in range(count)
    ]


def test_keys_are_sorted_by_the_share_of_variation_they_explain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eta squared as by hand: 0.04 of 0.05 lie between the poolings, 0.01 between the units."""
    sweep = make_sweep(tmp_path / "s", RANDOM, *four_trials(), finished=True)
    search = sweep.search()
    effects = effects_of(scored_trials(ranked(sweep.trials(), sweep.search()), search), search)
    assert [e.key for e in effects] == ["model.pooling", "model.units"]
    assert [e.explained for e in effects] == pytest.approx([0.8, 0.2])
    assert effects[0].by_chance == pytest.approx(1 / 3)
    assert [label for label, _ in effects[0].groups] == ["last", "max"]
    assert [scores.sum() for _, scores in effects[0].groups] == pytest.approx([1.7, 1.3])
    show(sweep)
    said = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "pooling 80 % 33 % last 2 0.8500 0.9000" in lines
    assert "max 2 0.6500 0.7000" in lines
    assert "Hints, no proof: 4 trials" in said


def test_a_range_falls_into_three_bins_of_equal_count(tmp_path: Path) -> None:
    """Nine rates, however far apart, make three threes; equal values are never parted."""
    rates = (1e-4, 1.1e-4, 1.2e-4, 2e-4, 3e-4, 4e-4, 1e-3, 5e-3, 1e-2)
    trials = [
        trial(i, 0.5 + i / 100, values={"train.learning_rate": rate})
        for i, rate in enumerate(rates)
    ]
    sweep = make_sweep(tmp_path / "log", RANDOM, *trials)
    (effect,) = effects_of(
        scored_trials(ranked(sweep.trials(), sweep.search()), sweep.search()), sweep.search()
    )
    assert [len(scores) for _, scores in effect.groups] == [3, 3, 3]
    assert [label for label, _ in effect.groups] == [
        *("0.0001 to 0.00012", "0.0002 to 0.0004", "0.001 to 0.01")
    ]
    dropouts = (0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.6)
    trials = [
        trial(i, 0.5 + i / 100, values={"model.dropout": rate}) for i, rate in enumerate(dropouts)
    ]
    sweep = make_sweep(tmp_path / "step", HYPERBAND, *trials)
    (effect,) = effects_of(
        scored_trials(ranked(sweep.trials(), sweep.search()), sweep.search()), sweep.search()
    )
    assert [label for label, _ in effect.groups] == ["0.1", "0.2", "0.3 to 0.6"]


def test_of_hyperband_only_trials_of_one_length_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The most common number of epochs counts, and the report says so; another tuner's all do."""
    lengths = (1, 1, 1, 1, 3, 3, 9)
    trials = [
        trial(i, 0.5 + i / 100, epochs=epochs, values={"model.dropout": 0.3})
        for i, epochs in enumerate(lengths)
    ]
    sweep = make_sweep(tmp_path / "h", HYPERBAND, *trials)
    found = scored_trials(ranked(sweep.trials(), sweep.search()), sweep.search())
    assert sorted(comparable(found, sweep.search()).index) == [0, 1, 2, 3]
    even = found.loc[[0, 1, 4, 5]]
    assert {*comparable(even, sweep.search())["epochs"]} == {3}
    trials = [
        trial(i, 0.5 + i / 100, epochs=n, values={"model.dropout": 0.1 + i / 10})
        for i, n in enumerate((1, 1, 1, 3))
    ]
    sweep = make_sweep(tmp_path / "i", HYPERBAND, *trials)
    show(sweep)
    assert "these are the 3 of 4 with the most common one" in capsys.readouterr().out
    random = make_sweep(tmp_path / "r", RANDOM, *trials)
    assert len(comparable(found, random.search())) == len(found)


def test_the_leaderboard_in_a_file_has_whole_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best ten with every value, how many more there are, and each error once."""
    out_of_memory = "the device is out of memory; lower train.batch_size or data.maxlen, or so"
    sweep = make_sweep(
        tmp_path / "s",
        RANDOM,
        *many_trials(13),
        trial(13, None, error=out_of_memory),
        trial(14, None, error=out_of_memory),
        trial(15, None, worker="w1", values={"model.units": 32}),
    )
    show(sweep)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "13 finished, 2 failed, 1 running, 0 waiting of 24 trials"
    first = next(line for line in lines if line.split()[:1] == ["1"])
    assert first.split() == [
        *("1", "12", "finished", "0.6200", "max", "16", "0.0013", "3", "1m01s")
    ]
    assert sum(" finished " in line for line in lines) == 10
    assert f"and 4 more in {sweep.path('leaderboard.csv')}" in lines
    assert f"failed: trials 13, 14: {out_of_memory}" in lines


def test_a_key_named_as_a_column_has_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The epochs that were searched over are not those that a trial trained."""
    toml = RANDOM.replace("model.units = [16, 32]", "train.epochs = [4, 8]")
    values = {"model.pooling": "max", "train.epochs": 8, "train.learning_rate": 1e-3}
    show(make_sweep(tmp_path / "s", toml, trial(0, 0.8, values=values, epochs=3)))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    head = next(index for index, line in enumerate(lines) if "rank" in line)
    shown = dict(zip(lines[head], lines[head + 1], strict=True))
    assert (shown["train.epochs"], shown["epochs"]) == ("8", "3")


def test_where_all_trials_failed_none_is_said_to_be_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first trial there is none."""
    show(make_sweep(tmp_path / "a", RANDOM, trial(0, None, error="too large")))
    assert "no trial has finished, all have failed" in capsys.readouterr().out.splitlines()
    show(make_sweep(tmp_path / "b", RANDOM))
    assert "no trial has begun yet" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("scores", "digits"),
    [
        ([], 4),
        ([0.5, 0.5], 4),
        ([0.5, 0.50004], 5),
        ([0.5, 0.5 + 1e-16], 4),
        ([0.1, None, 0.10000001], 8),
    ],
)
def test_a_score_has_the_digits_that_tell_trials_apart(
    scores: list[float | None], digits: int
) -> None:
    """Four at least; trials of one score need no more."""
    assert digits_of(scores) == digits


def test_the_leaderboard_fits_a_narrow_terminal(tmp_path: Path) -> None:
    """Where the table is wider the values of a trial stand in one cell, and none is cut."""
    sweep = make_sweep(tmp_path / "s", RANDOM, *many_trials(3))
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    for part in leaderboard(sweep, sweep.search(), ranked(sweep.trials(), sweep.search()), console):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 60
    for value in ("pooling=max", "units=16", "learning_rate=0.0003", "0.5200"):
        assert any(value in line for line in lines), value


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(0, None)],
        [trial(0, None, error="it broke")],
        [trial(0, 0.7, values={"model.pooling": "last"})],
        [trial(0, float("nan"), values={"model.pooling": "last"})],
        [trial(0, 0.7), trial(1, 0.7), trial(2, 0.7)],
    ],
)
def test_a_sweep_is_shown_as_far_as_it_is(
    tmp_path: Path, trials: list[Trial], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first trial, after a failed one, or after too few, the rest is told."""
    sweep = make_sweep(tmp_path / "s", RANDOM, *trials)
    show(sweep)
    said = capsys.readouterr()
    assert "unfinished: not begun; continue with: harness resume" in said.out
    finished = sum(each.status == "finished" for each in trials)
    assert ("too early to say" in said.out) == (finished < 3)
    assert ("no key had several values" in said.out) == (finished == 3)
    drawn = sorted(path.name for path in sweep.folder.glob("*.png"))
    scored = [t for t in trials if math.isfinite(t.scores.get("val_accuracy", math.nan))]
    assert drawn == (["parallel_coordinates.png"] if scored else [])


def test_the_picture_is_drawn_beside_and_says_what_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The PNG can be read, nothing else is left, and other scores give another picture."""
    pictures = []
    for place in range(2):
        trials = many_trials(12 + place)
        sweep = make_sweep(tmp_path / str(place), RANDOM, *trials)
        before = {path.name for path in sweep.folder.iterdir()}
        show(sweep)
        (new,) = {path.name for path in sweep.folder.iterdir()} - before
        assert imread(sweep.path(new)).shape[0] >= 300
        assert f"picture      {sweep.path(new)}" in capsys.readouterr().out
        pictures.append(sweep.path(new).read_bytes())
    assert pictures[0] != pictures[1]


def test_a_picture_that_cant_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is there all the same."""
    sweep = make_sweep(tmp_path / "s", RANDOM, *four_trials())
    sweep.path("parallel_coordinates.png").mkdir()
    show(sweep)
    said = capsys.readouterr()
    assert "parallel_coordinates.png: can't be written" in said.err
    assert "pooling" in said.out


def test_axes_are_as_the_space_is() -> None:
    """A log range is logarithmic, a list evenly spaced by name, and a missing value lies below."""
    log = Parameter("train.learning_rate", low=1e-4, high=1e-2, log=True)
    rate = axis_of(log, "rate", pandas.Series([1e-3]))
    assert rate.heights == pytest.approx([0.5])
    assert [text for _, text in rate.ticks] == ["0.0001", "0.001", "0.01"]
    linear = Parameter("model.dropout", low=0.1, high=0.6)
    assert axis_of(linear, "dropout", pandas.Series([0.35])).heights == pytest.approx([0.5])
    pooling = Parameter("model.pooling", ("last", "max", "mean"))
    names = axis_of(pooling, "pooling", pandas.Series(["last", "max", "mean", None], dtype=object))
    assert names.heights == pytest.approx([0, 0.5, 1, MISSING], abs=SPREAD / 2)
    assert names.ticks[-1] == (MISSING, "none")


def test_a_dollar_sign_in_a_value_is_no_mathematics() -> None:
    """Two of them would begin and end some, which `_$` is not."""
    name = Parameter("model.embeddings", ("$a_$", "$b"))
    columns = {"score": [n / 9 for n in range(9)], "epochs": 1}
    trials = pandas.DataFrame({**columns, name.key: [name.choices[n % 2] for n in range(9)]})
    table = SimpleNamespace(objective="val_accuracy")
    search: Any = SimpleNamespace(
        space=[name], name="s", goal="max", continues_trials=False, table=table
    )
    assert parallel_coordinates(trials, search)


def test_a_key_has_its_short_name_unless_two_would() -> None:
    """`model.units` is units; two keys of one name stay whole."""
    assert short_names(["model.units", "model.seed", "train.seed"]) == {
        "model.units": "units",
        "model.seed": "model.seed",
        "train.seed": "train.seed",
    }


@pytest.mark.full
def test_showing_needs_no_tensorflow(tmp_path: Path) -> None:
    """`harness sweep show` and `best` answer at once: they import neither it nor Keras."""
    sweep: SweepDirectory = make_sweep(tmp_path / "s", RANDOM, *four_trials())
    words = (
        "import sys; from harness.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
    )
    words += "assert not {'tensorflow', 'keras', 'keras_tuner'} & set(sys.modules)"
    for command, said in (("show", "what mattered"), ("best", "tune_lstm_best")):
        done = subprocess.run(
            [sys.executable, "-c", words, "sweep", command, sweep.folder],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
