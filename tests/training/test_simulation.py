"""A run has one writer, loses no checkpoint, accepts its own files, and ends with the same bytes.

Each schedule is a simulated run with faults (`run_world.py`). Only a checkpoint that another node
saved in the last 30 s may be missed; its steps are trained again.
"""

from collections.abc import Iterator

import pytest

from tests.training.run_world import NUM_FAULTS, violations
from tests.training.safeguards import SAFEGUARDS, without


def test_no_schedule_breaks_a_promise() -> None:
    """Faults: kills, power cuts, a full or failing disk, outdated files, second jobs, requeues."""
    assert list(violations(range(1000))) == []


def broken_without(name: str, seeds: range) -> Iterator[str]:
    """Return a line for each schedule that breaks a promise only without the safeguard."""
    faults = SAFEGUARDS[name].faults
    with without(name):
        found = dict(violations(seeds, faults, NUM_FAULTS))
    also = dict(violations(found, faults, NUM_FAULTS))
    return (line for seed, line in found.items() if seed not in also)


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_each_safeguard_is_needed(name: str) -> None:
    """Some schedule of the safeguard's faults breaks a promise only without the safeguard."""
    parts = (range(first, first + 5) for first in range(0, 1000, 5))
    assert any([*broken_without(name, seeds)] for seeds in parts)


@pytest.mark.slow
def test_ten_thousand_schedules() -> None:
    """With `-s` the test prints how many schedules break without each safeguard."""
    for name in SAFEGUARDS:
        found = list(broken_without(name, range(200)))
        print(f"{name}: {len(found)} of 200; {found[0] if found else ''}")  # noqa: T201
    assert list(violations(range(10_000))) == []
