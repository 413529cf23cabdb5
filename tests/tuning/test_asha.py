"""Asynchronous successive halving: the order of promotions."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.tuning.oracle import rung_epochs
from tests.tuning.driver import drive, end, schedule_of

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


def test_rungs() -> None:
    """The highest rung has all epochs, and the lowest rung at least the minimum."""
    assert rung_epochs(1, 9, 3) == [1, 3, 9]
    assert rung_epochs(1, 10, 3) == [2, 4, 10]
    assert rung_epochs(2, 17, 3) == [6, 17]
    assert rung_epochs(2, 18, 3) == [2, 6, 18]


@pytest.mark.parametrize(("workers", "goal"), [(1, "max"), (4, "max"), (7, "min")])
def test_the_top_third_of_a_rung_is_promoted_at_once(
    tmp_path: Path, workers: int, goal: str
) -> None:
    """Each proposal is an unpromoted setting of the top third, or else a new setting.

    At the end of the search the top third of every rung is promoted.
    """
    text = ASHA.replace("trials", f"parallel = {workers}\ntrials")
    text = text if goal == "max" else text.replace("asha", 'asha"\nobjective = "val_loss', 1)
    sign = 1 if goal == "max" else -1
    schedule = schedule_of(tmp_path, text)
    oracle, promoted = schedule.oracle, set[str]()
    populate_space = oracle.populate_space

    def candidates(rung: int) -> set[str]:
        trials = [t for t in oracle.trials.values() if t.status == "COMPLETED"]
        trials = [t for t in trials if t.hyperparameters.values["tuner/rung"] == rung]
        trials.sort(key=lambda t: sign * t.score, reverse=True)
        return {t.trial_id for t in trials[: len(trials) // 3]} - promoted

    def checked(trial_id: str) -> dict[str, Any]:
        response: dict[str, Any] = populate_space(trial_id)
        expected = candidates(1) or candidates(0)
        values = response.get("values") or {}
        if parent := values.get("tuner/trial_id"):
            assert parent in expected
            promoted.add(parent)
            before = oracle.trials[parent].hyperparameters.values
            assert values["model.dropout"] == before["model.dropout"]
            assert values["tuner/initial_epoch"] == before["tuner/epochs"]
        else:
            assert not expected
        if values:
            assert values["tuner/epochs"] == (1, 3, 9)[values["tuner/rung"]]
        return response

    oracle.populate_space = checked
    trials = drive(schedule, lambda values: sign * (1 - values["model.dropout"]))
    assert not (candidates(0) | candidates(1))
    lengths = Counter(each.limit for each in trials)
    assert lengths[1] == 27
    assert 9 <= lengths[3] < 27
    best = min(trials, key=lambda each: each.values["model.dropout"])
    assert best.values in [each.values for each in trials if each.limit == 9]


def test_it_waits_for_trials_that_may_lead_to_a_promotion(tmp_path: Path) -> None:
    """After the last setting a worker waits while trials run; failed trials are not promoted."""
    oracle = schedule_of(tmp_path, ASHA.replace("trials = 27", "trials = 4")).oracle
    trials = [oracle.create_trial(f"w{i}") for i in range(4)]
    assert oracle.create_trial("w4").status == "IDLE"
    end(oracle, trials[0], None)
    end(oracle, trials[1], 0.5)
    end(oracle, trials[2], 0.5)
    assert oracle.create_trial("w4").status == "IDLE"  # a third of two trials is no trial
    end(oracle, trials[3], 0.5)
    last = oracle.create_trial("w4")
    assert last.hyperparameters.values["tuner/trial_id"] == trials[1].trial_id  # first of equals
    assert oracle.create_trial("w0").status == "IDLE"
    end(oracle, last, 0.5)
    assert oracle.create_trial("w0").status == "STOPPED"
