"""The protocol of a search: what is written in a sweep's folder, and what its processes do next.

| name | made by | holds |
| --- | --- | --- |
| `trials/<n>/` once | whoever proposes trial n first | `values.json`: a `Trial` |
| `trials/<n>/<k>/` once | the worker whose attempt k is | `owner.json`: an `Attempt`; its runs |
| `trials/<n>/<k>/beat.json` | that worker | a `Beat` |
| `gone/<n>-<k>.json` | that worker, or a command that saw it end or heard nothing | a `Gone` |
| `trials/<n>/accepted/` once | whoever reports first | `trial.json`: the `Trial` with its scores |
| `ends/<search.trials>/` once | whoever proposed the last trial | `end.json`: an `End` |
| `stop.json` | who cancels, or sees the search fail; `harness resume` | a `Stop` |

A course is a generator: what a worker, a proposer or a command does, by what it reads and nothing
else. It yields operations on the sweep's folder and gets their answers; it touches no disk, clock
or random number itself. `harness.tuning.disk` carries the operations out; the simulation of the
tests carries out the same courses with kills, lost nodes and late views.

No decision comes from a time or an absence alone, and a listing is a hint where to read: whoever
decides too late or for the second time finds the name made already. An attempt's folder has one
writer for ever, so a worker that was taken for lost harms nobody when it comes back.
"""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import Interrupted
from harness.job.search import Value

TRIALS, GONE, ENDS, STOP, ACCEPTED = "trials", "gone", "ends", "stop.json", "accepted"
MAX_ATTEMPTS = 25  # at a trial in a row that saved no step more
STUCK = (
    "its worker ended {} times before the next checkpoint, perhaps for lack of memory; lower "
    "train.checkpoint_every_s or the size of the model"
)
NUM_WATCHED = 16  # attempts that an idle worker watches
BEAT_S = 5.0  # between two beats of a worker
LOST_S = 180.0  # of silence by a command's monotonic clock, after which an attempt counts as lost
REST_EACH_S = 0.3  # between two looks, for each trial that is looked at
SHORTEST_REST_S, LONGEST_REST_S = 0.25, 15.0


# What is written


class Record(BaseModel):
    """The content of a file; fields that this version does not know are left out."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @classmethod
    def of(cls, content: object) -> Self | None:
        """A record as it was read, None where the file is not there or holds none."""
        try:
            return cls.model_validate(content)
        except ValidationError:
            return None


class Trial(Record):
    """A trial, from its proposal to its row of the leaderboard."""

    n: int
    values: dict[str, Value]  # by the job's keys
    limit: int | None = None  # epochs to train, where the oracle decides
    parent: int | None = None  # the trial from whose end it goes on
    # What follows from the attempt that counts
    attempt: int = 0
    scores: dict[str, float] = {}  # means over its runs
    error: str = ""
    epochs: int | None = None  # trained
    kept_epoch: float | None = None  # of the best weights, mean over its runs
    training_s: float | None = None  # of all its runs
    parameters: int | None = None
    checkpoints: dict[str, str] = {}  # for a promotion: a path below the attempt's folder → sha256
    # Of a trial that is being trained, never in a file
    worker: str = ""

    @property
    def status(self) -> str:
        """`finished`, `failed`, `running` or `waiting`."""
        if self.error:
            return "failed"
        if self.scores:
            return "finished"
        return "running" if self.worker else "waiting"

    @property
    def proposal(self) -> tuple[object, ...]:
        """What the oracle said of it."""
        return self.n, self.values, self.limit, self.parent


class Attempt(Record):
    """Who trains a trial, in a folder where nobody else ever writes."""

    worker: str  # uuid of the process
    name: str = ""  # for people
    process: int = 0
    space: str = ""  # of the process's number, see `process_space`
    saved: int = 0  # steps that the attempts before it had saved
    num_stuck: int = 0  # attempts in a row before it that saved no step more


class Beat(Record):
    """That the worker of an attempt lives."""

    count: int  # of its beats
    saved: int = 0  # steps that the newest checkpoint holds


class Gone(Record):
    """That the worker of an attempt has ended, or was not heard of for long."""

    has_left: bool  # in order: it saved before


class End(Record):
    """That the oracle has proposed all trials of a search."""

    num_trials: int


class Stop(Record):
    """That a search is stopped, and stays so until a person goes on with it."""

    by: str  # a person and a machine
    at: str
    reason: str = ""  # why it failed; empty if it was cancelled
    is_lifted: bool = False  # that person has
    forgiven: tuple[int, ...] = ()  # trials that had failed by then, which count no more


def trial_folder(n: int) -> str:
    """The folder of a trial."""
    return f"{TRIALS}/{n}"


def attempt_folder(n: int, k: int) -> str:
    """The folder of attempt k at trial n."""
    return f"{TRIALS}/{n}/{k}"


def gone_file(n: int, k: int) -> str:
    """The file that says that nobody trains attempt k at trial n any more."""
    return f"{GONE}/{n}-{k}.json"


# Operations


class Read(NamedTuple):
    """Read a file: its content, None where it is not there or is none of JSON."""

    path: str


class Names(NamedTuple):
    """List a folder: a hint, new names may be missing."""

    path: str


class Make(NamedTuple):
    """Make a folder that holds one file: True if this call has made it, False if it was there."""

    path: str
    file: str
    record: Record


class Write(NamedTuple):
    """Replace a file that has one writer."""

    path: str
    record: Record


class Sleep(NamedTuple):
    """Wait."""

    time_s: float
    error: OSError | None = None  # because the file system fails; it is tried again


class Train(NamedTuple):
    """Train an attempt: the trial with its result.

    While it trains, `Worker.tick` is carried out again and again.
    """

    trial: Trial
    k: int


Operation = Read | Names | Make | Write | Sleep | Train
Course = Generator[Operation, Any, Any]  # `Any` is what the operation says


def read(kind: type[Record], path: str) -> Course:
    """Read a record, None where there is none."""
    return kind.of((yield Read(path)))


def read_result(n: int) -> Course:
    """Read a trial with its result, None where there is none."""
    return (yield from read(Trial, f"{trial_folder(n)}/{ACCEPTED}/trial.json"))


# What every process of a search sees


@dataclass
class Heard:
    """The newest attempt at an open trial, as a process has heard of it."""

    k: int = 0  # its number, 0 before the first
    attempt: Attempt | None = None  # None as long as its owner can't be seen
    gone: Gone | None = None  # nobody trains it any more
    # Of a command, which listens
    beat: Beat | None = None
    listened_s: float | None = None  # when it did last
    silent_s: float = 0.0

    @property
    def worker(self) -> Attempt | None:
        """Who trains it, as far as anybody knows."""
        return None if self.gone else self.attempt

    def listen(self, n: int, now_s: float) -> Course:
        """Read its beat, and count the time without a new one."""
        beat = yield from read(Beat, f"{attempt_folder(n, self.k)}/beat.json")
        passed_s = now_s - (now_s if self.listened_s is None else self.listened_s)
        self.listened_s = now_s
        if beat and (not self.beat or beat.count != self.beat.count):
            self.beat, self.silent_s = beat, 0.0
        else:
            self.silent_s += min(passed_s, LONGEST_REST_S)  # for longer, nobody listened


@dataclass
class View:
    """What a process has read of a search: trials, attempts, results."""

    known: list[Trial] = field(default_factory=list)  # as proposed, in their order
    open: dict[int, Heard] = field(default_factory=dict)  # known and not accepted
    accepted: dict[int, Trial] = field(default_factory=dict)
    stop: Stop | None = None  # the last one, which may be lifted
    rest_s: float = SHORTEST_REST_S  # to the next look: the longer the more there is to look at

    def look(self, num_watched: int | None = None) -> Course:
        """Read what is new, in the order of the trials.

        Args:
            num_watched: the number of attempts to watch, the oldest; by default all. Trials that
                nobody trains are looked at besides.
        """
        yield from self.learn()
        gone = {f"{GONE}/{name}" for name in (yield Names(GONE))}
        free = [n for n, heard in self.open.items() if not heard.k or gone_file(n, heard.k) in gone]
        due = dict.fromkeys([*self.open][:num_watched] + free)
        for n in due:
            yield from self._look_at(n, gone)
        self.rest_s = min(max(REST_EACH_S * len(due), SHORTEST_REST_S), LONGEST_REST_S)

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
        self.open[trial.n] = Heard()

    def accept(self, trial: Trial) -> None:
        """Take up a result."""
        self.accepted[trial.n] = trial
        self.open.pop(trial.n, None)

    def _look_at(self, n: int, gone: set[str]) -> Course:
        """Look whether an open trial is accepted, and who trains it."""
        names = set((yield Names(trial_folder(n))))
        if ACCEPTED in names:
            if trial := (yield from read_result(n)):
                self.accept(trial)
            return
        heard = self.open[n]
        k = max([heard.k, *(int(name) for name in names if name.isdecimal())])
        if k > heard.k:
            self.open[n] = heard = Heard(k)
        if k and not heard.attempt:
            heard.attempt = yield from read(Attempt, f"{attempt_folder(n, k)}/owner.json")
        if gone_file(n, k) in gone and not heard.gone:
            heard.gone = yield from read(Gone, gone_file(n, k))

    def is_stopped(self) -> Course:
        """Whether somebody cancelled the search, or it has failed, and no person went on since."""
        self.stop = yield from read(Stop, STOP)
        return self.stop is not None and not self.stop.is_lifted

    def end(self, num_asked: int) -> Course:
        """The `End`, None before the last trial is proposed; `num_asked` is `search.trials`."""
        return (yield from read(End, f"{ENDS}/{num_asked}/end.json"))

    def is_over(self, num_asked: int) -> Course:
        """Whether all trials are proposed and accepted."""
        end = None if self.open else (yield from self.end(num_asked))
        return end is not None and len(self.accepted) >= end.num_trials


def take_turns(turn: Callable[[], Course], view: View) -> Course:
    """Take turns until one says that it was the last; where the file system fails, again."""
    while True:
        try:
            if (yield from turn()):
                return
        except OSError as error:
            yield Sleep(view.rest_s, error)


# A worker


@dataclass
class Worker:
    """A worker: takes a trial, trains it, reports it, takes the next one."""

    me: Attempt
    num_asked: int  # `search.trials`
    must_renew: Callable[[], bool] = lambda: False  # whether another process should go on
    view: View = field(default_factory=View)
    _count: int = 0  # of beats

    def turn(self) -> Course:
        """Take a trial, or rest; whether the search is over or stopped, or another should go on."""
        if (yield from self.view.is_stopped()):
            return True
        yield from self.view.look(NUM_WATCHED)
        if (yield from self.view.is_over(self.num_asked)) or self.must_renew():
            return True
        if taken := (yield from self._take()):
            yield from self._train(*taken)
        else:
            yield Sleep(self.view.rest_s)
        return False

    def _take(self) -> Course:
        """Take the first trial that nobody trains: its number and that of the attempt."""
        for n, heard in [*self.view.open.items()]:
            k, attempt = heard.k, self.me
            if k:
                if not heard.attempt:  # somebody has it, and can't be seen yet
                    continue
                if not heard.gone:
                    if heard.attempt.worker == self.me.worker:
                        return n, k  # made by a call whose answer was lost
                    continue
                attempt = yield from self._after(n, k, heard.attempt, heard.gone)
                if attempt.num_stuck >= MAX_ATTEMPTS:
                    stuck = {"attempt": k, "error": STUCK.format(MAX_ATTEMPTS)}
                    failed = self.view.known[n].model_copy(update=stuck)
                    yield Make(f"{trial_folder(n)}/{ACCEPTED}", "trial.json", failed)
                    continue
            if (yield Make(attempt_folder(n, k + 1), "owner.json", attempt)):
                return n, k + 1
            self.view.open[n] = Heard(k + 1)
        return None

    def _after(self, n: int, k: int, before: Attempt, gone: Gone) -> Course:
        """The attempt that goes on after one whose worker is gone."""
        beat = yield from read(Beat, f"{attempt_folder(n, k)}/beat.json")
        saved = max(before.saved, beat.saved if beat else 0)
        num_stuck = 0 if saved > before.saved else before.num_stuck + (not gone.has_left)
        return self.me.model_copy(update={"saved": saved, "num_stuck": num_stuck})

    def _train(self, n: int, k: int) -> Course:
        """Train an attempt and report its result; the first that anybody reports counts."""
        try:
            trial = yield Train(self.view.known[n], k)
        except Interrupted:
            with contextlib.suppress(OSError):  # else whoever goes on waits
                yield Write(gone_file(n, k), Gone(has_left=True))
            raise
        if (yield Make(f"{trial_folder(n)}/{ACCEPTED}", "trial.json", trial)):
            self.view.accept(trial)

    def tick(self, n: int, k: int, *, saved: int) -> Course:
        """While attempt k trains: beat, and say whether it is needed no more."""
        self._count += 1
        yield Write(f"{attempt_folder(n, k)}/beat.json", Beat(count=self._count, saved=saved))
        names = yield Names(trial_folder(n))
        return ACCEPTED in names or str(k + 1) in names


# A command


def follow(view: View, now_s: float) -> Course:
    """Read what is new, and listen: the trials that were accepted since the last time.

    Args:
        now_s: by the process's own monotonic clock.
    """
    before = set(view.accepted)
    yield from view.look()
    for n, heard in view.open.items():
        if heard.worker:
            yield from heard.listen(n, now_s)
    return [trial for n, trial in view.accepted.items() if n not in before]


def tell_gone(view: View, has_ended: Callable[[Attempt], bool]) -> Course:
    """Tell everybody of each attempt that nobody trains any more; the workers that are silent.

    Args:
        has_ended: whether the worker of an attempt has, as this process can tell by itself.
    """
    silent = set()
    for n, heard in view.open.items():
        is_silent = heard.silent_s > LOST_S
        if (worker := heard.worker) and (is_silent or has_ended(worker)):
            gone = Gone(has_left=False)
            yield Write(gone_file(n, heard.k), gone)
            heard.gone = gone
            silent |= {worker.worker} if is_silent else set()
    return silent


def running(view: View) -> dict[int, Attempt]:
    """The workers that train, by trial."""
    return {n: worker for n, heard in view.open.items() if (worker := heard.worker)}


def shown(view: View) -> list[Trial]:
    """All trials as the leaderboard shows them."""
    names = {n: attempt.name for n, attempt in running(view).items()}
    return [
        view.accepted.get(n) or trial.model_copy(update={"worker": names.get(n, "")})
        for n, trial in enumerate(view.known)
    ]


def change_stop(view: View, stop: Stop) -> Course:
    """Stop the search, so that nobody trains until a person lifts that; or lift it."""
    if (yield from view.is_stopped()) == stop.is_lifted:
        yield Write(STOP, stop)
