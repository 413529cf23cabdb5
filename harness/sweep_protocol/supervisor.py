"""The supervisor of a sweep: holds the oracle, assigns trials, and accepts their results.

It meets the workers in the sweep's folder alone. What it decides is in its journal, on the disk,
before anyone can see what follows from it. So it may be killed at any moment: the next one reads
the journal, and two at once do no harm.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Protocol

from harness.errors import InputError, Interrupted, RunError
from harness.search_space import CANCEL_FILE
from harness.sweep_protocol.journal import (
    Assignment,
    Journal,
    Ledger,
    Proposal,
    Record,
    accept_record,
    assign_record,
    end_record,
    propose_record,
)
from harness.sweep_protocol.mailbox import (
    BEAT,
    LONGEST_LOOK_S,
    STATE,
    TASK,
    WORKER_ID,
    Beat,
    Cancel,
    Parent,
    Report,
    SharedFolder,
    Task,
    Work,
    WorkerState,
)
from harness.system.processes import has_died

FINISHED, CANCELLED, SUPERSEDED = "finished", "cancelled", "superseded"
MAX_ATTEMPTS = 25  # at a trial without a later checkpoint


class Planner(Protocol):
    """Where the trials come from."""

    def offer(self, n: int, report: Report) -> None:
        """Take a trial's result; does not block."""

    def take(self, limit: int) -> list[Proposal]:
        """New trials, at most so many, those that are there; does not block."""

    @property
    def is_over(self) -> bool:
        """Whether no trial will come any more."""

    def close(self) -> None:
        """Free what it holds."""


class Host(Protocol):
    """What surrounds a supervisor: its own workers, and the people who follow the sweep."""

    def planner(self, ledger: Ledger) -> Planner:
        """The oracle, which has proposed the ledger's trials and waits for their results."""

    @property
    def ended(self) -> set[str]:
        """The workers that this process started and that have ended."""

    def limit_s(self, state: WorkerState) -> float:
        """The time for which a worker's trial may make no progress."""

    def after_round(self, generation: "Generation", news: list[int]) -> None:
        """A round is done, in which the results of the trials in `news` were accepted.

        Raises:
            Interrupted, RunError: to end the search.
        """

    def conclude(self, generation: "Generation") -> None:
        """The last trial has ended: write the result.

        Raises:
            OSError: the file system fails; it is called again.
            RunError: if there is none.
        """

    def note(self, error: OSError) -> None:
        """The file system has failed; it is tried again."""

    def stop(self, reason: Exception) -> None:
        """Let the workers of this process save and end, for a reason that ends the search.

        Raises:
            RunError: if an interruption came too often.
        """


@dataclass
class WorkerView:
    """A worker as the supervisor sees it."""

    state: WorkerState | None = None  # the newest that was read
    silence_s: float = 0.0
    still_s: float = 0.0  # since its attempt's last step
    is_lost: bool = False
    is_old: bool = False  # its state may be that of a process that died before this generation
    has_ended: bool = False  # for good: it was a child of this process, or said that it leaves
    not_before_s: float = 0.0  # to be read again
    task: tuple[tuple[Work, ...], bool] | None = None  # as written last: work, and whether over
    number: int = 0  # of the task
    written_at: int = 0  # count of the state when the task was written
    refused_s: float | None = None  # how long the task could not be written; None if it could


def supervise(shared: SharedFolder, host: Host) -> str:
    """Supervise a sweep until its last trial has ended, or until another process does.

    Returns:
        How it ended: `FINISHED`, `CANCELLED` or `SUPERSEDED`.

    Raises:
        Interrupted, InputError, RunError: as the host decides, or if the file system fails for
            long.
    """
    journal, how = Journal(shared), "failed"
    try:
        how = _supervise(shared, journal, host)
    except (Interrupted, InputError, RunError) as reason:
        how = "interrupted" if isinstance(reason, Interrupted) else how
        host.stop(reason)
        raise
    finally:
        with contextlib.suppress(OSError):  # it only spares the next one a wait
            journal.append([end_record(how, host.ended)])
    return how


def _supervise(shared: SharedFolder, journal: Journal, host: Host) -> str:
    clock, terms = shared.clock, shared.terms
    well_s = clock.now()
    while True:
        generation = None
        try:
            if journal.generation and journal.is_superseded():
                return SUPERSEDED
            journal.take()
            generation = Generation(shared, journal, host)
            return generation.run()
        except OSError as error:
            well_s = clock.now() if generation else well_s  # not before: it may have been stopped
            if clock.now() - well_s > terms.patience_s:
                raise RunError(f"sweep {shared.folder}: {error}; the file system fails") from None
            host.note(error)
            clock.sleep(terms.round_s)
        finally:
            if generation:
                generation.planner.close()


@dataclass
class Generation:
    """One supervisor's time in office, until the file system fails or a newer one takes over."""

    shared: SharedFolder
    journal: Journal
    host: Host
    workers: dict[str, WorkerView] = field(default_factory=dict)  # by uuid

    def __post_init__(self) -> None:
        self.ledger = Ledger()
        for record in self.journal.begin():
            self.ledger.apply(record)
        self.ledger.forget_failures()
        self.planner = self.host.planner(self.ledger)
        for n, (_, report) in self.ledger.accepted.items():
            self.planner.offer(n, report)
        for n in self.ledger.open:  # each of them gets a whole term
            for each in self.ledger.assignments.get(n, ()):
                self.workers.setdefault(each.worker, WorkerView())
        self.number = self.journal.generation
        self.well_s = self.shared.clock.now()  # when the last round ended
        self._count = self._num_assigned = 0
        self._listed_s = float("-inf")
        self._gone: set[str] = set()  # workers of which nothing is awaited any more
        self._saved: dict[int, int] = {}  # steps of a trial's newest checkpoint that was seen
        self._work: dict[str, Work] = {}  # by attempt, of open trials
        self._records: list[Record] = []
        self._news: list[int] = []

    def run(self) -> str:
        """Make rounds until the sweep ends; returns how."""
        while True:
            how = self._round()
            if how == SUPERSEDED:
                return how
            news, self._news = self._news, []
            self.host.after_round(self, news)
            if how:
                return how
            self.shared.clock.sleep(self.shared.terms.round_s)

    @property
    def alive(self) -> list[str]:
        """The workers at work: one that was there before has to be heard of once more."""
        found = self.workers.items()
        return [name for name, each in found if each.state and not (each.is_lost or each.is_old)]

    def holders(self) -> dict[int, str]:
        """The worker of each trial that is assigned and was not reported."""
        newest = {n: given[-1].worker for n in self.ledger.open if (given := self._assignments(n))}
        return {n: name for n, name in newest.items() if not self.workers[name].is_lost}

    def _round(self) -> str:
        shared, now_s = self.shared, self.shared.clock.now()
        self._count += 1
        shared.write(Beat(count=self._count), "journal", str(self.number), BEAT)
        passed_s, self.well_s = min(now_s - self.well_s, LONGEST_LOOK_S), now_s
        self._records = []
        self._list_workers(now_s)
        for name, worker in list(self.workers.items()):
            self._read(name, worker, passed_s)
        self._plan()
        if self.journal.is_superseded():
            return SUPERSEDED
        self.journal.append(self._records)
        how = self._how_it_ends()
        if how == FINISHED:
            if self.journal.is_superseded():  # what is above may have taken long
                return SUPERSEDED
            self.host.conclude(self)
        self._write_tasks(is_over=bool(how))
        return how

    def _how_it_ends(self) -> str:
        if self.planner.is_over and not self.ledger.open:
            return FINISHED
        with contextlib.suppress(OSError):  # nothing new then
            cancel = self.shared.read(Cancel, CANCEL_FILE)
            if cancel and cancel.generation >= self.journal.first:
                return CANCELLED
            is_alone = all(not each.state or each.is_lost for each in self.workers.values())
            if is_alone and self.shared.is_over():
                return FINISHED  # an older supervisor has ended the sweep, and the workers left
        return ""

    # What the workers say

    def _list_workers(self, now_s: float) -> None:
        if now_s - self._listed_s < self.shared.terms.table_s:
            return
        self._listed_s = now_s
        for name in self.shared.disk.names(self.shared.path("workers")):
            if WORKER_ID.fullmatch(name) and name not in self._gone:
                self.workers.setdefault(name, WorkerView())

    def _read(self, name: str, worker: WorkerView, passed_s: float) -> None:
        worker.silence_s += passed_s
        worker.still_s += passed_s
        if worker.refused_s is not None:
            worker.refused_s += passed_s
        # Asked first, so its last state is seen.
        has_ended = name in self.host.ended or name in self.ledger.gone
        if last := worker.state:  # of a supervisor before this one, which was killed with it
            has_ended |= has_died(last.process, last.space)
        now_s, terms = self.shared.clock.now(), self.shared.terms
        if worker.is_lost and now_s < worker.not_before_s and has_ended == worker.has_ended:
            return
        with contextlib.suppress(OSError):  # nothing new then
            state = self.shared.read(WorkerState, "workers", name, STATE)
            if state and (not worker.state or state.count != worker.state.count):
                self._take_up(name, worker, state)
            worker.has_ended |= has_ended  # not before its last state was read
        known = worker.state
        stalls = known and known.attempt and worker.still_s > self.host.limit_s(known)
        unheard_s = max(worker.silence_s, worker.refused_s or 0.0)  # by us, and by it
        if worker.has_ended or stalls or unheard_s > terms.lost_s:
            worker.is_lost, worker.not_before_s = True, now_s + terms.seldom_s
        if worker.has_ended and not self._is_awaited(name):
            self._gone.add(name)
            del self.workers[name]

    def _take_up(self, name: str, worker: WorkerView, state: WorkerState) -> None:
        """Take up a new state of a worker."""
        before, worker.state = worker.state, state
        worker.silence_s, worker.is_lost, worker.has_ended = 0.0, False, state.leaves
        worker.is_old = not before and self._count == 1  # in its first round
        if not before or (state.attempt, state.step) != (before.attempt, before.step):
            worker.still_s = 0.0
        if known := self.ledger.attempts.get(state.attempt):
            self._saved[known[0]] = max(self._saved.get(known[0], 0), state.saved)
        for attempt, report in state.results.items():
            n, owner = self.ledger.attempts.get(attempt, (-1, ""))
            if owner == name and n in self.ledger.open:  # the first report counts
                self._accept(n, attempt, report)

    def _is_awaited(self, name: str) -> bool:
        return any(each.worker == name for n in self.ledger.open for each in self._assignments(n))

    # What follows from it

    def _note(self, record: Record) -> None:
        self._records.append(record)
        self.ledger.apply(record)

    def _accept(self, n: int, attempt: str, report: Report) -> None:
        self._note(accept_record(n, attempt, report))
        self._news.append(n)
        self.planner.offer(n, report)
        for each in self._assignments(n):
            self._work.pop(each.attempt, None)

    def _plan(self) -> None:
        """Propose trials, and assign those that wait: one a worker, a second one if many wait."""
        holders, alive = self.holders(), self.alive
        waiting = [n for n in self.ledger.open if n not in holders]
        for proposal in self.planner.take(2 * len(alive) + 1 - len(waiting)):
            self._note(propose_record(proposal))
            waiting.append(proposal.n)
        held = dict.fromkeys(alive, 0)
        for name in holders.values():
            held[name] = held.get(name, 0) + 1
        for limit, name in [(1, name) for name in alive] + [(2, name) for name in alive]:
            if waiting and held[name] < limit <= 1 + (len(waiting) >= len(alive)):
                n = waiting.pop(0)
                held[name] += self._assign(n, name)

    def _assign(self, n: int, worker: str) -> bool:
        """Assign a trial; False if it has had too many attempts and so has failed."""
        given = self._assignments(n)
        saved = max([self._saved.get(n, 0), *(each.saved for each in given)])
        if sum(each.saved == saved and self._was_begun(each) for each in given) >= MAX_ATTEMPTS:
            error = (
                f"its worker ended {MAX_ATTEMPTS} times before the next checkpoint, perhaps for "
                "lack of memory; lower train.checkpoint_every_s or the size of the model"
            )
            self._accept(n, given[-1].attempt, Report(error=error))
            return False
        self._num_assigned += 1
        attempt = f"{n}/{self.number}.{self._num_assigned}"
        self._note(assign_record(n, Assignment(attempt, worker, saved)))
        return True

    def _was_begun(self, given: Assignment) -> bool:
        """Whether the worker's last state is of this attempt: one that still waited is no failure.

        The states of the workers of open trials are read again by each supervisor.
        """
        worker = self.workers.get(given.worker)
        return bool(worker and worker.state and worker.state.attempt == given.attempt)

    def _assignments(self, n: int) -> list[Assignment]:
        return self.ledger.assignments.get(n, [])

    # What the workers are told

    def _write_tasks(self, *, is_over: bool) -> None:
        work: dict[str, list[Work]] = {}
        for n, name in ({} if is_over else self.holders()).items():
            work.setdefault(name, []).append(self._work_at(n))
        for name, worker in self.workers.items():
            state = worker.state
            if not state:  # its folder may not be there yet
                continue
            task = (tuple(work.get(name, ())), is_over)
            is_echoed = state.obeys == (self.number, worker.number)
            if task == worker.task and (is_echoed or state.count == worker.written_at):
                continue
            worker.number += task != worker.task
            worker.task, worker.written_at = task, state.count
            record = Task(generation=self.number, number=worker.number, work=task[0], over=is_over)
            try:
                self.shared.write(record, "workers", name, TASK)
            except OSError as error:  # it is not echoed then, and so written again
                if worker.refused_s is None:
                    worker.refused_s = 0.0
                    self.host.note(error)
            else:
                worker.refused_s = None

    def _work_at(self, n: int) -> Work:
        """The newest attempt at a trial, as its worker is told of it."""
        attempts = [each.attempt for each in reversed(self._assignments(n))]
        if known := self._work.get(attempts[0]):
            return known
        proposal, parent = self.ledger.proposals[n], None
        if proposal.parent is not None:
            attempt, report = self.ledger.accepted[proposal.parent]
            parent = Parent(attempt=attempt, checkpoints=report.checkpoints)
        work = self._work[attempts[0]] = Work(
            attempt=attempts[0],
            values=proposal.values,
            epochs=proposal.epochs,
            before=tuple(attempts[1:]),
            parent=parent,
        )
        return work
