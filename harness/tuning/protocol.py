"""Defines the protocol of a search: the files in a sweep's folder, and what each process does.

| name | writer | content |
| --- | --- | --- |
| `trials/<n>/` once | the first proposer of trial n | `values.json`: a `Trial` |
| `trials/<n>/<k>/` once | the worker of attempt k | `owner.json`: an `Attempt`; the runs |
| `trials/<n>/<k>/beat.json` | the same worker | a `Beat` |
| `gone/<n>-<k>.json` | the same worker, or a command that presumes that worker dead | a `Gone` |
| `trials/<n>/accepted/` once | the first worker to report | `trial.json`: a `Trial` with scores |
| `ends/<search.trials>/` once | the proposer of the last trial | `end.json`: an `End` |
| `stop.json` | a cancelling user, a failing command, `harness resume` | a `Stop` |

A folder marked `once` is created by exactly one process, together with its first file.

The program of a worker, a proposer or a command is a generator, called a `Course`. The generator
yields operations on the sweep's folder and receives their results. The generator itself uses no
disk, clock or random number. `harness.tuning.disk` executes the operations. A simulation in the
tests executes the same generators with killed processes, lost nodes and stale file listings.

Wrong clocks and outdated listings of folders do no harm. A process uses the listing of a folder
only to choose which files to read. A process that acts too late, or twice, tries to create a
folder that already exists; the creation fails and changes nothing. Only one worker ever writes
into an attempt's folder, so a worker that is presumed dead does no harm if it continues.
"""

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import Interrupted
from harness.job.search import Value

TRIALS, GONE, ENDS, STOP, ACCEPTED = "trials", "gone", "ends", "stop.json", "accepted"
MAX_ATTEMPTS = 25  # largest number of consecutive attempts that save no further step
STUCK = (
    "the trial's worker ended {} times in a row without saving a new checkpoint, perhaps for lack "
    "of memory; lower train.checkpoint_every_s or the size of the model"
)
NUM_WATCHED = 16  # number of open trials that a worker reads in `Worker.turn`
BEAT_S = 5.0  # time between two heartbeats of a worker
LOST_S = 180.0  # time without a heartbeat after which a command presumes a worker dead
REST_EACH_S = 0.3  # pause after `View.look`, for each trial that it has read
SHORTEST_REST_S, LONGEST_REST_S = 0.25, 15.0  # limits of the pause after `View.look`


# Records


class Record(BaseModel):
    """The content of a file; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @classmethod
    def of(cls, content: object) -> Self | None:
        """Make a record from a file's content; return None if the content is missing or invalid."""
        try:
            return cls.model_validate(content)
        except ValidationError:
            return None


class Trial(Record):
    """A trial: the oracle's proposal and, later, the result of its training."""

    n: int
    values: dict[str, Value]  # key of the job → its value in this trial
    limit: int | None = None  # number of epochs to train, if the oracle decides it
    parent: int | None = None  # number of the trial whose last checkpoint this trial continues
    # The result, set by the accepted attempt
    attempt: int = 0
    scores: dict[str, float] = {}  # mean of each score over the trial's runs
    error: str = ""
    epochs: int | None = None  # number of trained epochs
    kept_epoch: float | None = None  # epoch of the best weights, mean over the trial's runs
    training_s: float | None = None  # training time of all runs together
    parameters: int | None = None
    checkpoints: dict[str, str] = {}  # path of a run's last checkpoint → its sha256
    # The name of the worker of a running trial, never stored in a file
    worker: str = ""

    @property
    def status(self) -> str:
        """Return `finished`, `failed`, `running` or `waiting`."""
        if self.error:
            return "failed"
        if self.scores:
            return "finished"
        return "running" if self.worker else "waiting"

    @property
    def proposal(self) -> tuple[object, ...]:
        """Return the fields that the oracle decides."""
        return self.n, self.values, self.limit, self.parent


class Attempt(Record):
    """An attempt at a trial by a worker; only this worker writes into the attempt's folder."""

    worker: str  # uuid of the worker's process
    name: str = ""  # name of the worker in messages and logs
    process: int = 0  # process id
    space: str = ""  # boot and container in which the process id is valid, see `process_space`
    saved: int = 0  # largest number of steps that an earlier attempt has saved
    num_stuck: int = 0  # number of consecutive earlier attempts that saved no further step


class Beat(Record):
    """A heartbeat of the worker of an attempt."""

    count: int  # number of heartbeats so far
    saved: int = 0  # number of steps in the newest checkpoints, summed over the runs


class Gone(Record):
    """Says that the worker of an attempt has ended, or has sent no heartbeat for LOST_S."""

    has_left: bool  # True if the worker wrote this record, False if a command wrote it


class End(Record):
    """Says that the oracle has proposed all trials of the search."""

    num_trials: int


class Stop(Record):
    """Says that the search is stopped, or that a person has resumed it."""

    by: str  # the user and the machine
    at: str
    reason: str = ""  # why the search failed; empty for a cancelled search
    is_lifted: bool = False  # whether a person has resumed the search


def trial_folder(n: int) -> str:
    """Return the path of a trial's folder."""
    return f"{TRIALS}/{n}"


def attempt_folder(n: int, k: int) -> str:
    """Return the path of the folder of attempt k at trial n."""
    return f"{TRIALS}/{n}/{k}"


def gone_file(n: int, k: int) -> str:
    """Return the path of attempt k's `Gone`, the file that frees trial n for another worker."""
    return f"{GONE}/{n}-{k}.json"


# Operations


class Read(NamedTuple):
    """Read a JSON file and return its content; None if the file is missing or invalid."""

    path: str


class Names(NamedTuple):
    """List the names in a folder; a shared disk may not list the newest names yet."""

    path: str


class Make(NamedTuple):
    """Create a folder with one file; return False if the folder already exists."""

    path: str
    file: str
    record: Record


class Write(NamedTuple):
    """Write a file, or replace the file if it exists."""

    path: str
    record: Record


class Sleep(NamedTuple):
    """Wait for `time_s`, or until a signal arrives."""

    time_s: float
    error: OSError | None = None  # the error after which the process waits and tries again


class Train(NamedTuple):
    """Train a trial, as its attempt number k, and return the trial with its result.

    During the training a second thread executes `Worker.tick` every BEAT_S.
    """

    trial: Trial
    k: int


Operation = Read | Names | Make | Write | Sleep | Train
Course = Generator[Operation, Any, Any]  # yields operations and receives their results


def read(kind: type[Record], path: str) -> Course:
    """Read a record; return None if the file is missing or invalid."""
    return kind.of((yield Read(path)))


def read_result(n: int) -> Course:
    """Read the accepted result of a trial; return None if no result is accepted yet."""
    return (yield from read(Trial, f"{trial_folder(n)}/{ACCEPTED}/trial.json"))


# What a process knows


@dataclass
class Heard:
    """What a process knows about the newest attempt at an open trial."""

    k: int = 0  # number of the attempt, 0 before the first one
    attempt: Attempt | None = None  # None while `owner.json` is not visible
    gone: Gone | None = None
    # Only commands use the following fields
    beat: Beat | None = None
    listened_s: float | None = None  # time when `beat.json` was last read
    silent_s: float = 0.0  # time without a new heartbeat

    @property
    def worker(self) -> Attempt | None:
        """Return the attempt if its worker has not ended and `owner.json` is visible, else None."""
        return None if self.gone else self.attempt

    def listen(self, n: int, now_s: float) -> Course:
        """Read the attempt's heartbeat, and count the time without a new heartbeat."""
        beat = yield from read(Beat, f"{attempt_folder(n, self.k)}/beat.json")
        passed_s = now_s - (now_s if self.listened_s is None else self.listened_s)
        self.listened_s = now_s
        if beat and (not self.beat or beat.count != self.beat.count):
            self.beat, self.silent_s = beat, 0.0
        else:
            # A longer time shows that this process was suspended, not that the worker is silent.
            self.silent_s += min(passed_s, LONGEST_REST_S)


@dataclass
class View:
    """What a process has read of a search: trials, attempts and results."""

    known: list[Trial] = field(default_factory=list)  # all proposed trials, in order
    open: dict[int, Heard] = field(default_factory=dict)  # trials without an accepted result
    accepted: dict[int, Trial] = field(default_factory=dict)  # trials with their results
    stop: Stop | None = None  # the content of `stop.json`
    rest_s: float = SHORTEST_REST_S  # pause before the next `look`, longer for more open trials

    def look(self, num_watched: int | None = None) -> Course:
        """Read what has changed: new trials, attempts and results.

        Args:
            num_watched: how many open trials (trials without an accepted result) to read,
                beginning with the oldest trial; None reads all open trials. Whatever this
                number is, `look` also reads every open trial that no worker trains.
        """
        yield from self.learn()
        gone = {f"{GONE}/{name}" for name in (yield Names(GONE))}
        free = [n for n, heard in self.open.items() if not heard.k or gone_file(n, heard.k) in gone]
        due = dict.fromkeys([*self.open][:num_watched] + free)
        for n in due:
            yield from self._look_at(n, gone)
        self.rest_s = min(max(REST_EACH_S * len(due), SHORTEST_REST_S), LONGEST_REST_S)

    def learn(self) -> Course:
        """Read newly proposed trials."""
        made = set((yield Names(TRIALS)))
        while str(n := len(self.known)) in made:
            if not (trial := (yield from read(Trial, f"{trial_folder(n)}/values.json"))):
                return
            self.know(trial)

    def know(self, trial: Trial) -> None:
        """Append the next proposed trial to the trials that this process knows."""
        self.known.append(trial)
        self.open[trial.n] = Heard()

    def accept(self, trial: Trial) -> None:
        """Store a trial with its accepted result; the trial is no longer open."""
        self.accepted[trial.n] = trial
        self.open.pop(trial.n, None)

    def _look_at(self, n: int, gone: set[str]) -> Course:
        """Read whether an open trial is accepted, and which worker trains it."""
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
        """Whether the search was cancelled or has failed, and no person has resumed it."""
        self.stop = yield from read(Stop, STOP)
        return self.stop is not None and not self.stop.is_lifted

    def end(self, num_asked: int) -> Course:
        """Read the `End` of a search for `num_asked` trials; None until all are proposed."""
        return (yield from read(End, f"{ENDS}/{num_asked}/end.json"))

    def is_over(self, num_asked: int) -> Course:
        """Whether all trials are proposed and accepted."""
        end = None if self.open else (yield from self.end(num_asked))
        return end is not None and len(self.accepted) >= end.num_trials


def take_turns(turn: Callable[[], Course], view: View) -> Course:
    """Call `turn` until it returns true; after a disk error, wait and try again."""
    while True:
        try:
            if (yield from turn()):
                return
        except OSError as error:
            yield Sleep(view.rest_s, error)


# A worker


@dataclass
class Worker:
    """A worker: it takes a trial, trains it, reports the result and takes the next trial."""

    me: Attempt  # this process
    num_asked: int  # `search.trials`
    must_renew: Callable[[], bool] = lambda: False  # whether to replace this process
    view: View = field(default_factory=View)
    _count: int = 0  # number of heartbeats so far

    def turn(self) -> Course:
        """Train a trial, or wait if none is free; return whether the worker should end."""
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
        """Take a free trial; return the numbers of trial and attempt, or None if none is free."""
        for n, heard in [*self.view.open.items()]:
            k, attempt = heard.k, self.me
            if k:
                if not heard.attempt:  # another worker's attempt; its file is not visible yet
                    continue
                if not heard.gone:
                    if heard.attempt.worker == self.me.worker:
                        return n, k  # this worker created the attempt in spite of a disk error
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
        """Return this worker's new attempt at trial n, which follows the ended attempt k."""
        beat = yield from read(Beat, f"{attempt_folder(n, k)}/beat.json")
        saved = max(before.saved, beat.saved if beat else 0)
        num_stuck = 0 if saved > before.saved else before.num_stuck + (not gone.has_left)
        return self.me.model_copy(update={"saved": saved, "num_stuck": num_stuck})

    def _train(self, n: int, k: int) -> Course:
        """Train trial n as attempt k, and report the result; only the first report counts."""
        try:
            trial = yield Train(self.view.known[n], k)
        except Interrupted:
            with contextlib.suppress(OSError):  # without this record the next worker starts later
                yield Write(gone_file(n, k), Gone(has_left=True))
            raise
        if (yield Make(f"{trial_folder(n)}/{ACCEPTED}", "trial.json", trial)):
            self.view.accept(trial)

    def tick(self, n: int, k: int, *, saved: int) -> Course:
        """Write a heartbeat of attempt k; return whether the attempt is no longer needed."""
        self._count += 1
        yield Write(f"{attempt_folder(n, k)}/beat.json", Beat(count=self._count, saved=saved))
        names = yield Names(trial_folder(n))
        return ACCEPTED in names or str(k + 1) in names


# A command


def follow(view: View, now_s: float) -> Course:
    """Read all changes and heartbeats; return the trials accepted since the last call.

    Args:
        view: what the command has read so far.
        now_s: the time on the command's monotonic clock.
    """
    before = set(view.accepted)
    yield from view.look()
    for n, heard in view.open.items():
        if heard.worker:
            yield from heard.listen(n, now_s)
    return [trial for n, trial in view.accepted.items() if n not in before]


def tell_gone(view: View, has_ended: Callable[[Attempt], bool]) -> Course:
    """Write a `Gone` for each ended or silent worker; return the uuids of the silent workers.

    A silent worker has sent no heartbeat for LOST_S.

    Args:
        view: what the command has read so far.
        has_ended: the function that tells whether the worker of an attempt has ended.
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
    """Map the number of each running trial to its attempt."""
    return {n: worker for n, heard in view.open.items() if (worker := heard.worker)}


def shown(view: View) -> list[Trial]:
    """Return all trials for the leaderboard: accepted, running and waiting ones."""
    names = {n: attempt.name for n, attempt in running(view).items()}
    return [
        view.accepted.get(n) or trial.model_copy(update={"worker": names.get(n, "")})
        for n, trial in enumerate(view.known)
    ]


def change_stop(view: View, stop: Stop) -> Course:
    """Write `stop` to stop or resume a search, unless the search is already in that state."""
    if (yield from view.is_stopped()) == stop.is_lifted:
        yield Write(STOP, stop)
