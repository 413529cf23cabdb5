"""The order of an oracle's calls is a function of the results, not of real time."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import RunError
from harness.tuning.protocol import Trial
from harness.tuning.schedule import Schedule


@dataclass
class Halving:
    """An oracle that proposes numbers; every third proposal continues the best trial so far."""

    num: int = 12
    idle_at: tuple[int, ...] = ()  # proposals before which it waits for a result
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    _waited: set[int] = field(default_factory=set)

    def create_trial(self, tuner_id: str) -> Any:
        n = sum(call[0] == "new" for call in self.calls)
        if n == self.num:
            return self._trial("", "STOPPED", {})
        if n in self.idle_at and n not in self._waited:
            self._waited.add(n)
            self.calls.append(("idle", n))
            return self._trial("", "IDLE", {})
        name, values = f"t{n:02}", {"x": n, "tuner/epochs": 1 + n % 2}
        if n % 3 == 2 and self.scores:
            best = max(self.scores, key=lambda key: (self.scores[key], key))
            values |= {"tuner/trial_id": best, "tuner/epochs": 4}
        self.calls.append(("new", name, str(values)))
        return self._trial(name, "RUNNING", values)

    def _trial(self, name: str, status: str, values: dict[str, Any]) -> Any:
        space = SimpleNamespace(values=values)
        return SimpleNamespace(trial_id=name, status=status, hyperparameters=space, message="")

    def update_trial(self, trial_id: str, metrics: dict[str, Any]) -> None:
        self.scores[trial_id] = metrics["score"]

    def end_trial(self, trial: Any) -> None:
        self.calls.append(("end", trial.trial_id, trial.status))


def ended(trial: Trial) -> Trial:
    """Return a trial with its result; trial 4 fails."""
    if trial.n == 4:
        return trial.model_copy(update={"error": "too large"})
    return trial.model_copy(update={"scores": {"score": (trial.n * 7 % 11) / 10}})


def take(schedule: Schedule, limit: int) -> list[Trial]:
    """Return the next trials, up to a limit."""
    return list(itertools.islice(iter(schedule.next, None), limit))


def searched(seed: int, known: Sequence[Trial] = (), **options: Any) -> tuple[Any, ...]:
    """Return the calls and proposals of a search whose results arrive in a random order."""
    chance = random.Random(seed)  # noqa: S311 - not a secret
    oracle = Halving(**options)
    schedule = Schedule(oracle, num_trials=0, width=3, known=known)
    proposals, waiting = list[Trial](), list[Trial]()
    while not schedule.is_over or waiting:
        new = take(schedule, chance.randint(0, 3))
        proposals += new
        waiting += new
        if waiting and chance.random() < 0.5:
            schedule.offer(ended(waiting.pop(chance.randrange(len(waiting)))))
    return oracle.calls, proposals


@pytest.mark.parametrize("idle_at", [(), (3, 7)])
def test_calls_do_not_depend_on_the_order_of_results(idle_at: tuple[int, ...]) -> None:
    """The oracle gets the same calls and proposes the same trials."""
    calls, proposals = searched(0, idle_at=idle_at)
    assert sum(call[0] == "end" for call in calls) == 12
    assert any(proposal.parent is not None for proposal in proposals)
    assert any(call[0] == "end" and call[2] == "FAILED" for call in calls)
    for seed in range(1, 50):
        assert searched(seed, idle_at=idle_at) == (calls, proposals)


def test_a_restart_replays_known_proposals() -> None:
    """The further proposals are the same; a known proposal that differs is an error."""
    calls, proposals = searched(0)
    for num_known in range(len(proposals) + 1):
        assert searched(num_known, proposals[:num_known]) == (calls, proposals)
    changed = [*proposals[:5], Trial(n=5, values={"x": 99}, limit=1), *proposals[6:]]
    said = r"proposes \{'x': 5\} as trial 5, but the sweep's trial 5 is \{'x': 99\}"
    with pytest.raises(RunError, match=said):
        searched(0, changed)


def test_an_oracle_that_does_not_learn_gets_no_results() -> None:
    """It proposes all trials at once."""
    oracle = Halving(num=7)
    schedule = Schedule(oracle, num_trials=5, width=None)
    first = take(schedule, 2)
    assert [trial.n for trial in first] == [0, 1]
    schedule.offer(ended(first[0]))
    assert [trial.n for trial in take(schedule, 9)] == [2, 3, 4]
    assert schedule.is_over
    assert not any(call[0] == "end" for call in oracle.calls)


def test_the_width_limits_trials_that_run_virtually() -> None:
    """With a width of three, the fourth trial waits for the earliest virtual end."""
    schedule = Schedule(Halving(), num_trials=0, width=3)
    first = take(schedule, 9)
    assert [trial.n for trial in first] == [0, 1, 2]
    schedule.offer(ended(first[1]))  # two epochs, so it virtually ends after trial 0
    assert take(schedule, 9) == []
    schedule.offer(ended(first[0]))
    assert [trial.n for trial in take(schedule, 9)] == [3]
    assert not schedule.is_over
