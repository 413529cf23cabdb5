"""Asynchronous successive halving: which settings go on, and when."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.tuning.asha import rung_epochs
from tests.tuning.driver import drive, end, oracle_of

ASHA = """
[model]
architecture = "lstm"
[train]
epochs = 9
[search]
tuner = "asha"
trials = 27
[search.space]
model.dropout = { min = 0.0, max = 0.9 }
"""


def by_dropout(values: Mapping[str, Any]) -> float:
    """The lower the dropout, the better."""
    return 1 - float(values["model.dropout"])


@pytest.mark.parametrize(
    ("low", "high", "factor", "rungs"),
    [
        (1, 9, 3, [1, 3, 9]),
        (1, 10, 3, [2, 4, 10]),
        (2, 17, 3, [6, 17]),
        (2, 18, 3, [2, 6, 18]),
        (1, 6, 2, [2, 3, 6]),
        (4, 8, 2, [4, 8]),
        (1, 1000, 10, [1, 10, 100, 1000]),
    ],
)
def test_the_rungs_end_at_the_most_epochs(
    low: int, high: int, factor: int, rungs: list[int]
) -> None:
    """Each has `factor` times the epochs of the one below it, the lowest at least the minimum."""
    assert rung_epochs(low, high, factor) == rungs


@pytest.mark.parametrize("workers", [1, 4, 7])
@pytest.mark.parametrize("goal", ["max", "min"])
def test_the_top_third_of_a_rung_goes_on_at_once(tmp_path: Path, workers: int, goal: str) -> None:
    """At each request: a setting of the top third that has not gone on, else a new setting.

    In the end the top third of every rung has gone on, so the best setting reaches the top.
    """
    text = ASHA if goal == "max" else ASHA.replace("asha", 'asha"\nobjective = "val_loss', 1)
    oracle = oracle_of(tmp_path, text)
    sign = 1 if goal == "max" else -1
    ended: list[list[tuple[float, str]]] = [[], [], []]  # of each rung, its scores
    gone_on: set[str] = set()

    def may_go_on(rung: int) -> set[str]:
        ranked = sorted(ended[rung], reverse=True)
        return {trial for _, trial in ranked[: len(ranked) // 3]} - gone_on

    populate_space = oracle.populate_space

    def checked(trial_id: str) -> dict[str, Any]:
        response: dict[str, Any] = populate_space(trial_id)
        candidates = may_go_on(1) or may_go_on(0)
        values = response.get("values") or {}
        if parent := values.get("tuner/trial_id"):
            assert parent in candidates
            gone_on.add(parent)
            before = oracle.trials[parent].hyperparameters.values
            assert values["model.dropout"] == before["model.dropout"]
            assert values["tuner/initial_epoch"] == before["tuner/epochs"]
        else:
            assert not candidates
        if values:
            assert values["tuner/epochs"] == (1, 3, 9)[values["tuner/rung"]]
        return response

    def score(values: Mapping[str, Any]) -> float:
        found = sign * by_dropout(values)
        trial = next(k for k, t in oracle.trials.items() if t.hyperparameters.values == values)
        ended[values["tuner/rung"]].append((sign * found, trial))
        return found

    oracle.populate_space = checked
    drive(oracle, score, workers=workers)
    assert len(ended[0]) == 27
    assert not (may_go_on(0) | may_go_on(1))
    assert max(ended[2])[0] == max(ended[0])[0]
    assert 9 <= len(ended[1]) < 27


def test_the_same_results_in_the_same_order_give_the_same_trials(tmp_path: Path) -> None:
    """Another order of the results gives others."""
    found = [
        [
            (trial.trial_id, dict(trial.hyperparameters.values))
            for trial in drive(oracle_of(tmp_path / str(i), ASHA), by_dropout, workers=4, seed=seed)
        ]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_it_waits_for_trials_that_may_lead_to_a_promotion(tmp_path: Path) -> None:
    """After the last setting a worker waits while trials run; failed ones never go on."""
    oracle = oracle_of(tmp_path, ASHA.replace("trials = 27", "trials = 4"))
    trials = [oracle.create_trial(f"w{i}") for i in range(4)]
    assert oracle.create_trial("w4").status == "IDLE"
    end(oracle, trials[0], None)
    end(oracle, trials[1], 0.5)
    end(oracle, trials[2], 0.5)
    assert oracle.create_trial("w4").status == "IDLE"  # a third of two is none
    end(oracle, trials[3], 0.5)
    last = oracle.create_trial("w4")
    assert last.hyperparameters.values["tuner/trial_id"] == trials[1].trial_id  # the first of three
    assert oracle.create_trial("w0").status == "IDLE"
    end(oracle, last, 0.5)
    assert oracle.create_trial("w0").status == "STOPPED"


def test_a_small_space_is_tried_once(tmp_path: Path) -> None:
    """No setting begins twice, though there are fewer than asked for."""
    space = "model.dropout = [0.1, 0.2, 0.3, 0.4]"
    text = ASHA.replace("model.dropout = { min = 0.0, max = 0.9 }", space)
    began = drive(oracle_of(tmp_path, text), by_dropout, workers=2)
    first = [t for t in began if t.hyperparameters.values["tuner/rung"] == 0]
    tried = [t.hyperparameters.values["model.dropout"] for t in first]
    assert sorted(tried) == [0.1, 0.2, 0.3, 0.4]
