"""With which search a sweep goes on."""

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.search_space import load_search
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
