"""Bayesian optimization, whose model uses a bounded number of trials."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest

from harness.tuning.oracle import NUM_BEST, NUM_LATEST, NUM_SPREAD, subset
from tests.tuning.driver import all_of, drive, end, schedule_of

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
    """Return a loss that is 0 at a dropout of 0.3 and a learning rate of 0.002."""
    rate = math.log10(values["train.learning_rate"] / 0.002)
    return float((values["model.dropout"] - 0.3) ** 2 + 0.1 * rate**2)


def accuracy(values: Mapping[str, Any]) -> float:
    """Return an accuracy that is 1 where `loss` is 0."""
    return 1 - loss(values)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_process_is_fitted_to_the_best_the_latest_and_a_spread(sign: int) -> None:
    """The Gaussian process uses the latest 30 trials, the best 40 others, and 30 of the rest."""
    scores = np.random.default_rng(1).permutation(1000).astype(float)
    trials: list[Any] = [SimpleNamespace(score=score, n=n) for n, score in enumerate(scores)]
    numbers = [trial.n for trial in subset(trials, sign)]
    assert len(set(numbers)) == 100
    assert numbers[-30:] == list(range(970, 1000))
    ranked = sorted(range(970), key=lambda n: sign * scores[n])
    assert numbers[:40] == ranked[:40]
    places = [ranked.index(n) for n in numbers[40:70]]
    assert (places[0], places[-1]) == (40, 969)
    assert {*np.diff(places)} <= {31, 32, 33}
    assert len(subset(trials[:100], sign)) == 100


@pytest.mark.parametrize(
    ("objective", "score"),
    [("val_accuracy", accuracy), pytest.param("val_loss", loss, marks=pytest.mark.full)],
)
def test_18_trials_come_closer_to_the_optimum_than_200_random_trials(
    tmp_path: Path, objective: str, score: Any
) -> None:
    """The search maximizes one objective, and minimizes another."""
    text = BAYESIAN.replace("[search]", f'[search]\nobjective = "{objective}"')
    proposed = drive(schedule_of(tmp_path, text.replace("trials", "parallel = 2\ntrials")), score)
    text = text.replace("bayesian", "random").replace("trials = 18", "trials = 200")
    drawn = all_of(schedule_of(tmp_path, text))
    assert min(loss(t.values) for t in proposed) < min(loss(t.values) for t in drawn)


def test_no_value_is_tried_twice(tmp_path: Path) -> None:
    """The oracle proposes each of 12 settings once, while half of the trials run."""
    space = "model.dropout = [0.1, 0.2, 0.3, 0.4]\nmodel.units = [8, 16, 32]\n"
    text = BAYESIAN.partition("model.dropout")[0] + space
    oracle = schedule_of(tmp_path, text.replace("trials = 18", "trials = 50")).oracle
    for _ in range(6):
        trial = oracle.create_trial("w0")
        end(oracle, trial, trial.hyperparameters.values["model.dropout"])
    trials = [oracle.create_trial(f"w{i}") for i in range(1, 7)]
    tried = [tuple(t.hyperparameters.values.values()) for t in oracle.trials.values()]
    assert [t.status for t in trials] == ["RUNNING"] * 6
    assert len(set(tried)) == 12
    assert oracle.create_trial("w9").status == "STOPPED"


def test_a_proposal_costs_the_same_after_hundreds_of_trials(tmp_path: Path) -> None:
    """The Gaussian process is fitted to only 100 of 120 finished trials."""
    oracle = schedule_of(tmp_path, BAYESIAN.replace("trials = 18", "trials = 2000")).oracle
    guided = oracle.populate_space
    oracle.populate_space = lambda _: oracle._random_populate_space()
    for _ in range(120):
        trial = oracle.create_trial("w0")
        end(oracle, trial, accuracy(trial.hyperparameters.values))
    with mock.patch.object(oracle, "_fitted", wraps=oracle._fitted) as fitted:
        guided("120")
    assert len(fitted.call_args.args[0]) == NUM_BEST + NUM_LATEST + NUM_SPREAD
