"""What a sweep's supervisor and its workers write to each other: a task and a state a worker.

| file | its one writer | holds |
| --- | --- | --- |
| `workers/<uuid>/task.json` | the supervisor; the worker makes it | `Task`: its trials |
| `workers/<uuid>/state.json` | the worker | `WorkerState`: what it is doing, and its results |
| `journal/<g>/beat.json` | the supervisor of generation g | `Beat`: that it is at work |

What can be read and is no such record, or is not there, is nothing new; only an error of the file
system is an error.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import DiskError, InputError, RunError
from harness.files.lenient_json import parse_toml
from harness.files.plain_file import is_of_disk
from harness.files.shared_disk import SharedDisk
from harness.search_parameters import Value
from harness.search_space import SEARCH_FILE, is_of_search

TASK, STATE, BEAT = "task.json", "state.json", "beat.json"
RESULT = "result.json"
WORKER_ID = re.compile("[0-9a-f]{32}")  # a folder's name in `workers/`


@dataclass(frozen=True)
class Terms:
    """The times of the protocol in seconds, each measured by a process's own monotonic clock."""

    visible_s: float = 30.0  # for which a node may see an older state of a file
    round_s: float = 2.0  # between two rounds of the supervisor
    beat_s: float = 10.0  # between two states of a worker
    idle_s: float = 2.0  # between two looks of an idle worker at its task
    look_s: float = 10.0  # between two looks of a worker that trains
    lost_s: float = 180.0  # of silence, after which a worker counts as lost
    seldom_s: float = 30.0  # between two looks at a lost worker
    patience_s: float = 600.0  # without a supervisor, or without a file system that works
    table_s: float = 10.0  # between two leaderboards, and two listings of the workers

    @property
    def settle_s(self) -> float:
        """From taking a generation to reading the older ones, whose supervisor ends meanwhile."""
        return 2 * self.visible_s + 15

    @classmethod
    def of(cls, visible_s: float) -> "Terms":
        """The terms on a file system; on a local disk, looking often costs nothing."""
        if visible_s > LOCAL_VISIBLE_S:
            return cls(visible_s)
        return cls(visible_s, round_s=0.5, idle_s=0.25, look_s=2.0, table_s=2.0)


NETWORK_VISIBLE_S, LOCAL_VISIBLE_S = 30.0, 1.0
LONGEST_LOOK_S = 10.0  # that counts as time without a sign: for longer, nobody looked for one
T = TypeVar("T")


class Clock:
    """Time as a process measures it; tests have one of their own."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, time_s: float) -> None:
        """Wait."""
        time.sleep(time_s)

    def wait(self, event: threading.Event, time_s: float) -> None:
        """Wait until an event is set, or the time is over."""
        event.wait(time_s)

    def spawn(self, work: Callable[[], None]) -> None:
        """Call a function in a thread that ends with the process."""
        threading.Thread(target=work, daemon=True).start()


def patiently(read: Callable[[], T], clock: Clock) -> T:
    """What `read` returns; a disk that fails is waited for, as a process that starts may do.

    Raises:
        DiskError: if it fails for long.
    """
    terms, since_s = Terms(), clock.now()
    while True:
        try:
            return read()
        except (OSError, InputError, RunError) as error:
            if not is_of_disk(error):
                raise
            if clock.now() - since_s > terms.patience_s:
                raise DiskError(str(error)) from None
        clock.sleep(terms.idle_s)


class Message(BaseModel):
    """A record in a file; fields that this version does not know are left out."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Report(Message):
    """How an attempt at a trial ended: with scores, or with an error."""

    scores: dict[str, float] = {}
    error: str = ""
    figures: dict[str, float] = {}  # for the leaderboard: epochs, training_s and so on
    checkpoints: dict[str, str] = {}  # for a promotion: a path below the attempt's folder → sha256


class Parent(Message):
    """The trial whose checkpoints a trial goes on from."""

    attempt: str
    checkpoints: dict[str, str]


class Work(Message):
    """An attempt at a trial."""

    attempt: str  # `<trial>/<generation>.<number>`, its folder below `trials/`
    values: dict[str, Value]
    epochs: int | None = None
    before: tuple[str, ...] = ()  # older attempts, the newest first
    parent: Parent | None = None


class Task(Message):
    """What a worker works at: the first is trained, the second waits."""

    generation: int
    number: int
    work: tuple[Work, ...] = ()
    over: bool = False  # the sweep has ended

    @property
    def order(self) -> tuple[int, int]:
        """A later task has a higher one."""
        return self.generation, self.number


class WorkerState(Message):
    """What a worker is doing."""

    count: int  # of the states it has written
    obeys: tuple[int, int] = (0, 0)  # the order of its task
    results: dict[str, Report] = {}  # by attempt
    attempt: str = ""  # at hand
    step: int = 0  # of the attempt, validation included; only whether it moves counts
    saved: int = 0  # steps that the newest checkpoint of the attempt holds
    leaves: bool = False
    name: str = ""  # for people
    host: str = ""
    process: int = 0
    space: str = ""  # of the process's number, see `process_space`
    has_gpu: bool = False


class Beat(Message):
    """That a supervisor is at work."""

    count: int


class Cancel(Message):
    """That a user ends the sweep's search."""

    generation: int  # the newest that was seen; a later one goes on


class Result(Message):
    """That the search has ended."""

    generation: int = 0
    trials: int = 0  # `search.trials` that it is of


M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class SharedFolder:
    """A sweep's folder, as a process sees it."""

    folder: Path
    disk: SharedDisk
    clock: Clock
    terms: Terms

    def path(self, *parts: str) -> Path:
        """A path in the folder."""
        return self.folder.joinpath(*parts)

    def read(self, kind: type[M], *parts: str) -> M | None:
        """A record, None where the file is not there or holds none.

        Raises:
            OSError: if the file system fails.
        """
        content = self.disk.read(self.path(*parts))
        if content is None:
            return None
        try:
            return kind.model_validate_json(content)
        except ValidationError:
            return None

    def write(self, record: Message, *parts: str, synced: bool = False) -> None:
        """Write a record whole.

        Raises:
            OSError: if the file system fails. It may be written then.
        """
        content = record.model_dump_json(exclude_defaults=True).encode()
        self.disk.write(self.path(*parts), content + b"\n", synced=synced)

    def is_over(self) -> bool:
        """Whether a result of the search is there, as the search is now.

        Raises:
            OSError: if the file system fails.
        """
        if not (result := self.read(Result, RESULT)):
            return False
        search = parse_toml(self.disk.read(self.path(SEARCH_FILE)) or b"")
        return is_of_search(result.model_dump(), search)

    def wait_for(self, look: Callable[[], Any]) -> Any:
        """What `look` returns once it is true, as long as this node may see an older state.

        Raises:
            OSError: if the file system fails.
        """
        end = self.clock.now() + 2 * self.terms.visible_s
        while not (found := look()) and self.clock.now() < end:
            self.clock.sleep(self.terms.idle_s)
        return found
