"""What a worker, a proposer and a command of a search do next: by what they read, and nothing else.

A course is a generator. It yields operations on the sweep's folder and gets their answers; it
touches no disk, clock or random number itself. `harness.tuning.disk` carries the operations out;
the simulation of the tests carries out the same courses with kills, lost nodes and late views.

No decision comes from a listing, a time or an absence alone: a listing is a hint where to read, and
whoever decides too late or for the second time finds the name made already. An attempt's folder has
one writer for ever, so a worker that was taken for lost harms nobody when it comes back.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from harness.errors import Interrupted
from harness.tuning.records import (
    ACCEPTED,
    ENDS,
    STOPS,
    TRIALS,
    Attempt,
    Beat,
    End,
    Gone,
    Record,
    Stop,
    Trial,
    attempt_folder,
    gone_file,
    trial_folder,
)
from harness.tuning.schedule import Schedule

MAX_ATTEMPTS = 25  # at a trial in a row that saved no step more
NUM_WATCHED = 2  # other attempts that a busy worker watches
NUM_WATCHED_IDLE = 16  # attempts that an idle one watches
LONGEST_REST = 5  # times `Terms.idle_s`, of a worker that finds nothing to do for long
LONGEST_LOOK_S = 10.0  # that counts as time without a sign: for longer, nobody looked for one


@dataclass(frozen=True)
class Terms:
    """The times of a search in seconds, each measured by a process's own monotonic clock."""

    idle_s: float = 2.0  # between two looks of an idle process, at least
    each_s: float = 0.1  # more for each trial that it looks at, up to `LONGEST_LOOK_S`
    beat_s: float = 10.0  # between two beats of a worker, and two looks while it trains
    lost_s: float = 180.0  # of silence, after which an attempt counts as lost
    table_s: float = 10.0  # between two looks of a command at the whole search


NETWORK, LOCAL = Terms(), Terms(idle_s=0.25, each_s=0.001, beat_s=2.0, table_s=1.0)


# Operations


@dataclass(frozen=True)
class Read:
    """Read a file: its content, None where it is not there or is none of JSON."""

    path: str


@dataclass(frozen=True)
class Names:
    """List a folder: a hint, new names may be missing."""

    path: str


@dataclass(frozen=True)
class Make:
    """Make a folder that holds one file: True if this call has made it, False if it was there."""

    path: str
    file: str
    record: Record


@dataclass(frozen=True)
class Write:
    """Replace a file that has one writer."""

    path: str
    record: Record


@dataclass(frozen=True)
class Sleep:
    """Wait."""

    time_s: float
    error: OSError | None = None  # because the file system fails; it is tried again


@dataclass(frozen=True)
class Train:
    """Train an attempt: the trial with its result, None if the attempt is needed no more.

    While it trains, `Worker.tick` is carried out again and again.
    """

    trial: Trial
    k: int


@dataclass(frozen=True)
class Clean:
    """Remove checkpoints of an attempt that no other trial will need."""

    n: int
    k: int


Operation = Read | Names | Make | Write | Sleep | Train | Clean
Course = Generator[Operation, Any, Any]  # `Any` is what the operation says


def read(kind: type[Record], path: str) -> Course:
    """Read a record, None where there is none."""
    return kind.of((yield Read(path)))


# What every process of a search sees


@dataclass
class Heard:
    """An attempt at a trial, as a process that watches it has heard of it."""

    k: int
    attempt: Attempt
    looked_s: float  # when it was looked at last
    beat: Beat | None = None
    silent_s: float = 0.0
    is_dead: bool = False  # as this process alone can tell
    is_gone: bool = False  # as everybody is told
    has_left: bool = False  # in order: it saved, and says nothing of the trial

    def is_lost(self, terms: Terms) -> bool:
        """Whether nobody trains it any more."""
        return self.is_gone or self.is_dead or self.silent_s > terms.lost_s

    def successor(self, me: Attempt) -> Attempt:
        """The next attempt, by a worker."""
        saved = max(self.attempt.saved, self.beat.saved if self.beat else 0)
        num_stuck = self.attempt.num_stuck + (not self.has_left)
        return me.model_copy(
            update={"saved": saved, "num_stuck": 0 if saved > self.attempt.saved else num_stuck}
        )


@dataclass
class View:
    """What a process has read of a search: trials, attempts, results."""

    now: Callable[[], float]
    terms: Terms
    has_died: Callable[[Attempt], bool] = lambda _: False  # which the process can tell by itself
    known: list[Trial] = field(default_factory=list)  # as proposed, in their order
    open: dict[int, None] = field(default_factory=dict)  # known and not accepted
    accepted: dict[int, Trial] = field(default_factory=dict)
    newest: dict[int, int] = field(default_factory=dict)  # number of the newest attempt
    heard: dict[int, Heard] = field(default_factory=dict)  # the newest attempts
    num_lifted: int = 0  # stops after which a person went on
    stop: Stop | None = None  # the one after them
    forgiven: set[int] = field(default_factory=set)  # failed trials after which a person went on

    def look(self, num_watched: int | None = None) -> Course:
        """Read what is new, in the order of the trials.

        Args:
            num_watched: the number of attempts to watch, the oldest; by default all.
        """
        yield from self.learn()
        watched = [*self.open][:num_watched]
        others = (n for n in self.open if n not in self.newest)
        for n in dict.fromkeys((*watched, *others)):
            yield from self.look_at(n)

    def look_for_results(self) -> Course:
        """Read the trials and results that are new."""
        yield from self.learn()
        for n in [*self.open]:
            if trial := (yield from read(Trial, f"{trial_folder(n)}/{ACCEPTED}/trial.json")):
                self.accept(trial)

    def learn(self) -> Course:
        """Read the trials that were proposed since."""
        made = set((yield Names(TRIALS)))
        while str(n := len(self.known)) in made:
            if not (trial := (yield from read(Trial, f"{trial_folder(n)}/values.json"))):
                return
            self.know(trial)

    def know(self, trial: Trial) -> None:
        """Take up a proposal, the next one."""
        self.known.append(trial)
        self.open[trial.n] = None

    def accept(self, trial: Trial) -> None:
        """Take up a result."""
        self.accepted[trial.n] = trial
        for found in (self.open, self.heard, self.newest):
            found.pop(trial.n, None)

    def look_at(self, n: int) -> Course:
        """Look whether an open trial is accepted, who trains it, and whether that worker lives."""
        names = set((yield Names(trial_folder(n))))
        if ACCEPTED in names:
            if trial := (yield from read(Trial, f"{trial_folder(n)}/{ACCEPTED}/trial.json")):
                self.accept(trial)
            return
        numbers = [int(name) for name in names if name.isdecimal()]
        if k := max([self.newest.get(n, 0), *numbers]):
            self.newest[n] = k
            yield from self._listen(n, k, may_be_gone=f"gone-{k}.json" in names)

    def _listen(self, n: int, k: int, *, may_be_gone: bool) -> Course:
        heard = self.heard.get(n)
        if not heard or heard.k != k:
            if attempt := (yield from read(Attempt, f"{attempt_folder(n, k)}/owner.json")):
                self.heard[n] = heard = Heard(k, attempt, self.now())
            else:  # its worker can't be seen yet, so its term has not begun
                self.heard.pop(n, None)
                return
        beat = yield from read(Beat, f"{attempt_folder(n, k)}/beat.json")
        passed_s, heard.looked_s = self.now() - heard.looked_s, self.now()
        if beat and (not heard.beat or beat.count != heard.beat.count):
            heard.beat, heard.silent_s = beat, 0.0
        else:
            heard.silent_s += min(passed_s, LONGEST_LOOK_S)
        if may_be_gone and (gone := (yield from read(Gone, gone_file(n, k)))):
            heard.is_gone, heard.has_left = True, gone.has_left
        heard.is_dead = self.has_died(heard.attempt)

    def is_stopped(self) -> Course:
        """Whether somebody cancelled the search, or it has failed, and no person went on since."""
        while stop := (yield from read(Stop, f"{STOPS}/{self.num_lifted + 1}/stop.json")):
            self.stop = stop
            if not (yield Read(f"{STOPS}/{self.num_lifted + 1}/lifted/stop.json")):
                return True
            self.forgiven.update(stop.failed)
            self.num_lifted, self.stop = self.num_lifted + 1, None
        return False

    def is_over(self, num_asked: int) -> Course:
        """Whether all trials are proposed and accepted; `num_asked` is `search.trials`."""
        if self.open:
            return False
        end = yield from read(End, f"{ENDS}/{num_asked}/end.json")
        return end is not None and len(self.accepted) >= end.num_trials

    @property
    def rest_s(self) -> float:
        """Between two looks of a proposer: the longer the more there is to look at."""
        each_s = self.terms.each_s * len(self.open)
        return min(max(self.terms.idle_s, each_s), LONGEST_LOOK_S)


# A worker


OVER, STOPPED, RENEW = "over", "stopped", "renew"


class Worker:
    """A worker: takes a trial, trains it, reports it, takes the next one."""

    def __init__(
        self,
        view: View,
        me: Attempt,
        num_asked: int,
        *,
        must_renew: Callable[[], bool] = lambda: False,
    ) -> None:
        """A worker that has looked at nothing yet.

        Args:
            me: who it is.
            num_asked: `search.trials`.
            must_renew: whether another process should go on in its place.
        """
        self.view, self.me, self.num_asked, self.must_renew = view, me, num_asked, must_renew
        self._count = 0  # of beats
        self._num_idle = 0  # looks in a row that found nothing to do

    def course(self) -> Course:
        """Work to the end of the search: `OVER`, `STOPPED` or `RENEW`."""
        while True:
            try:
                how = yield from self._turn()
            except OSError as error:
                yield Sleep(self.view.terms.idle_s, error)
            else:
                if how:
                    return how

    def _turn(self) -> Course:
        if (yield from self.view.is_stopped()):
            return STOPPED
        yield from self.view.look(NUM_WATCHED_IDLE)
        if (yield from self.view.is_over(self.num_asked)):
            return OVER
        if self.must_renew():
            return RENEW
        if taken := (yield from self._take()):
            self._num_idle = 0
            yield from self._train(*taken)
        else:
            self._num_idle = min(self._num_idle + 1, LONGEST_REST)
            yield Sleep(self._num_idle * self.view.terms.idle_s)
        return None

    def _take(self) -> Course:
        """Take the first trial that nobody trains: its number and that of the attempt."""
        view = self.view
        for n in [*view.open]:
            k, heard, attempt = view.newest.get(n, 0), view.heard.get(n), self.me
            if k:
                if not heard or heard.k != k:  # somebody has it, and can't be seen yet
                    continue
                if heard.attempt.worker == self.me.worker and not heard.is_gone:
                    return n, k  # made by a call whose answer was lost
                if not heard.is_lost(view.terms):
                    continue
                attempt = heard.successor(self.me)
                if attempt.num_stuck >= MAX_ATTEMPTS:
                    yield Make(f"{trial_folder(n)}/{ACCEPTED}", "trial.json", self._stuck(n, k))
                    continue
            if (yield Make(attempt_folder(n, k + 1), "owner.json", attempt)):
                return n, k + 1
            view.newest[n] = k + 1
        return None

    def _stuck(self, n: int, k: int) -> Trial:
        error = (
            f"its worker ended {MAX_ATTEMPTS} times before the next checkpoint, perhaps for lack "
            "of memory; lower train.checkpoint_every_s or the size of the model"
        )
        return self.view.known[n].model_copy(update={"attempt": k, "error": error})

    def _train(self, n: int, k: int) -> Course:
        """Train an attempt and report its result; the first that anybody reports counts."""
        try:
            trial = yield Train(self.view.known[n], k)
        except Interrupted:
            with contextlib.suppress(OSError):  # else whoever goes on waits
                yield Write(gone_file(n, k), Gone(has_left=True))
            raise
        if trial:
            if (yield Make(f"{trial_folder(n)}/{ACCEPTED}", "trial.json", trial)):
                self.view.accept(trial)
            yield Clean(n, k)
        else:
            yield Write(gone_file(n, k), Gone(has_left=True))

    def tick(self, n: int, k: int, *, step: int, saved: int) -> Course:
        """While attempt k trains: beat, watch others, and say whether it is needed no more."""
        self._count += 1
        beat = Beat(count=self._count, step=step, saved=saved)
        yield Write(f"{attempt_folder(n, k)}/beat.json", beat)
        if (yield from self.view.is_stopped()):
            return True
        for other in self._watched(n):
            yield from self.view.look_at(other)
        names = yield Names(trial_folder(n))
        if ACCEPTED in names and (yield Read(f"{trial_folder(n)}/{ACCEPTED}/trial.json")):
            return True
        later = f"{attempt_folder(n, k + 1)}/owner.json"
        return str(k + 1) in names and bool((yield Read(later)))

    def _watched(self, n: int) -> list[int]:
        """The open trials that come after the own one, and from the first on."""
        others = [each for each in self.view.open if each != n]
        later = [each for each in others if each > n]
        return [*later, *(each for each in others if each < n)][:NUM_WATCHED]


# A proposer


class Proposer:
    """Proposes trials; of several that do, the first to make a trial's name decides its values."""

    def __init__(
        self,
        view: View,
        begin: Callable[[list[Trial]], Schedule],
        num_asked: int,
        *,
        ahead: int,
        is_guided: bool,
    ) -> None:
        """A proposer that has looked at nothing yet.

        Args:
            begin: the schedule of which the first trials are known, a list that grows.
            num_asked: `search.trials`.
            ahead: trials that wait for a worker, where the oracle waits for no result.
            is_guided: whether the oracle's choices depend on results.
        """
        self.view, self.begin, self.num_asked = view, begin, num_asked
        self.ahead, self.is_guided = ahead, is_guided
        self._schedule: Schedule | None = None
        self._num_offered = 0
        self._next: Trial | None = None  # proposed, and not made yet
        self._num_taken = 0  # the first trials, which all have had an attempt

    def course(self) -> Course:
        """Propose to the last trial: `OVER` or `STOPPED`.

        Raises:
            RunError: if the oracle proposes other trials than it did.
        """
        rest_s = self.view.terms.idle_s
        while True:
            try:
                how = yield from self._turn()
            except OSError as error:
                yield Sleep(rest_s, error)
            else:
                if how:
                    return how
                yield Sleep(self.view.rest_s if self.is_guided else rest_s)

    def _turn(self) -> Course:
        view = self.view
        if (yield from view.is_stopped()):
            return STOPPED
        yield from (view.look_for_results() if self.is_guided else view.learn())
        while (yield from self._has_room()):
            if not (trial := self._propose()):
                break
            if (yield Make(trial_folder(trial.n), "values.json", trial)):
                view.know(trial)
                self._next = None
            else:
                yield from view.learn()
                if len(view.known) <= trial.n:  # it can't be seen yet
                    return None
        if self._schedule and self._schedule.is_over and not self._next:
            end = End(num_trials=len(view.known))
            yield Make(f"{ENDS}/{self.num_asked}", "end.json", end)
            return OVER
        return None

    def _has_room(self) -> Course:
        """Whether too few trials wait for a worker; a guided oracle limits them by itself."""
        if self.is_guided:
            return True
        known = len(self.view.known)
        while self._num_taken < known:
            first = f"{attempt_folder(self._num_taken, 1)}/owner.json"
            if not (yield Read(first)):
                break
            self._num_taken += 1
        return known - self._num_taken < self.ahead

    def _propose(self) -> Trial | None:
        """The first trial that is not known, as the results so far have it."""
        if self._next and len(self.view.known) > self._next.n:
            if self.view.known[self._next.n].proposal != self._next.proposal:
                self._schedule = None  # another library rounds otherwise, or has more trials
            self._next = None
        if not self._schedule:
            self._schedule, self._num_offered = self.begin(self.view.known), 0
        for trial in [*self.view.accepted.values()][self._num_offered :]:
            self._schedule.offer(trial)
        self._num_offered = len(self.view.accepted)
        while not self._next and (proposed := self._schedule.next()):
            if proposed.n >= len(self.view.known):
                self._next = proposed
        return self._next


# A command


def follow(view: View) -> Course:
    """Read what is new: the trials that were accepted since the last time."""
    before = set(view.accepted)
    yield from view.look()
    return [trial for n, trial in view.accepted.items() if n not in before]


def running(view: View) -> dict[int, Attempt]:
    """The workers that train, by trial."""
    found = view.heard.items()
    return {n: heard.attempt for n, heard in found if not heard.is_lost(view.terms)}


def shown(view: View) -> list[Trial]:
    """All trials as the leaderboard shows them."""
    names = {n: attempt.name for n, attempt in running(view).items()}
    return [
        view.accepted.get(n) or trial.model_copy(update={"worker": names.get(n, "")})
        for n, trial in enumerate(view.known)
    ]


def tell_gone(view: View, ended: Iterable[str]) -> Course:
    """Say of each open attempt whose worker has ended that it is gone, so that nobody waits."""
    of = set(ended)
    for n, heard in [*view.heard.items()]:
        if heard.attempt.worker in of and not heard.is_gone:
            yield Write(gone_file(n, heard.k), Gone(has_left=False))
            heard.is_gone = True


def next_stop(view: View, stop: Stop) -> Course:
    """Stop the search: until a person goes on with it, nobody trains."""
    if not (yield from view.is_stopped()):
        yield Make(f"{STOPS}/{view.num_lifted + 1}", "stop.json", stop)


def lift_stop(view: View, stop: Stop) -> Course:
    """Go on with a search that was stopped."""
    if (yield from view.is_stopped()):
        yield Make(f"{STOPS}/{view.num_lifted + 1}/lifted", "stop.json", stop)
