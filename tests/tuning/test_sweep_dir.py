"""With which search a sweep goes on, and what its trials show of their runs."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from harness.data.sources import open_sample
from harness.errors import DiskError, InputError, RunError
from harness.job.search import load_search
from harness.tuning.disk import stop_search_in
from harness.tuning.leaderboard import describe, leaderboard_csv, result_of, same_failure
from harness.tuning.protocol import Stop
from harness.tuning.sweep_dir import SweepDirectory
from harness.tuning.tune import settled
from tests.conftest import JOBS
from tests.tuning.made_up_sweep import RANDOM, make_sweep, trial


def with_trials(path: Path, number: int) -> Path:
    """A grid search of at most so many trials, 0 for all."""
    text = RANDOM.replace('tuner = "random"\ntrials = 24', f'tuner = "grid"\ntrials = {number}')
    path.write_text(text.replace("{ min = 0.0001, max = 0.01, log = true }", "[0.001, 0.01]"))
    return path


@pytest.mark.parametrize(
    ("before", "now", "goes_on"),
    [
        *((2, 2, True), (2, 3, True), (2, 0, True), (0, 0, True)),
        *((2, 1, False), (3, 2, False), (0, 1, False), (0, 8, False)),
    ],
)
def test_a_sweep_goes_on_with_as_many_trials_or_more(
    tmp_path: Path, before: int, now: int, goes_on: bool
) -> None:
    """0 stands for all of them, so from it no number goes on."""
    sweep = make_sweep(tmp_path / "sweep", with_trials(tmp_path / "a.toml", before).read_text())
    search = load_search(with_trials(tmp_path / "b.toml", now))
    if goes_on:
        sweep.check_search(search)
    else:
        with pytest.raises(InputError, match=f"search.trials = {now}: was {before or 'all'} "):
            sweep.check_search(search)


def test_a_parallel_that_was_decided_stays_unless_another_is_asked_for(tmp_path: Path) -> None:
    """The sweep was begun with eight; a command that leaves it open goes on, one with six can't."""
    guided = RANDOM.replace('"random"', '"bayesian"')
    text = guided.replace("trials = 24", "trials = 24\nparallel = 8")
    sweep = make_sweep(tmp_path / "sweep", text)
    (tmp_path / "open.toml").write_text(guided)
    (tmp_path / "six.toml").write_text(guided.replace("trials = 24", "trials = 24\nparallel = 6"))
    request = load_search(tmp_path / "open.toml")
    sweep.check_search(request)
    with pytest.raises(InputError, match=r"\(search.parallel was 8 and is 6\)"):
        sweep.check_search(load_search(tmp_path / "six.toml"))
    assert settled(request, 3).table.parallel == 6
    assert settled(sweep.search(), 3).table.parallel == 8
    (tmp_path / "random.toml").write_text(RANDOM)
    search = load_search(tmp_path / "random.toml")
    assert settled(search, 3).table.parallel == 0


def test_a_result_names_the_best_trial_and_counts_those_that_failed(tmp_path: Path) -> None:
    """Without a finished one there is none, and the first error says why."""
    failed = trial(2, None, error="it broke")
    trials = [trial(0, 0.7), trial(1, 0.8, values={"model.units": 16}), failed]
    sweep = make_sweep(tmp_path / "sweep", RANDOM)
    result = result_of(sweep, sweep.search(), trials)
    assert (result["num_trials"], result["num_failed"], result["trials"]) == (3, 1, 24)
    assert (result["best_trial"], result["best_score"]) == (1, 0.8)
    assert result["best_values"] == {"model.units": "16"}
    for none, why in (([failed], "it broke"), ([], "there were none")):
        with pytest.raises(RunError, match=f"no trial finished: {why}"):
            result_of(sweep, sweep.search(), none)


def test_a_trial_that_has_ended_is_told_with_its_values() -> None:
    """By its score, or by its error."""
    search = load_search(JOBS / "tune_lstm.toml")
    finished = trial(3, 0.81234, values={"model.units": 8, "train.learning_rate": 0.001})
    assert describe(finished, search) == (
        "trial 3: val_accuracy 0.8123; model.units = 8, train.learning_rate = 0.001"
    )
    failed = trial(4, None, values={"model.units": 8}, error="no room")
    assert describe(failed, search) == "trial 4: failed: no room; model.units = 8"


def test_the_leaderboard_shows_each_trial(tmp_path: Path) -> None:
    """Of a running one nothing but its worker, of a waiting one nothing, of a failed one why."""
    trials = [
        trial(0, 0.5, values={"model.units": 16, "model.dropout": 0.1 + 0.2}),
        trial(1, None, error="too\nlarge"),
        trial(2, None, worker="w1"),
        trial(3, None),
    ]
    sweep = make_sweep(tmp_path / "sweep", RANDOM, *trials)
    assert sweep.trials() == trials
    text = leaderboard_csv(trials, sweep.search())
    lines = text.decode().splitlines()
    assert lines[0].startswith("rank,trial,status,val_accuracy,model.pooling,model.units,train.l")
    assert [line.split(",")[:4] for line in lines[1:]] == [
        *(["1", "0", "finished", "0.5"], ["", "2", "running", ""]),
        *(["", "3", "waiting", ""], ["", "1", "failed", ""]),
    ]
    assert lines[1].endswith(",3,2.0,61.0,1000,,,0/1")
    assert lines[2].endswith(",w1,,")
    assert lines[4].endswith(",too large,1/1")
    assert b",'=cmd|A1," in leaderboard_csv([trial(0, None, error="=cmd|A1")], sweep.search())


def test_three_failures_are_alike_whatever_numbers_they_name() -> None:
    """Two of a kind are none, nor are three of three kinds."""
    errors = ("no room for 3.5 GB", "no room for 4 GB", "it broke", "")
    trials = [trial(n, None, error=error) for n, error in enumerate(errors)]
    assert same_failure(trials) == ""
    assert same_failure([*trials, trial(9, None, error="no room for 5 GB")]) == errors[0]


def begun(folder: Path) -> SweepDirectory:
    sweep = SweepDirectory(folder)
    sweep.begin(load_search(JOBS / "tune_lstm.toml"), open_sample())
    return sweep


def test_of_commands_that_begin_at_once_one_does(tmp_path: Path) -> None:
    """The others find the search that it began; a folder that a program reserved is filled."""
    search = load_search(JOBS / "tune_lstm.toml")
    (tmp_path / "runs/a").mkdir(parents=True)
    made = [SweepDirectory(tmp_path / "runs/a").begin(search, open_sample()) for _ in range(3)]
    assert made == [True, False, False]
    assert not [*SweepDirectory.open(tmp_path / "runs/a").search().changes(search)]
    assert not list((tmp_path / "runs").glob(".*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_another_users_sweep_is_refused(tmp_path: Path) -> None:
    """In one line, before anything is written."""
    folder = begun(tmp_path / "runs/a").folder
    os.chown(folder, 12345, -1)
    with pytest.raises(InputError, match="belongs to 12345, and only its owner may write it"):
        begun(folder)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    """Whatever it is, it stays."""
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/notes.txt").touch()
    with pytest.raises(InputError, match=r"holds no search.toml, .* choose another --sweep-id"):
        begun(tmp_path / "runs/a")
    assert [path.name for path in (tmp_path / "runs/a").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("how", ["no room", "no rename", "replaces"])
def test_a_disk_on_which_no_name_can_be_made_once_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """In one line; nothing is left there."""
    numbers = {"no room": errno.ENOSPC, "no rename": errno.ENOSYS}
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if how in numbers:
            raise OSError(numbers[how], os.strerror(numbers[how]), str(path))
        shutil.rmtree(target, ignore_errors=True)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DiskError, match=r"choose another --runs") as refused:
        begun(tmp_path / "runs/a")
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "runs").iterdir())


def test_a_search_is_stopped_once_and_says_by_whom(tmp_path: Path) -> None:
    """A second cancel changes nothing."""
    sweep = begun(tmp_path / "runs/a")
    for _ in range(2):
        stop_search_in(sweep.folder)
    stop = Stop.of(sweep.read_json("stop.json"))
    assert stop
    assert (" on " in stop.by, stop.reason) == (True, "")
