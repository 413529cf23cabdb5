"""With which search a sweep goes on, and what its trials show of their runs."""

import json
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.search_space import load_search
from harness.tuning.sweep_dir import gather
from tests.tuning.made_up_sweep import RANDOM, make_sweep


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


def test_a_finished_trial_shows_the_figures_of_its_runs(tmp_path: Path) -> None:
    """The time of both seeds' runs, the mean of their best epochs; of a running trial nothing."""
    text = RANDOM.replace("trials = 24", 'trials = 24\nexecutions = 2\ntie_break = "val_f1"')
    sweep = make_sweep(tmp_path / "sweep", text)
    search = sweep.search()
    figures = {"num_epochs": 6, "parameters": 99}
    for number, seed in enumerate(search.seeds()):
        run = sweep.trial_run("0000", seed)
        run.folder.mkdir(parents=True)
        result = {"training_s": 10.5 + number, "kept_epoch": 2 + number, "val_f1": 0.2 + number / 2}
        run.path("result.json").write_text(json.dumps(result | figures))
    common = {"trial": "0000", "score": 0.5, "values": {}, "worker": None, "error": None}
    trials = [common | {"status": status} for status in ("finished", "running")]
    finished, running = gather(sweep, search, {"trials": trials})
    assert (finished.training_s, finished.kept_epoch) == (22.0, 2.5)
    assert finished.tie == pytest.approx(-0.45)  # the highest F1 is first
    assert (finished.epochs, finished.parameters) == (6, 99)
    assert {running.training_s, running.kept_epoch, running.epochs, running.parameters} == {None}
