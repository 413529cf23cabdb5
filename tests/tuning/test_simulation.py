"""No trial is lost or counted twice, and a disturbed search tries the trials of an undisturbed one.

Every schedule of faults is a whole simulated search (`sweep_world.py`).
"""

from collections import Counter

import pytest

from tests.tuning.sweep_world import ONLY_SAVE_WORK, SAFEGUARDS, World, violations

CORRECT = [name for name in SAFEGUARDS if name not in ONLY_SAVE_WORK]


def test_no_schedule_breaks_a_promise() -> None:
    """Of kills, lost nodes, suspended processes, outages, lost answers, late views, cancels."""
    assert list(violations(range(1000))) == []


@pytest.mark.parametrize("name", CORRECT)
def test_each_safeguard_is_needed(name: str) -> None:
    """Without it a schedule with many faults breaks a promise."""
    assert next(violations(range(3000), without=(name,), num_faults=14), None) is not None


def test_only_the_trial_that_ends_its_workers_fails() -> None:
    """After five attempts without a new checkpoint."""
    poisoned = [world for world in map(World, range(60)) if world.poison is not None]
    assert len(poisoned) > 3
    for world in poisoned:
        world.run()
        assert [n for n, score in world.result.items() if score is None] == [world.poison]


@pytest.mark.slow
def test_ten_thousand_schedules() -> None:
    """With `-s`, it prints the number of violations without each safeguard."""
    for name in CORRECT:
        found = Counter(what for _, what in violations(range(1000), without=(name,), num_faults=14))
        print(f"without {name}: {found.total()} of 1,000: {dict(found)}")  # noqa: T201
    assert list(violations(range(10_000))) == []
