"""Bayesian optimization on a bounded number of trials."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras_tuner as kt
import numpy as np
import pytest

from harness.tuning import bayesian
from harness.tuning.bayesian import BoundedBayesianOracle, subset
from tests.tuning.driver import drive, end, oracle_of

BAYESIAN = """
[model]
architecture = "lstm"
[search]
tuner = "bayesian"
trials = 18
[search.space]
model.dropout = { min = 0.0, max = 0.9 }
train.learning_rate = { min = 0.0001, max = 0.1, log = true }
"""


def loss(values: Mapping[str, Any]) -> float:
    """0 at a dropout of 0.3 and a rate of 0.002."""
    rate = math.log10(values["train.learning_rate"] / 0.002)
    return float((values["model.dropout"] - 0.3) ** 2 + 0.1 * rate**2)


def accuracy(values: Mapping[str, Any]) -> float:
    return 1 - loss(values)


def made_up(*scores: float) -> list[Any]:
    return [SimpleNamespace(score=score, number=i) for i, score in enumerate(scores)]


def test_the_process_sees_the_best_the_latest_and_a_spread() -> None:
    """Of a thousand trials a hundred: 30 last ones, the 40 best of the others, and 30 of the rest.

    In either direction; of few trials all.
    """
    scores = np.random.default_rng(1).permutation(1000).astype(float)
    for sign in (1, -1):
        chosen = subset(made_up(*scores), sign)
        numbers = [trial.number for trial in chosen]
        assert len(set(numbers)) == 100
        assert numbers[-30:] == list(range(970, 1000))
        ranked = sorted(range(970), key=lambda i: sign * scores[i])
        assert numbers[:40] == ranked[:40]
        places = [ranked.index(number) for number in numbers[40:70]]
        assert (places[0], places[-1]) == (40, 969)
        assert {32, 33} >= set(np.diff(places)) - {31}
    assert len(subset(made_up(*scores[:100]), 1)) == 100


@pytest.mark.parametrize(
    "objective", ["val_accuracy", pytest.param("val_loss", marks=pytest.mark.full)]
)
def test_it_finds_the_optimum_that_random_trials_miss(tmp_path: Path, objective: str) -> None:
    """After 18 trials it is closer than the best of 200 random ones, in either direction."""
    text = BAYESIAN.replace("[search]", f'[search]\nobjective = "{objective}"')
    score = accuracy if objective == "val_accuracy" else loss
    found = drive(oracle_of(tmp_path / "b", text), score, workers=2)
    text = text.replace("bayesian", "random").replace("trials = 18", "trials = 200")
    drawn = drive(oracle_of(tmp_path / "r", text), score)
    best, random = (min(loss(t.hyperparameters.values) for t in each) for each in (found, drawn))
    assert best < random


FEW = "model.dropout = [0.1, 0.2, 0.3]\ntrain.learning_rate = [0.001, 0.002, 0.003, 0.01]\n"


@pytest.mark.full
@pytest.mark.parametrize("space", ["", FEW], ids=["ranges", "lists"])
def test_a_choice_depends_on_the_trials_alone(tmp_path: Path, space: str) -> None:
    """An oracle that takes up the trials of another, without their computation, goes on alike.

    Also where most settings were tried, so that a choice may be random.
    """
    text = BAYESIAN.partition("model.dropout")[0] + space if space else BAYESIAN
    whole = drive(oracle_of(tmp_path / "whole", text), accuracy, workers=3)
    again = oracle_of(tmp_path / "again", text)
    assert isinstance(again, BoundedBayesianOracle)
    again.proposed = [t.hyperparameters.values for t in whole[:9]]
    computed = count_fits(again)
    values = [t.hyperparameters.values for t in drive(again, accuracy, workers=3)]
    assert values == [t.hyperparameters.values for t in whole]
    assert len(computed) >= len(whole) - 9 > 0


def count_fits(oracle: kt.Oracle) -> list[int]:
    """Gets an entry for each choice that is computed."""
    fits: list[int] = []
    fitted = oracle._fitted

    def counted(finished: Any, sign: int) -> Any:
        fits.append(len(finished))
        return fitted(finished, sign)

    oracle._fitted = counted
    return fits


def test_no_value_is_tried_twice_and_running_trials_count(tmp_path: Path) -> None:
    """On a grid of 12 settings every one is tried once, though nothing has ended meanwhile."""
    space = "model.dropout = [0.1, 0.2, 0.3, 0.4]\nmodel.units = [8, 16, 32]\n"
    text = BAYESIAN.partition("model.dropout")[0] + space
    oracle = oracle_of(tmp_path, text.replace("trials = 18", "trials = 50"))
    for _ in range(6):
        trial = oracle.create_trial("w0")
        end(oracle, trial, trial.hyperparameters.values["model.dropout"])
    trials = [oracle.create_trial(f"w{i}") for i in range(1, 7)]
    tried = [tuple(t.hyperparameters.values.values()) for t in oracle.trials.values()]
    assert [t.status for t in trials] == ["RUNNING"] * 6
    assert len(set(tried)) == 12
    assert oracle.create_trial("w9").status == "STOPPED"


def test_a_choice_costs_the_same_after_hundreds_of_trials(tmp_path: Path) -> None:
    """The process is fitted to a hundred trials and those that run, however many have ended."""
    oracle = oracle_of(tmp_path, BAYESIAN.replace("trials = 18", "trials = 2000"))
    fits = count_fits(oracle)
    choose = oracle.populate_space
    oracle.populate_space = lambda _: oracle._random_populate_space()
    for _ in range(300):
        trial = oracle.create_trial("w0")
        end(oracle, trial, accuracy(trial.hyperparameters.values))
    oracle.populate_space = choose
    oracle.create_trial("w0")
    assert fits == [bayesian.NUM_BEST + bayesian.NUM_LATEST + bayesian.NUM_SPREAD]
