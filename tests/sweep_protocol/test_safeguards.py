"""Safeguards of the real supervisor, worker and journal, each in a schedule that needs it."""

import contextlib
import heapq
import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.files.shared_disk import SharedDisk
from harness.sweep_protocol.journal import (
    Journal,
    Ledger,
    Proposal,
    decode,
    propose_record,
)
from harness.sweep_protocol.mailbox import (
    STATE,
    TASK,
    Clock,
    Report,
    SharedFolder,
    Task,
    Terms,
    Work,
    WorkerState,
)
from harness.sweep_protocol.schedule import Schedule
from harness.sweep_protocol.supervisor import Generation
from harness.sweep_protocol.worker import Superseded, Worker
from harness.system.processes import process_space
from tests.sweep_protocol.ledgers import read_ledger
from tests.sweep_protocol.planner import Planner
from tests.sweep_protocol.test_schedule import Halving

TERMS = Terms()
A, B = "a" * 32, "b" * 32


class PlannedClock(Clock):
    """A clock that a sleep moves on, over what is planned for a time on the way."""

    def __init__(self) -> None:
        self.time_s, self._plan = 0.0, list[tuple[float, int, Callable[[], object]]]()
        self._order = itertools.count()

    def at(self, time_s: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._plan, (time_s, next(self._order), act))

    def now(self) -> float:
        return self.time_s

    def sleep(self, time_s: float) -> None:
        end_s = self.time_s + time_s
        while self._plan and self._plan[0][0] <= end_s:
            self.time_s, _, act = heapq.heappop(self._plan)
            act()
        self.time_s = end_s


class CachedDisk(SharedDisk):
    """A node that goes on seeing a file, and that there is none, for as long as it may."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self._seen = clock, dict[tuple[str, Path], tuple[float, object]]()

    def _cached(self, kind: str, path: Path, look: Callable[[Path], Any]) -> Any:
        until_s, found = self._seen.get((kind, path), (0.0, None))
        if self.clock.now() >= until_s:
            found = look(path)
            self._seen[kind, path] = self.clock.now() + TERMS.visible_s, found
        return found

    def read(self, path: Path) -> bytes | None:
        content: bytes | None = self._cached("read", path, super().read)
        return content

    def opens(self, folder: Path) -> bool:
        return bool(self._cached("opens", folder, super().opens))


def begun(shared: SharedFolder) -> tuple[Journal, list[dict[str, object]]]:
    journal = Journal(shared)
    journal.take()
    return journal, journal.begin()


def test_what_a_supervisor_appends_before_it_sees_the_next_one_counts(tmp_path: Path) -> None:
    """For as long as views are late, it goes on, and people see what it accepts: settle."""
    (tmp_path / "journal").mkdir()
    clock = PlannedClock()
    first, second = (
        Journal(SharedFolder(tmp_path, CachedDisk(clock), clock, TERMS)) for _ in range(2)
    )
    first.take()
    first.begin()
    numbers = itertools.count()
    seen: list[int] = []

    def round_of_the_first() -> None:
        if first.is_superseded():
            return
        n = next(numbers)
        first.append([propose_record(Proposal(n, {"x": n}))])
        seen.append(n)
        clock.at(clock.now() + TERMS.round_s, round_of_the_first)

    clock.sleep(40)
    second.disk.read(first.log(1))  # what it sees now, this node sees until 70
    clock.sleep(10)
    round_of_the_first()  # it sees until 80 that there is no other
    second.take()
    clock.at(75, lambda: second.disk.read(first.log(1)))  # another process; seen so until 105
    records = second.begin()
    assert len(seen) > 10
    assert [record["n"] for record in records] == seen
    clock.sleep(100)
    assert [proposal.n for proposal in read_ledger(second.shared).proposals] == seen


class Host:
    """Surrounds a supervisor of four trials whose workers are nobody's children."""

    def __init__(self) -> None:
        self.ended, self.noted = set[str](), list[OSError]()

    def note(self, error: OSError) -> None:
        self.noted.append(error)

    def planner(self, ledger: Ledger) -> Planner:
        known = ledger.proposals
        return Planner(Schedule(Halving(num=4), num_trials=4, width=None, known=known))

    def limit_s(self, state: WorkerState) -> float:
        return 1e9


class Mailboxes:
    """A generation, and workers whose states the test writes."""

    def __init__(self, folder: Path) -> None:
        for name in ("journal", f"workers/{A}", f"workers/{B}"):
            (folder / name).mkdir(parents=True)
        self.clock, self._counts = PlannedClock(), itertools.count(1)
        self.shared = SharedFolder(folder, SharedDisk(), self.clock, TERMS)
        self.journal = Journal(self.shared)
        self.journal.take()
        self.host: Any = Host()
        self.generation = Generation(self.shared, self.journal, self.host)  # type: ignore[arg-type]

    def say(self, worker: str, **results: float) -> None:
        """Write a worker's state, with these scores of trials' attempts at hand."""
        reports = {
            attempt: Report(scores={"score": results[f"t{attempt.partition('/')[0]}"]})
            for attempt, (n, owner) in self.generation.ledger.attempts.items()
            if owner == worker and f"t{n}" in results
        }
        state = WorkerState(count=next(self._counts), results=reports)
        self.shared.write(state, "workers", worker, STATE)

    def round(self, passed_s: float = TERMS.round_s) -> None:
        while passed_s > 0:
            self.clock.sleep(min(passed_s, TERMS.round_s))
            passed_s -= TERMS.round_s
            self.generation._round()

    def begin(self, worker: str) -> None:
        """Let a worker be heard of, and get the first trials."""
        self.round()
        self.say(worker)
        self.round()

    def task(self, worker: str) -> list[str]:
        task = self.shared.read(Task, "workers", worker, TASK)
        return [work.attempt.partition("/")[0] for work in task.work] if task else []

    def accepted(self) -> list[tuple[int, str, float]]:
        """Each record of a result in the log: trial, worker and score."""
        records, _ = decode(self.journal.log(1).read_bytes())
        return [
            (
                record["n"],
                self.generation.ledger.attempts[record["attempt"]][1],
                record["report"]["scores"]["score"],
            )
            for record in records
            if record["kind"] == "accept"
        ]


@pytest.fixture
def lost(tmp_path: Path) -> Mailboxes:
    """A's trial 0 was given to B once A had been silent for its term."""
    box = Mailboxes(tmp_path)
    box.begin(A)
    assert "0" in box.task(A)
    box.say(B)
    box.round()
    for _ in range(20):
        box.say(B)
        box.round(TERMS.lost_s / 15)
    assert "0" in box.task(B)
    assert box.task(A) == []
    return box


def test_a_worker_of_this_machine_that_has_died_is_not_waited_for(tmp_path: Path) -> None:
    """Its trial goes on at once; elsewhere nobody knows, so it may be silent for its term."""
    process = subprocess.Popen(["true"])
    process.wait()
    for space, goes_on in (("elsewhere", False), (process_space(), True)):
        box = Mailboxes(tmp_path / space.replace(" ", ""))
        box.round()
        state = WorkerState(count=1, process=process.pid, space="")
        box.shared.write(state, "workers", A, STATE)
        box.round()
        assert "0" in box.task(A)
        box.say(B)
        box.round()
        box.shared.write(state.model_copy(update={"count": 2, "space": space}), "workers", A, STATE)
        box.round(2 * TERMS.round_s)
        assert ("0" in box.task(B)) == goes_on


def test_of_two_attempts_at_a_trial_the_first_report_counts(lost: Mailboxes) -> None:
    """B's, and when A comes back with another one, nothing changes: first."""
    lost.say(B, t0=0.5)
    lost.round()
    lost.say(A, t0=0.7)
    lost.round(40)
    lost.say(B, t0=0.9)
    lost.round()
    assert [each for each in lost.accepted() if each[0] == 0] == [(0, B, 0.5)]
    assert lost.generation.ledger.accepted[0][1].scores == {"score": 0.5}


def test_a_late_report_counts_if_it_is_the_first(lost: Mailboxes) -> None:
    """A had been taken for lost; B, which trains the same trial, is told to stop: first."""
    lost.say(A, t0=0.7)
    lost.round(40)
    assert "0" not in lost.task(B)
    lost.say(B, t0=0.5)
    lost.round()
    assert [each for each in lost.accepted() if each[0] == 0] == [(0, A, 0.7)]


def test_nobody_reports_for_another_worker(lost: Mailboxes) -> None:
    """A result of an attempt that is not this worker's, or of none, is none."""
    others = next(a for a, (n, owner) in lost.generation.ledger.attempts.items() if owner == B)
    found = {each: Report(scores={"score": 0.9}) for each in (others, "0/9.9", "77/1.1")}
    lost.shared.write(WorkerState(count=10**6, results=found), "workers", A, STATE)
    lost.round(40)
    assert lost.accepted() == []


class NoRunner:
    """Trains nothing."""

    def saved(self, attempt: str) -> int:
        return 0

    def clean(self, attempt: str) -> None:
        pass


def test_a_worker_obeys_no_task_but_a_later_one(tmp_path: Path) -> None:
    """What an older supervisor writes when it is woken is not obeyed: generation."""
    (tmp_path / "workers" / A).mkdir(parents=True)
    clock = PlannedClock()
    shared = SharedFolder(tmp_path, SharedDisk(), clock, TERMS)
    worker = Worker(shared, A, NoRunner())  # type: ignore[arg-type]
    mine, other = (Work(attempt=name, values={}) for name in ("0/2.1", "1/1.1"))

    def look(generation: int, number: int, *work: Work, over: bool = False) -> tuple[int, int]:
        task = Task(generation=generation, number=number, work=work, over=over)
        shared.write(task, "workers", A, TASK)
        clock.sleep(TERMS.look_s)
        with contextlib.suppress(OSError):
            worker.check()
        return worker._state.obeys

    worker._update(attempt="0/2.1", results={"0/2.1": Report()})
    assert look(2, 3, mine) == (2, 3)
    for late in ((1, 9), (2, 2)):
        assert look(*late, other, over=True) == (2, 3)
        assert worker.task.work == (mine,)
        assert not worker.task.over
        assert list(worker._state.results) == ["0/2.1"]  # no result is dropped by it
    with pytest.raises(Superseded):
        look(3, 1, other)
    assert worker._state.obeys == (3, 1)
    assert worker._state.results == {}
