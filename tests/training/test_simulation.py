"""One writer, no acknowledged step lost, the same bytes, and no refusal of what a run did itself.

Each schedule is the life of a run in a made-up world (`run_world.py`), by the functions of the
code. What another node saved in the last 30 s may be missed there, and is trained again.
"""

from collections.abc import Iterator

import pytest

from tests.training.run_world import NUM_FAULTS, violations
from tests.training.safeguards import SAFEGUARDS, without


def test_no_schedule_breaks_a_promise() -> None:
    """Kills, power cuts, a full or failing disk, late views, two jobs of one run, requeues."""
    assert list(violations(range(1000))) == []


def broken_without(name: str, seeds: range) -> Iterator[str]:
    """A line for each schedule that breaks a promise without a safeguard, and none with it."""
    faults = SAFEGUARDS[name].faults
    with without(name):
        found = dict(violations(seeds, faults, NUM_FAULTS))
    also = dict(violations(found, faults, NUM_FAULTS))
    return (line for seed, line in found.items() if seed not in also)


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_each_safeguard_is_needed(name: str) -> None:
    """Without it, and only then, some schedule of the faults that it is for breaks a promise."""
    parts = (range(first, first + 50) for first in range(0, 1000, 50))
    assert any(list(broken_without(name, seeds)) for seeds in parts)


@pytest.mark.slow
def test_ten_thousand_schedules() -> None:
    """Run by hand with `-m slow -s`, which shows how many each safeguard's absence breaks."""
    for name in SAFEGUARDS:
        found = list(broken_without(name, range(200)))
        print(f"{name}: {len(found)} of 200; {found[0] if found else ''}")  # noqa: T201
    assert list(violations(range(10_000))) == []
