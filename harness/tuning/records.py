"""What is written in a sweep's folder: a trial, an attempt at it, a beat, a stop, an end.

| name | made by | holds |
| --- | --- | --- |
| `trials/<n>/` once | whoever proposes trial n first | `values.json`: a `Trial` |
| `trials/<n>/<k>/` once | the worker whose attempt k is | `owner.json`: an `Attempt`; its runs |
| `trials/<n>/<k>/beat.json` | that worker | a `Beat` |
| `trials/<n>/gone-<k>.json` | the worker, or the command whose child it was | that it has ended |
| `trials/<n>/accepted/` once | whoever reports first | `trial.json`: the `Trial` with its scores |
| `ends/<search.trials>/` once | whoever proposed the last trial | `end.json`: an `End` |
| `stops/<j>/` once | who cancels, or sees the search fail | `stop.json`: a `Stop` |
| `stops/<j>/lifted/` once | `harness resume` | `stop.json`: who goes on |
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.search_parameters import Value

TRIALS, ENDS, STOPS, ACCEPTED = "trials", "ends", "stops", "accepted"
PREPARED = "prepared"  # where names are prepared, before they are made


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

    def content(self) -> dict[str, object]:
        """The record as it is written."""
        return self.model_dump(exclude_defaults=True)


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
    host: str = ""
    process: int = 0
    space: str = ""  # of the process's number, see `process_space`
    has_gpu: bool = False
    saved: int = 0  # steps that the attempts before it had saved
    num_stuck: int = 0  # attempts in a row before it that saved no step more


class Beat(Record):
    """That the worker of an attempt lives."""

    count: int  # of its beats
    step: int = 0  # only whether it moves counts
    saved: int = 0  # steps that the newest checkpoint holds


class Gone(Record):
    """That the worker of an attempt has ended."""

    has_left: bool  # in order: it saved before


class End(Record):
    """That the oracle has proposed all trials of a search."""

    num_trials: int


class Stop(Record):
    """That a search is stopped, and stays so until a person goes on with it."""

    by: str  # a person and a machine
    at: str
    reason: str = ""  # why it failed; empty if it was cancelled
    failed: tuple[int, ...] = ()  # trials by then, which count no more once a person goes on


def trial_folder(n: int) -> str:
    """The folder of a trial."""
    return f"{TRIALS}/{n}"


def attempt_folder(n: int, k: int) -> str:
    """The folder of attempt k at trial n."""
    return f"{TRIALS}/{n}/{k}"


def gone_file(n: int, k: int) -> str:
    """The file that says that the worker of an attempt has ended."""
    return f"{TRIALS}/{n}/gone-{k}.json"
