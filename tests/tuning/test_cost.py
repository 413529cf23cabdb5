"""The cost of a search beside its trials: operations on its folder, processor time."""

import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.job.search import GUIDED, load_search
from harness.tuning.disk import Disk
from harness.tuning.protocol import Attempt, Sleep, Train, Trial, View, Worker, follow
from harness.tuning.schedule import Proposer
from harness.tuning.worker import schedule_of
from tests.tuning.made_up_sweep import add_trial, make_sweep
from tests.tuning.sweep_world import World
from tests.tuning.test_oracle import ended, written


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
        if not isinstance(op, Sleep | Train):
            self.kinds[p.kind] += 1
        return super()._apply(p, op)

    def ended(self, trial: Trial, k: int) -> Trial:
        self.expected[trial.n] = 0.5
        return super().ended(trial, k)


def test_64_workers_need_few_operations() -> None:
    """About 100 small operations per second for the whole search."""
    world = Busy()
    world.run()
    rate = world.kinds.total() / world.now_s
    print(f"{rate:.0f} per second, by {dict(world.kinds)} in {world.now_s:.0f} s")  # noqa: T201
    assert rate < 150
    assert len(world.result) == 192


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["random", "asha"])
def test_a_trial_costs_little_after_1000_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuner: str
) -> None:
    """Of processor time, in a proposer, a worker and a command together; run with `-s`."""
    monkeypatch.setattr(Disk, "_sleep", lambda *_: None)
    text = written(tmp_path, tuner, 1010).read_text()
    space = "0.3]\ntrain.learning_rate = { min = 1e-5, max = 0.1, log = true }"
    sweep = make_sweep(tmp_path / "s", text.replace("0.3]", space))
    search, disk = load_search(sweep.path("search.toml")), Disk(sweep.folder)
    schedule = schedule_of(search, [])
    for _ in range(1000):
        proposal = schedule.next()
        assert proposal
        done = ended(proposal).model_copy(update={"attempt": 1})
        schedule.offer(done)
        add_trial(sweep, done)
    begin, is_guided, view = partial(schedule_of, search), tuner in GUIDED, View()
    proposer = Proposer(begin, search.table.trials, ahead=3, is_guided=is_guided)
    worker = Worker(Attempt(worker="me"), search.table.trials)
    trained: list[Trial] = []

    def act(operation: Any) -> Trial | None:
        if not isinstance(operation, Train):
            return None
        trained.append(ended(operation.trial).model_copy(update={"attempt": operation.k}))
        return trained[-1]

    since_s, times_s = time.process_time(), list[float]()
    for _ in range(6):  # the first turns read all trials
        disk.run(proposer.turn())
        disk.run(worker.turn(), act)
        disk.run(follow(view, time.monotonic()))
        times_s.append(time.process_time() - since_s)
    trial_s = (times_s[-1] - times_s[0]) / 5
    print(f"{tuner}: start {times_s[0]:.2f} s, a trial {1000 * trial_s:.1f} ms")  # noqa: T201
    assert len(trained) >= 3
    assert trial_s + times_s[0] / 50 < 0.1
