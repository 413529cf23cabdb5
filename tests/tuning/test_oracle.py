"""Which trials the oracles propose: those of KerasTuner, in the order of its calls."""

import json
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import keras_tuner as kt
import pytest
from keras_tuner.oracles import GridSearchOracle, RandomSearchOracle

from harness.errors import RunError
from harness.job.search import GUIDED, SearchSpec, load_search
from harness.tuning import worker
from harness.tuning.oracle import hyperparameters
from harness.tuning.protocol import Trial
from harness.tuning.schedule import Schedule

SEARCH = """
[model]
architecture = "lstm"
[search]
tuner = "{tuner}"
trials = {trials}
{parallel}
[search.space]
model.architecture = ["lstm", "stacked_lstm"]
model.second_units = {{ values = [4, 8, 16], when = {{ model.architecture = ["stacked_lstm"] }} }}
model.dropout = [0.1, 0.2, 0.3]
"""


def written(folder: Path, tuner: str, trials: int) -> Path:
    path = folder / "search.toml"
    parallel = "parallel = 3" if tuner in GUIDED else ""
    path.write_text(SEARCH.format(tuner=tuner, trials=trials, parallel=parallel))
    return path


def schedule_of(search: SearchSpec, known: Sequence[Trial] = ()) -> Schedule:
    return worker.schedule_of(search, [*known])


def all_of(schedule: Schedule) -> list[Trial]:
    """The trials that are proposed without a result."""
    return list(iter(schedule.next, None))


@pytest.mark.parametrize(
    ("tuner", "kind"), [("grid", GridSearchOracle), ("random", RandomSearchOracle)]
)
def test_random_and_grid_propose_what_keras_tuner_does(
    tmp_path: Path, tuner: str, kind: type[kt.Oracle]
) -> None:
    """All trials before any has ended, where KerasTuner's own has each end before the next."""
    search = load_search(written(tmp_path, tuner, 9))
    alone = kind(
        objective=kt.Objective("val_accuracy", "max"),
        hyperparameters=hyperparameters(search),
        max_trials=9,
        seed=search.table.seed,
    )
    alone._set_project_dir(str(tmp_path), "alone")
    alone.verbose = 0
    expected = []
    while (trial := alone.create_trial("w0")).status == "RUNNING":
        expected.append(dict(trial.hyperparameters.values))
        alone.update_trial(trial.trial_id, {"val_accuracy": 0.5})
        trial.status = "COMPLETED"
        alone.end_trial(trial)
    proposed = [each.values for each in all_of(schedule_of(search))]
    assert proposed == expected
    assert len(proposed) > 6


def test_a_grid_ends_by_itself(tmp_path: Path) -> None:
    """Without a number of trials it proposes every combination once."""
    schedule = schedule_of(load_search(written(tmp_path, "grid", 0)))
    values = [json.dumps(each.values, sort_keys=True) for each in all_of(schedule)]
    assert len(values) == len(set(values)) == 3 + 3 * 3
    assert schedule.is_over


def ended(trial: Trial) -> Trial:
    content = json.dumps(trial.values, sort_keys=True).encode()
    return trial.model_copy(update={"scores": {"val_accuracy": zlib.crc32(content) % 97 / 97}})


@pytest.mark.parametrize(
    ("tuner", "trials"),
    [("random", 9), ("grid", 9), ("bayesian", 9), ("hyperband", 9), ("asha", 9), ("asha", 12)],
)
def test_a_restart_of_any_oracle_goes_on_alike(tmp_path: Path, tuner: str, trials: int) -> None:
    """Replayed from what is known after each trial, it proposes the rest as it would have done.

    There are twelve settings, so asha fails to draw the last ones at random from time to time.
    """
    path = written(tmp_path, tuner, trials)
    whole = proposals(path)
    assert tuner not in ("hyperband", "asha") or any(each.parent is not None for each in whole)
    for num_known in range(0, len(whole), 3):
        assert proposals(path, whole[:num_known]) == whole


def proposals(path: Path, known: Sequence[Trial] = ()) -> list[Trial]:
    """All trials of a search to its end, of which some were proposed before."""
    schedule, found = schedule_of(load_search(path), known), list[Trial]()
    while not schedule.is_over:
        new = all_of(schedule)
        for each in new:
            schedule.offer(ended(each))
        found += new
    return found


@pytest.mark.parametrize("tuner", ["random", "grid", "bayesian", "asha"])
def test_a_search_that_has_ended_goes_on_with_more_trials(tmp_path: Path, tuner: str) -> None:
    """What it proposed stays, and a restart in the middle goes on alike."""
    before = proposals(written(tmp_path, tuner, 4))
    assert tuner != "asha" or before[-1].parent is not None
    path = written(tmp_path, tuner, 9)
    after = proposals(path, before)
    assert after[: len(before)] == before
    assert sum(each.parent is None for each in after) == 9
    for num_known in range(len(before), len(after)):
        assert proposals(path, after[:num_known]) == after


@pytest.mark.parametrize(
    ("epochs", "lengths"), [(9, {1: 9, 3: 6, 9: 2}), (27, {1: 12, 3: 4, 9: 2, 27: 1})]
)
def test_hyperband_goes_on_in_a_space_smaller_than_its_rounds(
    tmp_path: Path, epochs: int, lengths: dict[int, int]
) -> None:
    """There are twelve settings. Its rounds want 9 and 5 of them, with 27 epochs 27 at once."""
    path = written(tmp_path, "hyperband", 0)
    path.write_text(f"{path.read_text()}[train]\nepochs = {epochs}\n")
    whole = proposals(path)
    assert Counter(each.limit for each in whole) == lengths
    for num_known in range(0, len(whole), 3):
        assert proposals(path, whole[:num_known]) == whole


def test_what_another_library_rounds_otherwise_is_taken_as_it_was_made(tmp_path: Path) -> None:
    """Its values are not computed again, also of a trial that became known on the way."""
    path = written(tmp_path, "bayesian", 12)  # random until nine have ended
    path.write_text(path.read_text().replace("0.3]", "0.3, 0.4, 0.5]"))
    whole, known = proposals(path), list[Trial]()
    schedule, found = worker.schedule_of(load_search(path), known), list[Trial]()
    other = {"model.dropout": 0.1 if whole[-1].values["model.dropout"] != 0.1 else 0.2}
    last = whole[-1].model_copy(update={"values": {**whole[-1].values, **other}})
    known += [*whole[:-1], last]
    while not schedule.is_over:
        for each in all_of(schedule):
            found.append(each)
            schedule.offer(ended(each))
    assert [each.values for each in found] == [each.values for each in known]


def test_another_proposal_is_an_error_that_names_both(tmp_path: Path) -> None:
    """Another version of KerasTuner may draw other values."""
    path = written(tmp_path, "grid", 4)
    first = proposals(path)[0].model_copy(update={"values": {"model.dropout": 9.0}})
    with pytest.raises(RunError, match=r"as trial 0, which was \{'model.dropout': 9.0\}; continue"):
        schedule_of(load_search(path), [first]).next()


@pytest.mark.parametrize("module", ["protocol", "disk", "pool", "tune", "sweep_dir"])
def test_a_command_needs_no_tensorflow(module: str) -> None:
    """Its memory is that of Python and a few small libraries."""
    code = (
        f"import sys, harness.tuning.{module}; "
        "assert not {'tensorflow', 'keras', 'keras_tuner', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
