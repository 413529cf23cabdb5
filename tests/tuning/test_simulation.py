"""No trial is lost or counted twice, and faults do not change which trials a search tries.

Every schedule of faults is a whole simulated search (`sweep_world.py`).
"""

from collections import Counter
from typing import Any

import pytest

from harness.tuning.protocol import Trial
from tests.tuning.sweep_world import SAFEGUARDS, World, violations


def test_no_schedule_breaks_a_promise() -> None:
    """Faults are kills, lost nodes, suspensions, outages, lost answers, outdated files, cancels."""
    assert list(violations(range(1000))) == []


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_each_safeguard_is_needed(name: str) -> None:
    """Without the safeguard a schedule with many faults breaks a promise."""
    assert next(violations(range(3000), without=(name,), num_faults=14), None) is not None


class Busy(World):
    """Eight nodes, each with a command of eight workers, and trials of two to six minutes."""

    scale = 12

    def __init__(self) -> None:
        self.expected = {}
        super().__init__(1, num_faults=0)
        self.is_guided, self.poison = False, None
        self.num_trials, self.kinds = 192, Counter[str]()
        self.caches, self.down_until_s = [{} for _ in range(8)], [0.0] * 8
        self.calls, self.expected = [], {}
        self.processes, self.heap = [], []
        for node in range(8):
            command = self._start("command", node, None)
            self._start("proposer", node, command)
            for _ in range(8):
                self._start("worker", node, command)

    def score(self, trial: Trial) -> float:
        return 0.5

    def _apply(self, p: Any, op: Any) -> Any:
        if op.kind != "Sleep":
            self.kinds[p.kind] += 1
        return super()._apply(p, op)

    def ended(self, trial: Trial, k: int) -> Trial:
        self.expected[trial.n] = 0.5
        return super().ended(trial, k)


@pytest.mark.slow
def test_64_workers_need_few_operations() -> None:
    """The whole search needs about 100 small operations per second."""
    world = Busy()
    world.run()
    rate = world.kinds.total() / world.now_s
    print(f"{rate:.0f} per second, by {dict(world.kinds)} in {world.now_s:.0f} s")  # noqa: T201
    assert rate < 150
    assert len(world.result) == 192


@pytest.mark.slow
def test_ten_thousand_schedules() -> None:
    """With `-s` the test prints the number of violations without each safeguard."""
    for name in SAFEGUARDS:
        found = Counter(what for _, what in violations(range(1000), without=(name,), num_faults=14))
        print(f"without {name}: {found.total()} of 1,000: {dict(found)}")  # noqa: T201
    assert list(violations(range(10_000))) == []
