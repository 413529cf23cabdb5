"""No trial is lost, none counts twice, and a disturbed search tries what an undisturbed one does.

Each schedule is a whole search in a made-up world (`sweep_world.py`), by the courses of the code.
"""

from collections import Counter

import pytest

from tests.tuning.sweep_world import ONLY_SAVE_WORK, SAFEGUARDS, World, violations

CORRECT = [name for name in SAFEGUARDS if name not in ONLY_SAVE_WORK]


def test_no_schedule_breaks_a_promise() -> None:
    """Kills, lost nodes, stopped processes, outages, lost answers, late views, cancels."""
    assert list(violations(range(1000))) == []


@pytest.mark.parametrize("name", CORRECT)
def test_each_safeguard_is_needed(name: str) -> None:
    """Without it some schedule of many faults breaks a promise."""
    assert next(violations(range(3000), without=(name,), num_faults=14), None) is not None


def test_a_trial_that_ends_its_worker_fails_and_the_others_do_not() -> None:
    """After so many attempts without a checkpoint; the search ends with all others."""
    poisoned = [world for world in map(World, range(60)) if world.poison is not None]
    assert len(poisoned) > 3
    for world in poisoned:
        world.run()
        assert [n for n, score in world.result.items() if score is None] == [world.poison]


@pytest.mark.slow
def test_ten_thousand_schedules() -> None:
    """Run by hand with `-m slow -s`, which shows how many each safeguard's absence breaks."""
    for name in CORRECT:
        found = Counter(what for _, what in violations(range(1000), without=(name,), num_faults=14))
        print(f"without {name}: {found.total()} of 1,000: {dict(found)}")  # noqa: T201
    assert list(violations(range(10_000))) == []
