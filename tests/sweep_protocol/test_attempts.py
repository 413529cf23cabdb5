"""What counts against a trial, and against a sweep: attempts that were begun, and new failures."""

from pathlib import Path

import pytest

from harness.errors import InputError, Interrupted, RunError
from harness.files.shared_disk import SharedDisk
from harness.search_space import SEARCH_FILE
from harness.sweep_protocol.journal import (
    MAX_SAME_FAILURES,
    Journal,
    Ledger,
    Proposal,
    accept_record,
    propose_record,
)
from harness.sweep_protocol.mailbox import RESULT, Report, Result, SharedFolder, Terms
from harness.sweep_protocol.schedule import Schedule
from harness.sweep_protocol.supervisor import MAX_ATTEMPTS, Generation, supervise
from tests.sweep_protocol.ledgers import read_ledger
from tests.sweep_protocol.planner import Planner
from tests.sweep_protocol.test_cost import Host, MovedClock, StandIn
from tests.sweep_protocol.test_schedule import Halving

NUM_TRIALS = 4


class FewTrials(Host):
    """Of a sweep of a few trials."""

    def __init__(self) -> None:
        self.ended: set[str] = set()
        self.stopped_by: list[Exception] = []
        self.error: Exception | None = None

    def planner(self, ledger: Ledger) -> Planner:
        schedule = Schedule(Halving(num=NUM_TRIALS), num_trials=NUM_TRIALS, width=None)
        for _ in ledger.proposals:
            next(schedule.advance())
        return Planner(schedule)

    def after_round(self, generation: Generation, news: list[int]) -> None:
        if self.error:
            raise self.error

    def stop(self, reason: Exception) -> None:
        self.stopped_by.append(reason)


@pytest.fixture
def shared(tmp_path: Path) -> SharedFolder:
    """The folder of a new sweep."""
    for name in ("workers", "journal"):
        (tmp_path / name).mkdir()
    (tmp_path / SEARCH_FILE).write_text("[search]\ntrials = 0\n")
    return SharedFolder(tmp_path, SharedDisk(), MovedClock(), Terms())


def begin(shared: SharedFolder, host: Host) -> Generation:
    """A new supervisor."""
    journal = Journal(shared)
    journal.take()
    return Generation(shared, journal, host)


def rounds(generation: Generation, worker: StandIn, num: int = 3) -> None:
    """Let a worker and the supervisor act in turn."""
    for _ in range(num):
        worker.act()
        generation.shared.clock.sleep(generation.shared.terms.table_s)
        generation._round()


def test_a_trial_that_waits_is_not_failed_by_the_one_before_it(shared: SharedFolder) -> None:
    """A trial ends every worker that begins it; the next one, which waits there, is trained."""
    host = FewTrials()
    generation = begin(shared, host)
    for _ in range(MAX_ATTEMPTS):
        worker = StandIn(shared)
        worker.done_s = float("inf")
        rounds(generation, worker)
        assert len(worker.task.work) == 2
        host.ended.add(worker.uuid)
    rounds(generation, StandIn(shared), num=30)
    errors = {n: report.error for n, (_, report) in generation.ledger.accepted.items()}
    assert f"its worker ended {MAX_ATTEMPTS} times" in errors.pop(0)
    assert errors == dict.fromkeys(range(1, NUM_TRIALS), "")


def test_workers_of_before_get_no_new_trials_until_they_are_heard_of(shared: SharedFolder) -> None:
    """Their processes may have been killed hard; one that lives writes again, and gets one then."""
    generation = begin(shared, FewTrials())
    silent, worker = [StandIn(shared) for _ in range(3)], StandIn(shared)
    worker.done_s = float("inf")
    for each in silent:
        each.act()
    rounds(generation, worker)
    assert set(generation.holders().values()) == {worker.uuid} == set(generation.alive)
    assert len(generation.holders()) == 2
    silent[0].act()
    rounds(generation, worker, num=1)
    assert set(generation.holders().values()) == {worker.uuid, silent[0].uuid}
    late = StandIn(shared)
    rounds(generation, late, num=1)  # a new one is given a trial at once
    assert set(generation.alive) == {worker.uuid, silent[0].uuid, late.uuid}
    assert len(generation.holders()) == NUM_TRIALS


def test_workers_of_before_may_live(shared: SharedFolder) -> None:
    """So a result ends no search in the first round: they may hold what it lacks."""
    generation = begin(shared, FewTrials())
    StandIn(shared).act()
    shared.write(Result(generation=1), RESULT)
    assert (generation._round(), generation.alive) == ("", [])


def test_a_sweep_goes_on_after_failures_that_were_alike(shared: SharedFolder) -> None:
    """Its user has seen to the reason; as many new ones would end it again."""
    journal = begin(shared, FewTrials()).journal
    for n in range(MAX_SAME_FAILURES):
        error = Report(error=f"step {n}: the device is out of memory")
        proposal = Proposal(n, {"x": n}, epochs=1 + n % 2)
        journal.append([propose_record(proposal), accept_record(n, f"{n}/1.{n}", error)])
    assert read_ledger(shared).same_failure
    after = begin(shared, FewTrials())
    assert (after.ledger.same_failure, after.ledger.num_failed) == ("", MAX_SAME_FAILURES)


@pytest.mark.parametrize("kind", [Interrupted, InputError, RunError])
def test_workers_save_whatever_ends_the_search(shared: SharedFolder, kind: type[Exception]) -> None:
    """Also if the input of one of them was refused."""
    host = FewTrials()
    host.error = kind("here")
    with pytest.raises(kind):
        supervise(shared, host)
    assert host.stopped_by == [host.error]
