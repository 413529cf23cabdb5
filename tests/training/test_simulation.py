"""One writer, no acknowledged step lost, the same bytes, and no refusal of what a run did itself.

Each schedule is the life of a run in a made-up world (`run_world.py`), by the functions of the
code. What another node saved in the last 30 s may be missed there, and is trained again.
"""

from itertools import islice

import pytest

from tests.training.run_world import NUM_FAULTS, violations
from tests.training.safeguards import SAFEGUARDS, without


def test_no_schedule_breaks_a_promise() -> None:
    """Kills, power cuts, a full or failing disk, late views, two jobs of one run, requeues."""
    assert list(violations(range(1000))) == []


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_each_safeguard_is_needed(name: str) -> None:
    """Without it some schedule of the faults that it is for breaks a promise."""
    with without(name):
        found = violations(range(1000), SAFEGUARDS[name].faults, NUM_FAULTS)
        assert list(islice(found, 1))


@pytest.mark.slow
def test_ten_thousand_schedules() -> None:
    """Run by hand with `-m slow -s`, which shows how many each safeguard's absence breaks."""
    for name, safeguard in SAFEGUARDS.items():
        with without(name):
            found = list(violations(range(200), safeguard.faults, NUM_FAULTS))
        print(f"{name}: {len(found)} of 200; {found[0] if found else ''}")  # noqa: T201
    assert list(violations(range(10_000))) == []
