"""A made-up world for the real supervisor and the real worker: its clock, its disk, its faults.

Each thread of a process stops at each operation on the disk and at each sleep. There faults strike:
the process is killed, with the operation done or not; it is stopped, and does it much later; its
node is lost; its node's view of the files fails for a while. A node sees what others wrote up to
`CACHE_S` late. What is appended is lost with its node until it is synced.
"""

import errno
import heapq
import itertools
import random
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from harness.errors import Interrupted, RunError
from harness.files.shared_disk import SharedDisk
from harness.search_space import SEARCH_FILE
from harness.sweep_protocol.journal import Proposal, decode
from harness.sweep_protocol.mailbox import (
    RESULT,
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
from harness.sweep_protocol.supervisor import supervise
from harness.sweep_protocol.worker import Worker
from tests.sweep_protocol.made_up_trials import EPOCH_S, Choices, Host, Runner, score_of

CACHE_S = 30.0  # for which a node may see an older state
STUCK_S = 4000.0  # after the last fault: by then the sweep has ended
TERMS = Terms(CACHE_S, round_s=10, idle_s=10, patience_s=1000, table_s=10)
FAULTS = "kill node stop stop stop outage outage error show supervisor supervisor worker leave"
PLACES = ("", "append", "append", "sync", "mkdir", TASK, TASK, "state", "state", "log")
ROOT = Path("/sweep")


class Killed(BaseException):
    """A process has ended in the middle of an operation."""


class Client:
    """A node's view of the disk."""

    def __init__(self) -> None:
        self.cache: dict[str, tuple[float, Any]] = {}
        self.dirty: dict[str, bytes] = {}
        self.down_until = 0.0


class Thread(threading.Thread):
    """One thread of a process, which runs only while the world waits for it."""

    def __init__(self, process: "Process", work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.process, self.work, self.turn = process, work, threading.Semaphore(0)
        self.is_over = False

    def run(self) -> None:
        self.turn.acquire()
        error: BaseException | None = None
        try:
            self.work()
        except (Killed, Interrupted, RunError):
            pass
        except BaseException as unexpected:
            error = unexpected
        self.process.world.thread_ended(self, error)


class Process(Clock):
    """A supervisor or a worker on a node, and its clock."""

    def __init__(self, world: "World", kind: str) -> None:
        rng = world.rng
        self.world, self.kind = world, kind
        self.uuid = uuid.UUID(int=rng.getrandbits(128)).hex
        self.rate, self.ahead_s = rng.uniform(0.99, 1.01), rng.uniform(-600, 600)  # of its clock
        self.client = rng.choice(world.clients)
        self.alive, self.crashed, self.leaves = True, False, False
        self.since, self.stopped_until = world.time_s, 0.0
        self.threads = list[Thread]()
        self.shared = SharedFolder(ROOT, Disk(self), self, TERMS)

    def now(self) -> float:
        return self.world.time_s * self.rate + self.ahead_s

    def sleep(self, time_s: float) -> None:
        if self.leaves and threading.current_thread() is self.threads[0]:
            raise Interrupted("SIGTERM")
        self.world.pause(self, time_s / self.rate, ("sleep", ""))

    def wait(self, event: threading.Event, time_s: float) -> None:
        end_s = self.now() + time_s
        while not event.is_set() and self.now() < end_s:
            self.world.pause(self, min(2.0, time_s), ("sleep", ""))

    def spawn(self, work: Callable[[], object]) -> None:
        thread = Thread(self, work)
        self.threads.append(thread)
        thread.start()
        self.world.push(self.world.rng.random(), thread)

    @property
    def disturbed_s(self) -> float:
        return max(self.since, self.stopped_until, self.client.down_until)


class Disk(SharedDisk):
    """The disk as a process sees it."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def _do(self, kind: str, path: Path, content: Any = None) -> Any:
        name = str(PurePath(path).relative_to(ROOT))
        return self.process.world.operate(self.process, kind, name, content)

    def read(self, path: Path) -> bytes | None:
        content: bytes | None = self._do("read", path)
        return content

    def opens(self, folder: Path) -> bool:
        return self._do("read", folder) is not None

    def names(self, folder: Path) -> list[str]:
        return list(self._do("list", folder) or ())

    def make_folder(self, folder: Path) -> bool:
        return bool(self._do("mkdir", folder, True))

    def write(self, path: Path, content: bytes, *, synced: bool = False) -> None:
        self._do("write", path, content)

    def append(self, path: Path, content: bytes) -> None:
        self._do("append", path, content)
        self._do("sync", path)

    def sync(self, path: Path) -> None:
        self._do("sync", path)


class World:
    """One schedule, drawn from its seed; one with many trials has random ones."""

    def __init__(self, seed: int, num_trials: int = 0, num_workers: int = 0) -> None:
        self.seed, self.rng = seed, random.Random(seed)  # noqa: S311 - not a secret
        rng = self.rng
        self.time_s, self.num_ops, self.newest, self.last_fault_s = 0.0, 0, 0, 0.0
        self.heap: list[tuple[float, int, Callable[[], None] | Thread]] = []
        self.order, self.back = itertools.count(), threading.Semaphore(0)
        search = b"[search]\ntrials = 0\n"  # as many as the results say that they are of
        self.server: dict[str, Any] = {"workers": [], "journal": [], SEARCH_FILE: search}
        self.owners: dict[str, Process] = {}
        self.there: dict[str, tuple[int, float]] = {}  # newest generation of a task, and since when
        self.obeyed: dict[str, int] = {}
        self.shown: set[int] = set()
        self.trace: list[tuple[Any, ...]] = []
        self.error: BaseException | None = None
        self.processes: list[Process] = []
        self.by_uuid: dict[str, Process] = {}
        self.tuner = "random" if num_trials else rng.choice(("random", "grid", "asha"))
        self.num_trials = num_trials or rng.randint(3, 7)
        self.width = rng.randint(2, 3) if self.tuner == "asha" else self.num_trials
        self.calls: list[tuple[str, int]] = []
        self.scores = self._undisturbed()
        self.clients = [Client() for _ in range(rng.randint(1, 4))]
        num_workers = num_workers or rng.randint(1, 3)
        for kind in ["supervisor"] * rng.choice((1, 1, 2, 3)) + ["worker"] * num_workers:
            self.start(kind)
        self.plan = [
            (rng.randrange(1000), rng.choice(PLACES), rng.choice(FAULTS.split()))
            for _ in range(rng.choice((0, 1, 2, 3, 4, 6, 8, 10)))
        ]

    def schedule(self, oracle: Choices, known: list[Proposal]) -> Schedule:
        return Schedule(oracle, num_trials=self.num_trials, width=self.width, known=known)

    def _undisturbed(self) -> dict[int, float]:
        oracle, scores = Choices(self), {}
        schedule = self.schedule(oracle, [])
        while new := list(schedule.advance()):
            for each in new:
                scores[each.n] = score_of(self.seed, int(each.values["x"]), each.epochs or 1)
                schedule.offer(each.n, Report(scores={"score": scores[each.n]}))
        self.calls = oracle.calls
        return scores

    # Processes

    def start(self, kind: str, *, again: bool = False) -> None:
        alive = any(each.alive for each in self.processes if each.kind == kind)
        if RESULT in self.server or (again and alive):
            return
        process = Process(self, kind)
        self.processes.append(process)
        self.by_uuid[process.uuid] = process
        if kind == "supervisor":
            process.spawn(lambda: supervise(process.shared, Host(process)))
        else:
            process.spawn(lambda: Worker(process.shared, process.uuid, Runner(process)).run())

    def push(self, delay_s: float, act: "Callable[[], None] | Thread") -> None:
        heapq.heappush(self.heap, (self.time_s + delay_s, next(self.order), act))

    def run(self) -> None:
        try:
            while self.heap and not self.error:
                self.time_s, _, act = heapq.heappop(self.heap)
                if isinstance(act, Thread):
                    self._step(act)
                else:
                    act()
                assert self.time_s < self.last_fault_s + STUCK_S, "no end"
            if self.error:
                raise self.error
            assert RESULT in self.server
        finally:
            for process in self.processes:  # threads that wait end by this
                process.alive = False
                for thread in process.threads:
                    if not thread.is_over:
                        self._resume(thread)

    def _step(self, thread: Thread) -> None:
        process = thread.process
        if process.alive and process.stopped_until > self.time_s:
            self.push(process.stopped_until - self.time_s, thread)
        else:
            self._resume(thread)

    def _resume(self, thread: Thread) -> None:
        if not thread.is_over:
            thread.turn.release()
            self.back.acquire()

    def thread_ended(self, thread: Thread, error: BaseException | None) -> None:
        thread.is_over = True
        self.error = self.error or error
        if thread is thread.process.threads[0]:
            self.end(thread.process)
        self.back.release()

    def end(self, process: Process) -> None:
        if process.alive:
            process.alive = False
            for kind in ("supervisor", "worker"):  # somebody starts one again, if there is none
                self.push(self.rng.uniform(0, 100), partial(self.start, kind, again=True))

    def pause(self, process: Process, delay_s: float, op: tuple[str, str]) -> str:
        """Wait in a process's thread; returns the fault that strikes, once the time has come."""
        thread = threading.current_thread()
        assert isinstance(thread, Thread)
        if not process.alive:
            raise Killed
        self.push(delay_s + (self.rng.random() < 0.01) * 8, thread)
        while True:
            self.back.release()
            thread.turn.acquire()
            self.num_ops += 1
            fault = self._strike(op, process) if self.plan and process.alive else ""
            if "done" in fault:
                return fault
            if not process.alive:
                raise Killed
            if process.stopped_until <= self.time_s:
                return fault
            self.push(process.stopped_until - self.time_s, thread)

    # The disk

    def operate(self, process: Process, kind: str, name: str, content: Any) -> Any:
        fault = self.pause(process, self.rng.random() * 0.2, (kind, name))
        error = process.client.down_until > self.time_s or "error" in fault
        result = None
        if "done" in fault or not error:
            result = self.apply(process, kind, name, content)
        self.trace.append((self.time_s, process.kind, process.uuid[:4], kind, name, content, error))
        if not process.alive:
            raise Killed
        while process.stopped_until > self.time_s:  # done, but it hears of it later
            self.pause(process, 0.1, ("sleep", ""))
        if error:
            raise OSError(self.rng.choice((errno.EIO, errno.ESTALE)), "error", name)
        return result

    def apply(self, process: Process, kind: str, name: str, content: Any) -> Any:
        client = process.client
        if kind == "append":
            client.dirty[name] = client.dirty.get(name, b"") + content
            self.push(self.rng.random() * 60, lambda: self.flush(client, name))
            return None
        if kind == "sync":
            return self.flush(client, name)
        if kind == "mkdir":
            if name in self.server:
                return False
            folder, _, own = name.rpartition("/")
            self.server[folder] = [*self.server[folder], own]
            self.newest = max(self.newest, int(own) if folder == "journal" else 0)
        if content is not None:
            self._write(process, name, content)
        until_s, found = client.cache.get(name, (0.0, None))
        if content is not None or until_s <= self.time_s:
            found = self.server.get(name)
            until_s = self.time_s + self.rng.choice((CACHE_S, self.rng.random() * CACHE_S))
            client.cache[name] = until_s, found
        if name in client.dirty:
            return self.server.get(name, b"") + client.dirty[name]
        return found

    def _write(self, process: Process, name: str, content: Any) -> None:
        owner = self.owners.setdefault(name, process)
        if name.endswith(f"/{TASK}"):
            task = Task.model_validate_json(content)
            if task.generation != self.there.get(name, (0, 0))[0]:
                self.there[name] = task.generation, self.time_s
        assert owner is process or not re.search("^trials|beat|state", name), name
        self.server[name] = content

    def flush(self, client: Client, name: str, size: int | None = None) -> None:
        content = client.dirty.pop(name, b"")[:size]
        if not content:
            return
        client.cache.pop(name, None)
        self.server[name] = self.server.get(name, b"") + content
        if size is None:
            self._check_log(int(name.split("/")[1]))

    def _check_log(self, generation: int) -> None:
        """Each trial was proposed and accepted once, with its score, and what was shown stays."""
        records, _ = decode(self.server[f"journal/{generation}/log"])
        new = list(records)
        counts: Counter[tuple[str, int]] = Counter()
        for older, size in enumerate(records[0]["sizes"], 1):
            content = self.server.get(f"journal/{older}/log", b"")
            assert len(content) >= size, "sealed records are lost"
            new += decode(content[:size])[0]
        for record in new:
            counts[record["kind"], record.get("n", -1)] += 1
            if record["kind"] == "accept":
                score = record["report"]["scores"]["score"]
                assert score == self.scores[record["n"]], "another score"
        for (kind, n), times in counts.items():
            assert kind not in ("propose", "accept") or times == 1, f"{times} times {kind} {n}"
        for n in self.shown if generation == self.newest else ():
            assert ("accept", n) in counts, f"{n} was shown as ended, {generation} lacks it"

    def check_training(self, process: Process) -> None:
        """A worker obeys the newest generation whose task it has had time to see."""
        name = f"workers/{process.uuid}/{TASK}"
        with suppress(KeyError):
            generation, since_s = self.there[name]
            is_late = self.time_s - max(since_s, process.disturbed_s) > CACHE_S + 5 * EPOCH_S
            state = WorkerState.model_validate_json(self.server[f"workers/{process.uuid}/{STATE}"])
            least = max(generation * is_late, self.obeyed.get(process.uuid, 0))
            obeys = max(state.obeys[0], self.obeyed.get(process.uuid, 0))
            assert obeys >= least, f"trains for {obeys}, should obey {least}"
            self.obeyed[process.uuid] = obeys

    # Faults

    def _strike(self, op: tuple[str, str], process: Process) -> str:
        """Let what is due befall a process at this operation, and say it; "done": that is done."""
        due = [f for f in self.plan if f[0] <= self.num_ops and f[1] in f"{op[0]} {op[1]}"][:1]
        if not due:
            return ""
        self.plan.remove(due[0])
        rng, kind, client = self.rng, due[0][2], process.client
        self.trace.append((self.time_s, process.kind, process.uuid[:4], f"-- {kind}, at", *op))
        until_s = self.time_s + rng.choice((100, 700)) * rng.random() * (kind in ("stop", "outage"))
        alive = [each for each in self.processes if each.alive]
        beside = [each for each in alive if each.client is client]
        struck = beside if kind == "node" else rng.choice(([process], [process], beside, alive))
        for name in list(client.dirty) if kind == "node" else ():  # some of it had been written
            self.flush(client, name, rng.randint(0, len(client.dirty[name])))
        for each in struck:
            if kind in ("kill", "node"):
                each.crashed = True
                self.end(each)
            each.leaves |= kind == "leave"
            each.stopped_until = max(each.stopped_until, until_s * (kind == "stop"))
            each.client.down_until = max(each.client.down_until, until_s * (kind == "outage"))
            for name in list(self.server) if kind == "show" else ():  # its node's views grow old
                self.apply(each, "read", name, None)
        if kind in ("supervisor", "worker"):
            self.start(kind)
        self.last_fault_s = max(self.last_fault_s, until_s, self.time_s)
        return kind + " done" * (rng.random() < 0.4 and kind != "node" and op[0] != "sleep")
