"""The folder of a sweep: its begin, its continuation, its leaderboard and result."""

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


@pytest.mark.parametrize(
    ("before", "now", "continues"),
    [(2, 2, True), (2, 3, True), (2, 0, True), (0, 0, True), (3, 2, False), (0, 8, False)],
)
def test_a_sweep_continues_with_as_many_trials_or_more(
    tmp_path: Path, before: int, now: int, continues: bool
) -> None:
    """0 means all trials, so no number is larger."""
    grid = RANDOM.replace("{ min = 0.0001, max = 0.01, log = true }", "[0.001, 0.01]")
    grid = grid.replace('tuner = "random"\ntrials = 24', 'tuner = "grid"\ntrials = {}')
    sweep = make_sweep(tmp_path / "sweep", grid.replace("{}", str(before)))
    (tmp_path / "now.toml").write_text(grid.replace("{}", str(now)))
    search = load_search(tmp_path / "now.toml")
    if continues:
        sweep.check_search(search)
    else:
        with pytest.raises(InputError, match=f"search.trials = {now}: was {before or 'all'} "):
            sweep.check_search(search)


def test_parallel_is_fixed_when_a_sweep_begins(tmp_path: Path) -> None:
    """A later command may leave it out, and may not change it."""
    guided = RANDOM.replace('"random"', '"bayesian"')
    text = guided.replace("trials = 24", "trials = 24\nparallel = {}")
    sweep = make_sweep(tmp_path / "sweep", text.replace("{}", "8"))
    (tmp_path / "open.toml").write_text(guided)
    (tmp_path / "six.toml").write_text(text.replace("{}", "6"))
    request = load_search(tmp_path / "open.toml")
    sweep.check_search(request)
    with pytest.raises(InputError, match=r"\(search.parallel was 8 and is 6\)"):
        sweep.check_search(load_search(tmp_path / "six.toml"))
    assert settled(request, 3).table.parallel == 6
    assert settled(sweep.search(), 3).table.parallel == 8
    (tmp_path / "random.toml").write_text(RANDOM)
    assert settled(load_search(tmp_path / "random.toml"), 3).table.parallel == 0


def test_the_result_has_the_best_trial_and_the_number_of_failed_trials(tmp_path: Path) -> None:
    """Without a finished trial there is an error, with the first error of a trial."""
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


def test_the_line_of_an_ended_trial() -> None:
    """Its score or its error, and its values."""
    search = load_search(JOBS / "tune_lstm.toml")
    finished = trial(3, 0.81234, values={"model.units": 8, "train.learning_rate": 0.001})
    assert describe(finished, search) == (
        "trial 3: val_accuracy 0.8123; model.units = 8, train.learning_rate = 0.001"
    )
    failed = trial(4, None, values={"model.units": 8}, error="no room")
    assert describe(failed, search) == "trial 4: failed: no room; model.units = 8"


def test_the_leaderboard_has_all_trials(tmp_path: Path) -> None:
    """Finished, running, waiting and failed; no cell is a spreadsheet's formula."""
    trials = [
        trial(0, 0.5, values={"model.units": 16, "train.learning_rate": 0.1 + 0.2}),
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
    assert lines[1].endswith(",16,0.3,3,2.0,61.0,1000,,,0/1")
    assert lines[2].endswith(",w1,,")
    assert lines[4].endswith(",too large,1/1")
    assert b",'=cmd|A1," in leaderboard_csv([trial(0, None, error="=cmd|A1")], sweep.search())


def test_three_failures_are_alike_apart_from_numbers() -> None:
    """Two of one kind are too few."""
    errors = ("no room for 3.5 GB", "no room for 4 GB", "it broke", "")
    trials = [trial(n, None, error=error) for n, error in enumerate(errors)]
    assert same_failure(trials) == ""
    assert same_failure([*trials, trial(9, None, error="no room for 5 GB")]) == errors[0]


def begun(folder: Path) -> SweepDirectory:
    sweep = SweepDirectory(folder)
    sweep.begin(load_search(JOBS / "tune_lstm.toml"), open_sample())
    return sweep


def test_only_the_first_command_begins_a_sweep(tmp_path: Path) -> None:
    """In an empty folder, which a program may have reserved."""
    (tmp_path / "runs/a").mkdir(parents=True)
    first = begun(tmp_path / "runs/a").path("search.toml").stat()
    assert begun(tmp_path / "runs/a").path("search.toml").stat().st_ino == first.st_ino
    search = load_search(JOBS / "tune_lstm.toml")
    assert not [*SweepDirectory.open(tmp_path / "runs/a").search().changes(search)]
    assert not list((tmp_path / "runs").glob(".*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_a_sweep_of_another_user_is_refused(tmp_path: Path) -> None:
    """By one line that names the owner."""
    folder = begun(tmp_path / "runs/a").folder
    os.chown(folder, 12345, -1)
    with pytest.raises(InputError, match="belongs to 12345, and only its owner may write it"):
        begun(folder)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    """It remains unchanged."""
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/notes.txt").touch()
    with pytest.raises(InputError, match=r"holds no search.toml, .* choose another --sweep-id"):
        begun(tmp_path / "runs/a")
    assert [path.name for path in (tmp_path / "runs/a").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOSYS, 0])
def test_a_disk_that_cannot_create_a_name_once_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It has no room, it can't rename, or its rename replaces a non-empty folder (0)."""
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if number:
            raise OSError(number, os.strerror(number), str(path))
        shutil.rmtree(target, ignore_errors=True)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(DiskError, match=r"choose another --runs") as refused:
        begun(tmp_path / "runs/a")
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "runs").iterdir())


def test_a_search_is_cancelled_once(tmp_path: Path) -> None:
    """The file names user and machine; a second cancel leaves it unchanged."""
    sweep = begun(tmp_path / "runs/a")
    stop_search_in(sweep.folder)
    before = sweep.path("stop.json").stat().st_ino
    stop_search_in(sweep.folder)
    stop = Stop.of(sweep.read_json("stop.json"))
    assert stop
    assert (" on " in stop.by, stop.reason) == (True, "")
    assert sweep.path("stop.json").stat().st_ino == before
