"""What the supervisor costs: 64 made-up workers with real mailboxes on trials of ten seconds.

Run by hand, `-m slow -s`, on a quiet machine.
"""

import time
import uuid
from pathlib import Path

import psutil
import pytest

from harness.files.shared_disk import SharedDisk
from harness.sweep_protocol.journal import Journal, Ledger
from harness.sweep_protocol.mailbox import (
    NETWORK_VISIBLE_S,
    STATE,
    TASK,
    Clock,
    Report,
    SharedFolder,
    Task,
    Terms,
    WorkerState,
)
from harness.sweep_protocol.schedule import Schedule
from harness.sweep_protocol.supervisor import Generation
from tests.sweep_protocol.planner import Planner
from tests.sweep_protocol.test_schedule import Halving

NUM_WORKERS, NUM_TRIALS, TRIAL_S = 64, 1000, 10.0


class MovedClock(Clock):
    """A clock that the test moves on."""

    time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def sleep(self, time_s: float) -> None:
        self.time_s += time_s


class Host:
    """Nobody is told."""

    def __init__(self) -> None:
        self.oracle = Halving(num=NUM_TRIALS)

    def planner(self, ledger: Ledger) -> Planner:
        return Planner(Schedule(self.oracle, num_trials=NUM_TRIALS, width=None))

    ended: set[str] = set()  # noqa: RUF012 - never changed

    def limit_s(self, state: WorkerState) -> float:
        return 1e9

    def after_round(self, generation: Generation, news: list[int]) -> None:
        pass

    def conclude(self, generation: Generation) -> None:
        pass

    def note(self, error: OSError) -> None:
        raise error

    def stop(self, reason: Exception) -> None:
        pass


class StandIn:
    """A worker that only writes its mailbox."""

    def __init__(self, shared: SharedFolder) -> None:
        self.shared, self.uuid, self.count = shared, uuid.uuid4().hex, 0
        self.task = Task(generation=0, number=0)
        self.results: dict[str, Report] = {}
        self.done_s = 0.0
        shared.path("workers", self.uuid).mkdir()
        shared.write(self.task, "workers", self.uuid, TASK)

    def act(self) -> None:
        """What a real one does between two rounds of the supervisor."""
        self.task = self.shared.read(Task, "workers", self.uuid, TASK) or self.task
        wanted = [work.attempt for work in self.task.work]
        self.results = {k: v for k, v in self.results.items() if k in wanted}
        at_hand = next((each for each in wanted if each not in self.results), "")
        now_s = self.shared.clock.now()
        if at_hand and not self.done_s:
            self.done_s = now_s + TRIAL_S
        if at_hand and now_s >= self.done_s:
            self.results[at_hand] = Report(scores={"val_accuracy": 0.5, "val_loss": 0.7})
            self.done_s = 0.0
        self.count += 1
        state = WorkerState(
            count=self.count, obeys=self.task.order, results=self.results, attempt=at_hand
        )
        self.shared.write(state, "workers", self.uuid, STATE)


@pytest.mark.slow
def test_the_cost_of_a_trial_does_not_grow(tmp_path: Path) -> None:
    """The supervisor's own time for a trial, with few trials ended and with many."""
    for name in ("workers", "journal"):
        (tmp_path / name).mkdir()
    clock = MovedClock()
    shared = SharedFolder(tmp_path, SharedDisk(), clock, Terms(NETWORK_VISIBLE_S))
    journal = Journal(shared)
    journal.take()
    before_mb = psutil.Process().memory_info().rss / 1e6
    generation = Generation(shared, journal, Host())
    workers = [StandIn(shared) for _ in range(NUM_WORKERS)]
    spent: list[tuple[int, float]] = []  # trials ended, and seconds of this round
    while len(generation.ledger.accepted) < NUM_TRIALS:
        for worker in workers:
            worker.act()
        clock.time_s += shared.terms.round_s
        began_s = time.thread_time()
        generation._round()
        spent.append((len(generation.ledger.accepted), time.thread_time() - began_s))
    grown_mb = psutil.Process().memory_info().rss / 1e6 - before_mb
    print(f"memory: {before_mb:.0f} MB and {grown_mb:.1f} more")  # noqa: T201
    share = sum(time_s for _, time_s in spent) / len(spent) / shared.terms.round_s
    print(f"{NUM_WORKERS} workers: {share:.3f} of a core")  # noqa: T201

    def cost_s(first: int, last: int) -> float:
        return sum(time_s for done, time_s in spent if first < done <= last) / (last - first)

    early_s, late_s = cost_s(0, 200), cost_s(NUM_TRIALS - 200, NUM_TRIALS)
    print(f"a trial: {1e3 * early_s:.2f} ms at first, {1e3 * late_s:.2f} ms at last")  # noqa: T201
    assert late_s < 2 * early_s
    assert share < 1 / 3
