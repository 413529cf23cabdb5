"""`harness sweep show A B`: what two sweeps found, and where they differ."""

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.search_space import load_search
from harness.sweep_report.comparison import compare
from harness.tuning.sweep_dir import SweepDirectory
from tests.conftest import Harness
from tests.tuning.made_up_sweep import HYPERBAND, RANDOM, make_sweep, trial

VALUES = {"model.pooling": "max", "model.units": 32, "train.learning_rate": 0.001}


def two_sweeps(folder: Path) -> list[SweepDirectory]:
    """A random search, and one like it with other units in its best trial and more epochs."""
    first = make_sweep(
        folder / "tune_lstm" / "a",
        RANDOM,
        trial(0, 0.8, values=VALUES, training_s=4000.0),
        trial(1, 0.7, values=VALUES, training_s=3200.0),
        trial(2, None, error="it broke"),
        finished=True,
    )
    second = make_sweep(
        folder / "tune_lstm" / "b",
        RANDOM.replace("epochs = 6", "epochs = 8").replace("[16, 32]", "[16, 64]"),
        trial(0, 0.9, values=VALUES | {"model.units": 64}),
        trial(1, None, worker="w1", values=VALUES | {"model.units": 16}),
    )
    return [first, second]


def shown(sweeps: list[SweepDirectory], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines, with single blanks."""
    compare(sweeps)
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_two_sweeps_stand_next_to_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Best score, trials and time; of values and keys those that differ, and no others."""
    lines = shown(two_sweeps(tmp_path), capsys)
    for line in (
        "found tune_lstm/a tune_lstm/b",
        "best 0.8000 0.9000",
        "finished 2 1",
        "failed 1 0",
        "to do 0 1",
        "training 2h00m 1m01s",
    ):
        assert line in lines
    trials = lines.index("the best trials differ in tune_lstm/a tune_lstm/b")
    searches = lines.index("the searches differ in tune_lstm/a tune_lstm/b")
    assert lines[trials + 1 : searches - 1] == ["model.units 32 64", "train.epochs 6 8"]
    assert [line for line in lines[searches + 1 :] if line] == [
        "train.epochs 6 8",
        "search.space.model.units [16, 32] [16, 64]",
    ]


def test_sources_that_differ_are_told_by_their_checksums(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by all their lines."""
    tmp_path.chmod(0o755)
    sweeps = []
    for name in ("a", "b"):
        (tmp_path / "net.py").write_text(f"def net():\n    return {name!r}\n")
        (tmp_path / "net.py").chmod(0o644)
        search = tmp_path / "tune.toml"
        search.write_text(RANDOM.replace('"lstm"\n', '"net.py:net"\n'))
        sweeps.append(make_sweep(tmp_path / name, load_search(search).to_toml()))
    (line,) = [line.split() for line in shown(sweeps, capsys) if "net.py" in line]
    assert line[0] == "code.net.py"
    assert [len(each) for each in line[1:]] == [8, 8]


def test_names_act_on_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A heading is the name of a folder, which may hold anything; Rich's own codes stay."""
    sweeps = two_sweeps(tmp_path)
    evil = sweeps[1].folder.rename(sweeps[1].folder.with_name("b\x1b[2J\x9b"))
    for variables in ({}, {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        compare([sweeps[0], SweepDirectory(evil)])
        out = capsys.readouterr().out
        assert r"tune_lstm/b\x1b[2J\x9b" in out
        assert "\x1b[2J" not in out
        assert "\x9b" not in out


def test_other_data_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores on other reviews can't be compared."""
    sweeps = two_sweeps(tmp_path)
    sweeps[1].write_json("data.json", {"checksum": "f" * 64})
    lines = shown(sweeps, capsys)
    assert "their data differ, so their scores can't be compared" in lines
    assert any(line.startswith("data.checksum ") for line in lines)


def test_a_sweep_without_a_finished_trial_has_no_best_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cells are empty; two empty sweeps of one search differ in nothing."""
    empty = make_sweep(tmp_path / "h" / "a", HYPERBAND)
    same = make_sweep(tmp_path / "h" / "b", HYPERBAND)
    lines = shown([empty, same], capsys)
    assert "the best trials differ in: nothing" in lines
    assert "the searches differ in: nothing" in lines
    assert "finished 0 0" in lines


def test_a_sweep_named_twice_is_refused(tmp_path: Path) -> None:
    """One line names it."""
    sweeps = two_sweeps(tmp_path)
    with pytest.raises(InputError, match="tune_lstm/a: is named twice"):
        compare([sweeps[0], sweeps[0]])


def test_the_command_compares_several_sweeps(harness: Harness) -> None:
    """`show` of one sweep prints its leaderboard, of two their comparison."""
    folders = [sweep.folder for sweep in two_sweeps(harness.runs)]
    done = harness.run_here("sweep", "show", *folders)
    assert done.returncode == 0, done.stderr
    assert "the searches differ in" in done.stdout
    done = harness.run_here("sweep", "show", folders[0], harness.runs)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
