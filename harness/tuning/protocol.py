"""Defines the protocol of a search: the files in a sweep's folder, and what each process does.

| name | writer | content |
| --- | --- | --- |
| `trials/<n>/` (once) | the first proposer of trial n | `values.json`: a `Trial` |
| `trials/<n>/<k>/` (once) | the worker of attempt k | `owner.json`: an `Attempt`; the runs |
| `trials/<n>/<k>/beat.json` | the same worker | a `Beat` |
| `gone/<n>-<k>.json` | the same worker, or a command that presumes the worker dead | a `Gone` |
| `trials/<n>/accepted/` (once) | the first worker to report a result | `trial.json`: a `Trial` |
| `ends/<search.trials>/` (once) | the first proposer with no trials left | `end.json`: an `End` |
| `stop.json` | a cancelling user, a failing command, `harness resume` | a `Stop` |

A folder marked `(once)` is created by exactly one process, together with its first file.

Three kinds of processes take part in a search: workers train trials, proposers choose the trials'
values, and commands such as `harness tune` start workers and proposers. Workers, proposers and
commands run the coroutines of this module. The coroutines reach the sweep's folder only through the
methods of a `Disk`, and use no clock or random number. Outside of the tests, no method of a `Disk`
suspends a coroutine: each method blocks until its operation has ended. So one call of `execute`
runs a coroutine from start to end. The tests execute the coroutines in a simulation. The simulation
suspends a coroutine at each operation of the simulated disk, kills processes, lets nodes fail, and
shows new files late.

Wrong clocks and outdated listings of folders do no harm. A process uses the listing of a folder
only to choose which files to read. A process that acts too late, or twice, tries to create a
folder that already exists; the creation fails and changes nothing. Only one worker ever writes
into an attempt's folder, so a worker that is presumed dead does no harm if it continues.
"""

import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

from harness.errors import Interrupted
from harness.job.search import Value
from harness.tuning.disk import Disk, Record

TRIALS, GONE, ENDS, STOP, ACCEPTED = "trials", "gone", "ends", "stop.json", "accepted"
MAX_ATTEMPTS = 25  # a trial fails after this many consecutive attempts without a newer checkpoint
STUCK = (
    "the trial's worker ended {} times in a row without saving a new checkpoint, perhaps for lack "
    "of memory; lower train.checkpoint_every_s or the size of the model"
)
NUM_WATCHED = 16  # number of trials without a result that `Worker.turn` reads
BEAT_S = 5.0  # time between two heartbeats of a worker
LOST_S = 180.0  # time without a heartbeat after which a command presumes a worker dead
REST_EACH_S = 0.3  # pause after `View.look`, multiplied by the number of trials that `look` read
SHORTEST_REST_S, LONGEST_REST_S = 0.25, 15.0  # limits of the pause after `View.look`


# Records


class Trial(Record):
    """A trial: the oracle's proposal and, later, the result of its training."""

    n: int
    values: dict[str, Value]  # key of the job → its value in this trial
    limit: int | None = None  # number of epochs to train, if the oracle sets this number
    parent: int | None = None  # number of the trial whose last checkpoint this trial continues
    # The result, which comes from the accepted attempt
    attempt: int = 0  # number of the accepted attempt
    scores: Mapping[str, float] = {}  # mean of each score over the trial's runs
    error: str = ""
    epochs: int | None = None  # number of trained epochs, the largest of the trial's runs
    kept_epoch: float | None = None  # epoch of the best weights, mean over the trial's runs
    training_s: float | None = None  # training time of all runs together
    parameters: int | None = None
    # The name of the worker that trains the trial now; the trial's files do not contain it
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
        """Return the trial's fields whose values the oracle decides."""
        return self.n, self.values, self.limit, self.parent


class Attempt(Record):
    """Says which worker tries to train a trial.

    Only the worker of an attempt writes into the attempt's folder.
    """

    worker: str  # uuid of the worker's process
    name: str = ""  # name of the worker in messages and logs
    process: int = 0  # process id
    space: str = ""  # boot and container in which the process id is valid, see `process_space`
    saved: int = 0  # largest number of steps that an earlier attempt has saved
    num_stuck: int = 0  # number of consecutive earlier attempts without a newer checkpoint


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
    """Says that the search was stopped, and whether a person has resumed it since."""

    by: str  # the user and the machine that wrote this record
    at: str
    reason: str = ""  # why the search failed; empty for a cancelled search
    is_lifted: bool = False  # whether a person has resumed the search
    forgiven: tuple[int, ...] = ()  # numbers of the failed trials that no longer count as failures


def trial_folder(n: int) -> str:
    """Return the path of a trial's folder."""
    return f"{TRIALS}/{n}"


def attempt_folder(n: int, k: int) -> str:
    """Return the path of the folder of attempt k at trial n."""
    return f"{TRIALS}/{n}/{k}"


def result_file(n: int) -> str:
    """Return the path of a trial's accepted result."""
    return f"{TRIALS}/{n}/{ACCEPTED}/trial.json"


def gone_file(n: int, k: int) -> str:
    """Return the path of attempt k's `Gone`, the file that frees trial n for another worker."""
    return f"{GONE}/{n}-{k}.json"


# What a process knows


@dataclass
class Heard:
    """What a process knows about an open trial's newest attempt.

    A trial is open while it has no accepted result.
    """

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

    async def listen(self, disk: Disk, n: int, now_s: float) -> None:
        """Read the attempt's heartbeat, and count the time without a new heartbeat."""
        beat = await disk.read(Beat, f"{attempt_folder(n, self.k)}/beat.json")
        passed_s = now_s - (now_s if self.listened_s is None else self.listened_s)
        self.listened_s = now_s
        if beat and (not self.beat or beat.count != self.beat.count):
            self.beat, self.silent_s = beat, 0.0
        else:
            # If more than LONGEST_REST_S has passed since the last read, this process itself was
            # suspended, or read slowly. So only LONGEST_REST_S counts as silence of the worker.
            self.silent_s += min(passed_s, LONGEST_REST_S)


@dataclass
class View:
    """What a process has read of a search: trials, attempts and results."""

    disk: Disk
    known: list[Trial] = field(default_factory=list)  # all proposed trials, in order
    open: dict[int, Heard] = field(default_factory=dict)  # trials without an accepted result
    accepted: dict[int, Trial] = field(default_factory=dict)  # trials with their results
    stop: Stop | None = None  # the content of `stop.json`
    rest_s: float = SHORTEST_REST_S  # pause before the next `look`, longer for more open trials

    async def look(self, num_watched: int | None = None) -> None:
        """Read what has changed: new trials, attempts and results.

        Args:
            num_watched: how many of the oldest open trials (trials without an accepted result) to
                read; None reads all open trials. An open trial that no worker trains is always
                read, even if the trial is not among the oldest.
        """
        await self.learn()
        gone = {f"{GONE}/{name}" for name in await self.disk.names(GONE)}
        free = [n for n, heard in self.open.items() if not heard.k or gone_file(n, heard.k) in gone]
        due = dict.fromkeys([*self.open][:num_watched] + free)
        for n in due:
            await self._look_at(n, gone)
        self.rest_s = min(max(REST_EACH_S * len(due), SHORTEST_REST_S), LONGEST_REST_S)

    async def learn(self) -> None:
        """Read newly proposed trials."""
        made = set(await self.disk.names(TRIALS))
        while str(n := len(self.known)) in made:
            if not (trial := await self.disk.read(Trial, f"{trial_folder(n)}/values.json")):
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

    async def _look_at(self, n: int, gone: set[str]) -> None:
        """Read whether an open trial has an accepted result, and which worker trains the trial."""
        names = set(await self.disk.names(trial_folder(n)))
        if ACCEPTED in names:
            if trial := await self.disk.read(Trial, result_file(n)):
                self.accept(trial)
            return
        heard = self.open[n]
        k = max([heard.k, *(int(name) for name in names if name.isdecimal())])
        if k > heard.k:
            self.open[n] = heard = Heard(k)
        if k and not heard.attempt:
            heard.attempt = await self.disk.read(Attempt, f"{attempt_folder(n, k)}/owner.json")
        if gone_file(n, k) in gone and not heard.gone:
            heard.gone = await self.disk.read(Gone, gone_file(n, k))

    async def is_stopped(self) -> bool:
        """Whether the search was cancelled or has failed, and no person has resumed it."""
        self.stop = await self.disk.read(Stop, STOP)
        return self.stop is not None and not self.stop.is_lifted

    async def end(self, num_asked: int) -> End | None:
        """Return a search's record `End`, which is None until the oracle has proposed all trials.

        Args:
            num_asked: the value of `search.trials`.
        """
        return await self.disk.read(End, f"{ENDS}/{num_asked}/end.json")

    async def is_over(self, num_asked: int) -> bool:
        """Whether all trials are proposed, and all their results are accepted."""
        end = None if self.open else await self.end(num_asked)
        return end is not None and len(self.accepted) >= end.num_trials


async def take_turns(turn: Callable[[], Awaitable[bool]], view: View) -> None:
    """Call `turn` until it returns true; after a disk error, wait and try again."""
    while True:
        try:
            if await turn():
                return
        except OSError as error:
            await view.disk.sleep(view.rest_s, error)


# A worker


@dataclass
class Worker:
    """A worker, which repeatedly takes a trial, trains the trial and reports the result."""

    me: Attempt  # this process
    num_asked: int  # `search.trials`
    view: View
    # Trains a trial as the attempt with the given number, and returns the trial with its result.
    # During the training, the function calls `tick` every BEAT_S.
    train: "Callable[[Worker, Trial, int], Awaitable[Trial]]"
    must_renew: Callable[[], bool] = lambda: False  # whether a new process should replace this one
    _count: int = 0  # number of heartbeats so far

    async def turn(self) -> bool:
        """Train a trial, or wait if none is free; return whether the worker should end."""
        if await self.view.is_stopped():
            return True
        await self.view.look(NUM_WATCHED)
        if await self.view.is_over(self.num_asked) or self.must_renew():
            return True
        if taken := await self._take():
            await self._train(*taken)
        else:
            await self.view.disk.sleep(self.view.rest_s)
        return False

    async def _take(self) -> tuple[int, int] | None:
        """Take a free trial, if any; return its number and the attempt's number, else None."""
        # Prefer this worker's own attempts, because an attempt gets no heartbeats while its worker
        # trains another trial.
        for n, heard in sorted(self.view.open.items(), key=lambda each: not self._owns(each[1])):
            k, attempt = heard.k, self.me
            if k:
                if not heard.attempt:  # another worker's attempt; its file is not visible yet
                    continue
                if not heard.gone:
                    if self._owns(heard):
                        return n, k  # this worker began the attempt before a disk error
                    continue
                attempt = await self._after(n, k, heard.attempt, heard.gone)
                if attempt.num_stuck >= MAX_ATTEMPTS:
                    stuck = {"attempt": k, "error": STUCK.format(MAX_ATTEMPTS)}
                    failed = self.view.known[n].model_copy(update=stuck)
                    await self._report(failed)
                    continue
            if await self.view.disk.make(attempt_folder(n, k + 1), "owner.json", attempt):
                return n, k + 1
            self.view.open[n] = Heard(k + 1)
        return None

    def _owns(self, heard: Heard) -> bool:
        return heard.attempt is not None and heard.attempt.worker == self.me.worker

    async def _after(self, n: int, k: int, before: Attempt, gone: Gone) -> Attempt:
        """Return the `Attempt` with which this worker continues trial n after attempt k ended."""
        beat = await self.view.disk.read(Beat, f"{attempt_folder(n, k)}/beat.json")
        saved = max(before.saved, beat.saved if beat else 0)
        num_stuck = 0 if saved > before.saved else before.num_stuck + (not gone.has_left)
        return self.me.model_copy(update={"saved": saved, "num_stuck": num_stuck})

    async def _train(self, n: int, k: int) -> None:
        """Train trial n as attempt k, and report the result."""
        try:
            trial = await self.train(self, self.view.known[n], k)
        except Interrupted:
            # The record `Gone` lets another worker take over the trial at once. Without the record,
            # no worker takes over the trial until a command presumes this worker dead.
            with contextlib.suppress(OSError):
                await self.view.disk.write(gone_file(n, k), Gone(has_left=True))
            raise
        if await self._report(trial):
            self.view.accept(trial)

    async def _report(self, trial: Trial) -> bool:
        """Report a trial's result; return False if the trial already has an accepted result."""
        folder = f"{trial_folder(trial.n)}/{ACCEPTED}"
        return await self.view.disk.make(folder, "trial.json", trial)

    async def tick(self, n: int, k: int, *, saved: int) -> bool:
        """Write a heartbeat of attempt k; return whether the attempt is no longer needed."""
        self._count += 1
        beat = Beat(count=self._count, saved=saved)
        await self.view.disk.write(f"{attempt_folder(n, k)}/beat.json", beat)
        names = await self.view.disk.names(trial_folder(n))
        return ACCEPTED in names or str(k + 1) in names


# A command


async def follow(view: View, now_s: float) -> list[Trial]:
    """Read all changes and heartbeats; return the trials accepted since the last call.

    Args:
        view: the state of the search as the command has read it so far.
        now_s: the time on the command's monotonic clock.
    """
    before = set(view.accepted)
    await view.look()
    for n, heard in view.open.items():
        if heard.worker:
            await heard.listen(view.disk, n, now_s)
    return [trial for n, trial in view.accepted.items() if n not in before]


async def tell_gone(view: View, ended: Collection[str]) -> set[str]:
    """Write a `Gone` for each worker that has ended, or has sent no heartbeat for LOST_S.

    Args:
        view: the state of the search as the command has read it so far.
        ended: the uuids of workers that are known to have ended.

    Returns:
        The uuids of the workers that have sent no heartbeat for LOST_S.
    """
    silent = set[str]()
    for n, heard in view.open.items():
        is_silent = heard.silent_s > LOST_S
        if (worker := heard.worker) and (is_silent or worker.worker in ended):
            gone = Gone(has_left=False)
            await view.disk.write(gone_file(n, heard.k), gone)
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


async def change_stop(view: View, stop: Stop) -> None:
    """Write `stop`, unless the search is already in the state that `stop` requests."""
    if await view.is_stopped() == stop.is_lifted:
        await view.disk.write(STOP, stop)
