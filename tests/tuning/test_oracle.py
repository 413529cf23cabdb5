"""The proposals of every tuner: equal to KerasTuner's, independent of restarts and real time."""

import json
from collections import Counter
from pathlib import Path

import keras_tuner as kt
import pytest
from keras_tuner.oracles import GridSearchOracle, RandomSearchOracle

from harness.errors import RunError
from harness.job.search import GUIDED, load_search
from harness.tuning.oracle import hyperparameters
from harness.tuning.protocol import Trial
from tests.tuning.driver import all_of, drive, offer, schedule_of

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


def text(tuner: str, trials: int) -> str:
    parallel = "parallel = 3" if tuner in GUIDED else ""
    return SEARCH.format(tuner=tuner, trials=trials, parallel=parallel)


@pytest.mark.parametrize(
    ("tuner", "kind"), [("grid", GridSearchOracle), ("random", RandomSearchOracle)]
)
def test_random_and_grid_propose_the_trials_of_keras_tuner(
    tmp_path: Path, tuner: str, kind: type[kt.Oracle]
) -> None:
    """The tuners propose all trials at once; KerasTuner's oracle waits for each trial's end."""
    schedule = schedule_of(tmp_path, text(tuner, 9))
    alone = kind(
        objective=kt.Objective("val_accuracy", "max"),
        hyperparameters=hyperparameters(load_search(tmp_path / "search.toml")),
        max_trials=9,
        seed=schedule.oracle.seed,
    )
    alone._set_project_dir(str(tmp_path), "alone")
    alone.verbose = 0
    expected = []
    while (trial := alone.create_trial("w0")).status == "RUNNING":
        expected.append(dict(trial.hyperparameters.values))
        alone.update_trial(trial.trial_id, {"val_accuracy": 0.5})
        trial.status = "COMPLETED"
        alone.end_trial(trial)
    proposed = [each.values for each in all_of(schedule)]
    assert proposed == expected
    assert len(proposed) > 6


def test_a_grid_without_a_limit_proposes_every_combination_once(tmp_path: Path) -> None:
    """An inactive key adds no combinations. A condition may mix integers and floats."""
    schedule = schedule_of(tmp_path, text("grid", 0))
    values = [json.dumps(each.values, sort_keys=True) for each in all_of(schedule)]
    assert len(values) == len(set(values)) == 3 + 3 * 3
    assert schedule.is_over
    toml = f"""{text("grid", 0).partition("model.architecture = [")[0]}
model.dropout = [0, 0.5]
model.spatial_dropout = {{ values = [0, 0.5], when = {{ model.dropout = [0, 0.5] }} }}
"""
    assert len(all_of(schedule_of(tmp_path, toml))) == 2 * 2


@pytest.mark.parametrize(
    ("key", "low", "high", "step", "values"),
    [
        ("model.dropout", 0.1, 0.6, 0.1, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
        ("model.dropout", 0.3, 0.6, 0.1, [0.3, 0.4, 0.5, 0.6]),
        ("model.dropout", 0, 0.5, 0.2, [0.0, 0.2, 0.4]),
        ("train.learning_rate", 1, 3, 1, [1.0, 2.0, 3.0]),
        ("model.units", 8, 20, 5, [8, 13, 18]),
    ],
)
@pytest.mark.parametrize("tuner", ["grid", "random"])
def test_a_range_with_a_step_has_all_its_values(
    tmp_path: Path, tuner: str, key: str, low: float, high: float, step: float, values: list[float]
) -> None:
    """The maximum is a value if it is a whole number of steps above the minimum."""
    space = f"{key} = {{ min = {low}, max = {high}, step = {step} }}\n"
    toml = text(tuner, 20).partition("model.architecture = [")[0] + space
    proposed = [each.values[key] for each in all_of(schedule_of(tmp_path, toml))]
    assert [float(f"{value:.6g}") for value in sorted(proposed)] == values
    assert {type(value) for value in proposed} == {type(value) for value in values}


@pytest.mark.parametrize("tuner", ["random", "grid", "bayesian", "hyperband", "asha"])
def test_booleans_stay_booleans(tmp_path: Path, tuner: str) -> None:
    """A trial's job accepts the booleans, also as the condition of another key."""
    toml = f"""{text(tuner, 30)}data.bucket = [false, true]
model.pooling = {{ values = ["max", "mean"], when = {{ data.bucket = [true] }} }}
train.optimizer_options.centered = [true]
"""
    schedule = schedule_of(tmp_path, toml)
    search, trials = load_search(tmp_path / "search.toml"), drive(schedule)
    for each in trials:
        search.job_of(each.values)
        assert ("model.pooling" in each.values) is each.values["data.bucket"]
    assert {json.dumps(each.values["data.bucket"]) for each in trials} == {"true", "false"}


@pytest.mark.parametrize(
    ("tuner", "trials", "lengths"),
    [
        *(("random", 9, {}), ("grid", 9, {}), ("bayesian", 9, {}), ("asha", 9, {})),
        ("asha", 12, {}),  # the random draws of the last settings sometimes fail
        ("hyperband", 0, {1: 9, 3: 6, 9: 2}),  # the rounds need 9 and 5 settings
        ("hyperband", 0, {1: 12, 3: 4, 9: 2, 27: 1}),  # the first round needs 27 settings
    ],
)
def test_a_restart_of_any_oracle_proposes_the_same_trials(
    tmp_path: Path, tuner: str, trials: int, lengths: dict[int, int]
) -> None:
    """A restart replays the known trials. No tuner tries one of the twelve settings twice.

    Hyperband continues in a space smaller than its rounds; some trials are longer than others.
    """
    toml = f"{text(tuner, trials)}[train]\nepochs = {max(lengths, default=6)}\n"
    whole = drive(schedule_of(tmp_path, toml))
    assert tuner not in ("hyperband", "asha") or any(each.parent is not None for each in whole)
    settings = [str(sorted(each.values.items())) for each in whole if each.parent is None]
    if tuner == "hyperband":
        assert Counter(each.limit for each in whole) == lengths
    else:
        assert len(set(settings)) == len(settings) == trials
    for num_known in range(0, len(whole), 3):
        assert drive(schedule_of(tmp_path, toml, whole[:num_known])) == whole


def test_the_width_limits_trials_that_run_virtually(tmp_path: Path) -> None:
    """With `parallel = 3`, the fourth trial waits for the earliest virtual end."""
    schedule = schedule_of(tmp_path, text("asha", 9))
    first = all_of(schedule)
    assert [trial.n for trial in first] == [0, 1, 2]
    offer(schedule, first[1])  # it virtually ends after trial 0
    assert all_of(schedule) == []
    offer(schedule, first[0])
    assert [trial.n for trial in all_of(schedule)] == [3, 4]


def test_a_known_trial_that_differs_from_its_proposal_is_an_error(tmp_path: Path) -> None:
    """The error shows the values of the trial and of its proposal."""
    known = drive(schedule_of(tmp_path, text("random", 9)))
    known[5] = Trial(n=5, values={"model.dropout": 99})
    with pytest.raises(RunError, match=r"as trial 5, but the sweep's trial 5 is .* 99\}"):
        drive(schedule_of(tmp_path, text("random", 9), known))


@pytest.mark.parametrize("tuner", ["random", "grid", "bayesian", "asha"])
def test_an_ended_search_continues_with_more_trials(tmp_path: Path, tuner: str) -> None:
    """The first proposals do not change, and a restart proposes the same trials."""
    before = drive(schedule_of(tmp_path, text(tuner, 4)))
    assert tuner != "asha" or before[-1].parent is not None
    toml = text(tuner, 9)
    after = drive(schedule_of(tmp_path, toml, before))
    assert after[: len(before)] == before
    assert sum(each.parent is None for each in after) == 9
    for num_known in range(len(before), len(after)):
        assert drive(schedule_of(tmp_path, toml, after[:num_known])) == after


def test_known_values_are_used_instead_of_computed_ones(tmp_path: Path) -> None:
    """Other processors round differently; a trial may become known during the replay."""
    toml = text("bayesian", 12).replace("0.3]", "0.3, 0.4, 0.5]")  # nine trials are random
    whole, schedule = drive(schedule_of(tmp_path, toml)), schedule_of(tmp_path, toml)
    other = {"model.dropout": 0.1 if whole[-1].values["model.dropout"] != 0.1 else 0.2}
    last = whole[-1].model_copy(update={"values": {**whole[-1].values, **other}})
    assert isinstance(schedule.known, list)
    schedule.known += [*whole[:-1], last]  # the oracle reads this list
    assert [each.values for each in drive(schedule)] == [each.values for each in schedule.known]
