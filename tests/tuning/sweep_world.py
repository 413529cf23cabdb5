"""Simulates whole searches; workers, proposers and commands execute the real code.

Time is virtual. A node may see a file or a folder as it was 30 s ago. Processes are killed,
suspended, and lost with their node. Operations fail, or report an error although they took effect.
The search is cancelled and resumed.
"""

import heapq
import itertools
import random
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

from harness.errors import Interrupted, RunError
from harness.tuning import protocol
from harness.tuning.disk import Disk, R, Record
from harness.tuning.protocol import (
    Attempt,
    Stop,
    Trial,
    View,
    Worker,
    change_stop,
    follow,
    result_file,
    take_turns,
    tell_gone,
)
from harness.tuning.schedule import Proposer, Schedule

CACHE_S = 30.0  # age of the oldest state that a node may see
EPOCH_S = 10.0
PROPOSAL_S = 3.0  # longest time that an oracle needs for a proposal
PATIENCE_S = 4000.0  # longest time from the last fault to the end of a search
CANCEL_S = 150.0  # time after a cancel in which attempts may still begin
SAFEGUARDS = (
    *("claim", "first", "values", "order", "fsync", "attempts", "known"),
    *("stuck", "stop", "gone"),
)
FAULTS = (
    *("kill", "kill", "kill command", "node", "stop", "stop", "stop", "outage", "outage"),
    *("error", "error", "show", "join", "join", "leave", "cancel"),
)
PLACES = ("", "", "Make", "owner", "values", "accepted", "beat", "checkpoint", "end.json", "stop")
LATEST_S, STUCK_ATTEMPTS = 700.0, 5


class Violation(AssertionError):  # noqa: N818 - of a promise
    """A search broke a promise."""


class Operation(NamedTuple):
    """An operation of a process on the disk, or its sleep."""

    kind: str  # Read, Names, Make, Write or Sleep
    path: str = ""
    file: str = ""
    record: Any = None
    time_s: float = 0.0


@types.coroutine
def perform(operation: Operation) -> Generator[Operation, Any, Any]:
    """Suspend the process until the simulation has executed the operation; return the result."""
    return (yield operation)


class SimulatedDisk(Disk):
    """Passes each operation to the simulation."""

    def __init__(self) -> None: ...

    async def read(self, kind: type[R], path: str) -> R | None:
        return kind.of(await perform(Operation("Read", path)))

    async def names(self, path: str) -> list[str]:
        names: list[str] = await perform(Operation("Names", path))
        return names

    async def make(self, path: str, file: str, record: Record) -> bool:
        return bool(await perform(Operation("Make", path, file, record)))

    async def write(self, path: str, record: Record) -> None:
        await perform(Operation("Write", path, record=record))

    async def sleep(self, time_s: float, error: OSError | None = None) -> None:
        await perform(Operation("Sleep", time_s=time_s))


class Choices:
    """Replaces the oracle; some trials continue the best trial so far for twice its epochs."""

    def __init__(self, world: "World", node: int) -> None:
        self.world, self.node = world, node
        self.calls: list[tuple[Any, ...]] = []
        self.trials: list[Any] = []
        self.scores: dict[int, float] = {}
        self.promoted: set[int] = set()

    def create_trial(self, tuner_id: str) -> Any:
        n = len(self.trials)
        values: dict[str, Any] = {
            "x": hash((self.world.seed, n)) % 10**6,
            "tuner/epochs": 1 + n % 3,
        }
        left = [(score, each) for each, score in self.scores.items() if each not in self.promoted]
        if self.world.is_guided and left and n % 2:
            _, best = max(left)
            self.promoted.add(best)
            of = self.trials[best].hyperparameters.values
            values = {"x": of["x"], "tuner/epochs": 2 * of["tuner/epochs"]}
            values["tuner/trial_id"] = str(best)
        if self.world.rounds_otherwise:  # changes the values of unknown trials
            known = self.world.known_values(n, self.node)
            values["x"] = known if known is not None else values["x"] + self.node / 100
        hyperparameters = SimpleNamespace(values=values)
        trial = SimpleNamespace(trial_id=str(n), status="RUNNING", hyperparameters=hyperparameters)
        self.trials.append(trial)
        self._call("propose", n, values["tuner/epochs"], values.get("tuner/trial_id"))
        return trial

    def update_trial(self, trial_id: str, metrics: dict[str, Any]) -> None:
        self.scores[int(trial_id)] = metrics["score"]

    def end_trial(self, trial: Any) -> None:
        self._call("result", int(trial.trial_id), trial.status)

    def _call(self, *call: Any) -> None:
        self.calls.append(call)
        expected = self.world.calls
        if expected and self.calls != expected[: len(self.calls)]:
            raise Violation("the oracle got other calls")


class Unordered(Schedule):
    """Lacks the safeguard `order`: passes on results in the order of their arrival."""

    def _give_result(self) -> bool:
        ready = [each for each in self._running if each[1] in self.results]
        if ready:
            self._running.remove(ready[0])
            self._running.insert(0, ready[0])
        return super()._give_result()


@dataclass(eq=False)
class Process:
    """A worker, a proposer or a command on a node."""

    name: str
    node: int
    kind: str
    since_s: float
    view: View
    command: "Process | None" = None
    course: Coroutine[Any, Any, Any] | None = None  # None until the first operation
    is_alive: bool = True
    leaves: bool = False
    stopped_until_s: float = 0.0
    ended: set[str] = field(default_factory=set)  # killed children of a command
    left: list["Process"] = field(default_factory=list)  # children that had no more work


def checkpoint(n: int, k: int) -> str:
    return f"trials/{n}/{k}/checkpoint"


class World:
    """A disk, nodes and processes, and the faults that hit them."""

    scale = 1  # simulated epochs per epoch of the oracle

    def __init__(self, seed: int, *, without: tuple[str, ...] = (), num_faults: int | None = None):
        self.seed, self.without = seed, without
        self.chance = chance = random.Random(seed)  # noqa: S311 - not a secret
        self.now_s = self.last_fault_s = 0.0
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.number, self.num_ops = itertools.count(), 0
        self.server: dict[str, Any] = {}
        self.unsynced: dict[str, tuple[int, Any]] = {}  # by path: node, content after a crash
        self.owners: dict[str, Process] = {}
        self.caches: list[dict[Any, tuple[float, Any]]] = [{} for _ in range(chance.randint(1, 4))]
        self.down_until_s = [0.0] * len(self.caches)
        self.processes: list[Process] = []
        self.is_guided = chance.random() < 0.5
        self.num_trials, self.width = chance.randint(3, 7), chance.randint(2, 3)
        self.rounds_otherwise = chance.random() < 0.3
        self.poison = chance.randrange(self.num_trials) if chance.random() < 0.15 else None
        self.cancelled_s: float | None = None
        self.num_lifted, self.result = 0, dict[int, Any]()
        self.calls: list[tuple[Any, ...]] = []
        self.expected = self._undisturbed()
        num = chance.choice((0, 1, 2, 3, 4, 6, 8, 10)) if num_faults is None else num_faults
        self.plan = [
            (chance.randrange(600), chance.choice(PLACES), chance.choice(FAULTS))
            for _ in range(num)
        ]
        for _ in range(chance.randint(1, 3)):
            self.start_command()

    # The search

    def schedule(self, view: View, node: int = 0) -> Schedule:
        kind = Unordered if "order" in self.without else Schedule
        oracle = Choices(self, node)
        width = self.width if self.is_guided else None
        return kind(
            oracle,
            num_trials=self.num_trials,
            width=width,
            known=view.known,
            results=view.accepted,
        )

    def known_values(self, n: int, node: int) -> Any:
        known = self.server.get(f"trials/{n}/values.json")
        return known["values"]["x"] if known and "known" not in self.without else None

    def _undisturbed(self) -> dict[int, Any]:
        """Return the scores of an undisturbed search, and record the calls of its oracle."""
        without, self.without, rounds = self.without, (), self.rounds_otherwise
        self.rounds_otherwise = False
        view, found = View(SimulatedDisk()), dict[int, Any]()
        schedule = self.schedule(view)
        while trial := schedule.next():
            view.know(trial)
            found[trial.n] = None if trial.n == self.poison else self.score(trial)
            view.accept(self.ended(trial, 1))
        while schedule.next():
            pass
        self.calls, self.without, self.rounds_otherwise = schedule.oracle.calls, without, rounds
        return found

    def score(self, trial: Trial) -> float:
        return hash((self.seed, int(float(trial.values["x"])), trial.limit)) % 997 / 997

    def ended(self, trial: Trial, k: int) -> Trial:
        if trial.n == self.poison:
            return trial.model_copy(update={"attempt": k, "error": "it was fatal"})
        return trial.model_copy(update={"attempt": k, "scores": {"score": self.score(trial)}})

    # Processes

    def start_command(self, *, again: bool = False) -> None:
        """Start a command with a proposer and some workers, as a job or a person does."""
        if again and self.result:
            return
        if again and any(each.is_alive for each in self.processes):
            self._push(100.0, lambda: self.start_command(again=True))
            return
        node = self.chance.randrange(len(self.caches))
        command = self._start("command", node, None)
        self._start("proposer", node, command)
        for _ in range(self.chance.randint(1, 2)):
            self._start("worker", node, command)

    def _start(self, kind: str, node: int, command: Process | None) -> Process:
        name = f"{kind[0]}{len(self.processes)}"
        p = Process(name, node, kind, self.now_s, View(SimulatedDisk()), command)
        self.processes.append(p)
        self._push(self.chance.random(), lambda: self._step(p, None, None))
        return p

    def _worker(self, p: Process, view: View) -> Coroutine[Any, Any, None]:
        worker = Worker(Attempt(worker=p.name), 0, view, partial(self._train, p))
        return take_turns(worker.turn, view)

    async def _train(self, p: Process, worker: Worker, trial: Trial, k: int) -> Trial:
        """Simulate `harness.tuning.trial` and the thread that writes the worker's heartbeats."""
        n, limit, disk = trial.n, (trial.limit or 1) * self.scale, p.view.disk
        await worker.tick(n, k, saved=0)
        saved = None
        for each in range(k, 0, -1):
            saved = saved or await disk.read(Saved, checkpoint(n, each))
        if not saved and trial.parent is not None:
            parent = await disk.read(Trial, result_file(trial.parent))
            if not parent:
                raise OSError("the parent's result is not visible yet")
            saved = await disk.read(Saved, checkpoint(parent.n, parent.attempt))
        epochs = saved.epochs if saved else 0
        await disk.write(checkpoint(n, k), Saved(epochs=epochs))
        while epochs < limit:
            if n == self.poison:
                self.end(p)
            await disk.sleep(EPOCH_S)
            epochs += 1
            await disk.write(checkpoint(n, k), Saved(epochs=epochs))
            if await worker.tick(n, k, saved=epochs):
                raise Interrupted("needless")
        return self.ended(trial, k)

    def _proposer(self, p: Process, view: View) -> Coroutine[Any, Any, None]:
        begin = partial(self.schedule, node=p.node)
        turn = Proposer(begin, 0, ahead=2, is_guided=self.is_guided, view=view).turn
        return take_turns(turn, view)

    async def _command(self, p: Process, view: View) -> None:
        rate = self.chance.uniform(0.99, 1.01)  # speed of the node's inexact clock
        while True:
            left = [*p.left]
            try:
                for trial in await follow(view, self.now_s * rate):
                    if self.chance.random() < 0.2:  # pruned or removed by a user
                        self.server.pop(checkpoint(trial.n, trial.attempt), None)
                if "gone" not in self.without:
                    await tell_gone(view, p.ended)
                if await view.is_stopped():
                    return
                if await view.is_over(0):
                    self.result = {n: t.scores.get("score") for n, t in view.accepted.items()}
                    return
                is_proposed = await view.end(0)
                for each in left:
                    if each.kind == "worker" or not is_proposed:
                        p.left.remove(each)
                        self._start(each.kind, each.node, p)
            except OSError:
                pass
            await view.disk.sleep(max(5.0, view.rest_s))

    async def _canceller(self, p: Process, view: View) -> None:
        stop = Stop(by="me", at="now", is_lifted=self.cancelled_s is not None)
        while True:
            try:
                await change_stop(view, stop)
                break
            except OSError:
                await view.disk.sleep(5.0)
        if not stop.is_lifted:
            self._push(self.chance.uniform(200, 400), lambda: self._go_on(p.node))
        else:
            self.start_command()

    def _go_on(self, node: int, *, again: bool = False) -> None:
        """Resume the cancelled search, or repeat an interrupted command, as a person does."""
        if again or not self.result:
            self.last_fault_s = self.now_s
            self._start("canceller", node, None)

    # Time

    def _push(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (self.now_s + delay_s, next(self.number), act))

    def run(self) -> None:
        """Simulate until the search has ended.

        Raises:
            Violation: if a promise is broken.
        """
        before = protocol.MAX_ATTEMPTS, protocol.SHORTEST_REST_S
        protocol.SHORTEST_REST_S = 2.0  # as in a search with more trials
        protocol.MAX_ATTEMPTS = 10**9 if "stuck" in self.without else STUCK_ATTEMPTS
        try:
            while self.heap:
                self.now_s, _, act = heapq.heappop(self.heap)
                act()
                if not self.heap and not self.result:  # no process is left
                    self.start_command()
                if self.now_s > self.last_fault_s + PATIENCE_S:
                    raise Violation("no end")
        finally:
            protocol.MAX_ATTEMPTS, protocol.SHORTEST_REST_S = before
        if not self.result:
            raise Violation("a trial is lost")
        if self.result != self.expected:
            raise Violation("another leaderboard")

    def _step(self, p: Process, answer: Any, error: Exception | None) -> None:
        if not p.is_alive:
            return
        if p.stopped_until_s > self.now_s:
            self._push(p.stopped_until_s - self.now_s, lambda: self._step(p, answer, error))
            return
        if p.leaves:
            p.leaves, error = False, Interrupted("SIGTERM")
        course = p.course = p.course or getattr(self, f"_{p.kind}")(p, p.view)
        try:
            op = course.throw(error) if error else course.send(answer)
        except StopIteration:
            p.is_alive = False
            if p.command:
                p.command.left.append(p)
            if p.kind == "command":  # its children notice its end late
                self._push(75.0, lambda: self._end_children(p))
            return
        except Interrupted:
            self.end(p)
            return
        except RunError as failed:
            raise Violation("the oracle proposes other trials") from failed
        self.num_ops += 1
        if not p.is_alive:
            return
        fault = self._strike(p, op)
        if p.is_alive and p.stopped_until_s > self.now_s and "done" not in fault:
            wait_s = p.stopped_until_s - self.now_s
            self._push(wait_s, lambda: self._perform(p, op, ""))
        elif op.kind == "Make" and op.file == "values.json":  # the oracle needs time
            self._push(PROPOSAL_S * self.chance.random(), lambda: self._perform(p, op, fault))
        else:
            self._perform(p, op, fault)

    def _perform(self, p: Process, op: Operation, fault: str) -> None:
        is_down = self.down_until_s[p.node] > self.now_s or "error" in fault
        fails = is_down and op.kind != "Sleep"
        result, failed_op = None, None
        if (p.is_alive and not fails) or "done" in fault:
            result = self._apply(p, op)
        if fails:
            failed_op = OSError("EIO")
        wait_s = op.time_s if op.kind == "Sleep" else self.chance.random() * 0.2
        late_s = (self.chance.random() < 0.01) * 8
        self._push(wait_s + late_s, lambda: self._step(p, result, failed_op))

    def end(self, p: Process) -> None:
        """Kill a process, with a command's children; the process is started again later."""
        if not p.is_alive:
            return
        p.is_alive = False
        if p.kind == "command":
            self._end_children(p)
            self._push(self.chance.uniform(0, 100), lambda: self.start_command(again=True))
        elif p.kind == "canceller":
            self._push(1.0, lambda: self._go_on(p.node, again=True))
        elif p.command:
            p.command.ended.add(p.name)
            self._push(self.chance.uniform(0, 10), lambda: self._again(p))

    def _end_children(self, p: Process) -> None:
        for each in self.processes:
            each.is_alive &= each.command is not p

    def _again(self, p: Process) -> None:
        if p.command and p.command.is_alive:
            self._start(p.kind, p.node, p.command)

    # Faults

    def _strike(self, p: Process, op: Operation) -> str:
        due = [each for each in self.plan if each[0] <= self.num_ops]
        if due:
            text = f"{op.kind} {op.path} {op.file}"
            due = [each for each in due if each[1] in text]
        if not due:
            return ""
        self.plan.remove(due[0])
        chance, kind = self.chance, due[0][2]
        until_s = self.now_s + chance.choice((100.0, LATEST_S)) * chance.random()
        alive = [each for each in self.processes if each.is_alive]
        beside = [each for each in alive if each.node == p.node]
        if kind == "node":  # files that were not synced are lost
            for path in [path for path, (node, _) in self.unsynced.items() if node == p.node]:
                _, left = self.unsynced.pop(path)
                if chance.random() < 0.7:
                    self.server.pop(path) if left is None else self.server.update({path: left})
        for each in beside if kind == "node" else chance.choice(([p], [p], beside, alive)):
            if kind in ("kill", "node"):
                self.end(each)
            elif kind == "stop":
                each.stopped_until_s = max(each.stopped_until_s, until_s)
            elif kind == "outage":
                self.down_until_s[each.node] = max(self.down_until_s[each.node], until_s)
            elif kind == "leave":
                each.leaves = True
            elif kind == "show":
                for path in [*self.server]:
                    self._apply(each, Operation("Read", path))
        if kind == "kill command":
            self.end(p.command or p)
        elif kind == "join":
            self.start_command()
        elif kind == "cancel" and self.cancelled_s is None and not self.num_lifted:
            self._start("canceller", p.node, None)
        ends_s = until_s if kind in ("stop", "outage") else self.now_s
        self.last_fault_s = max(self.last_fault_s, ends_s)
        is_done = chance.random() < 0.4 and kind != "node" and op.kind != "Sleep"
        return f"{kind} done" if is_done else kind

    # The disk

    def _apply(self, p: Process, op: Operation) -> Any:
        if op.kind == "Read":
            if op.path == "stop.json" and "stop" in self.without and p.kind == "worker":
                return None
            return self._seen(p, self._place(op.path), lambda path: self.server.get(path))
        if op.kind == "Names":
            return self._seen(p, ("names", op.path), lambda _: self._names(op.path))
        if op.kind == "Make":
            return self._make(p, op)
        if op.kind == "Write":
            self._write(p, self._place(op.path), op.record.model_dump(exclude_defaults=True))
        return None

    def _place(self, path: str) -> str:
        """Return a file's path; without the safeguard `attempts` all attempts share a folder."""
        top, _, name = path.rpartition("/")
        parts = top.split("/")
        of_attempt = len(parts) == 3 and parts[2].isdecimal() and name != "owner.json"
        if of_attempt and "attempts" in self.without:
            return f"trials/{parts[1]}/1/{name}"
        return path

    def _seen(self, p: Process, key: Any, look: Callable[[Any], Any]) -> Any:
        until_s, found = self.caches[p.node].get(key, (0.0, None))
        if until_s <= self.now_s:
            found = look(key)
            wait_s = self.chance.choice((CACHE_S, self.chance.random() * CACHE_S))
            self.caches[p.node][key] = self.now_s + wait_s, found
        return found

    def _names(self, folder: str) -> list[str]:
        start = f"{folder}/"
        return sorted({p[len(start) :].split("/")[0] for p in self.server if p.startswith(start)})

    def _make(self, p: Process, op: Operation) -> bool:
        path, content = f"{op.path}/{op.file}", op.record.model_dump(exclude_defaults=True)
        parts = op.path.split("/")
        is_attempt = len(parts) == 3 and parts[2].isdecimal()
        kind = {"owner.json": "claim", "trial.json": "first", "values.json": "values"}.get(op.file)
        is_there = path in self.server
        if is_there and kind not in self.without:
            return False
        is_second = is_there and op.file in ("trial.json", "values.json")
        if is_second and self.server[path] != content:
            raise Violation(f"{op.file} was replaced")
        if is_attempt:
            self._check_attempt(p, int(parts[1]), int(parts[2]))
            self.owners[op.path] = p
        self.server[path] = content
        if "fsync" in self.without:
            self.unsynced[path] = p.node, {}
        self.caches[p.node][path] = self.now_s + self.chance.random() * CACHE_S, content
        return True

    def _check_attempt(self, p: Process, n: int, k: int) -> None:
        """Check that the search is not cancelled, and that no other worker trains the trial."""
        is_late = self.cancelled_s is not None and self.now_s > self.cancelled_s + CANCEL_S
        if is_late and self.now_s - p.stopped_until_s > CACHE_S + EPOCH_S:
            raise Violation("a trial begins although the search is cancelled")
        if k > 1 and f"gone/{n}-{k - 1}.json" not in self.server:
            raise Violation("two workers train a trial")

    def _check_gone(self, p: Process, path: str) -> None:
        """Check that the worker that counts as lost was not healthy."""
        owner = self.owners[f"trials/{path[5:-5].replace('-', '/')}"]
        disturbed_s = max(owner.since_s, owner.stopped_until_s, self.down_until_s[owner.node])
        is_well = owner.is_alive and self.now_s - disturbed_s > 0.9 * protocol.LOST_S
        if is_well and owner is not p:
            raise Violation("a healthy worker counts as lost")

    def _write(self, p: Process, path: str, content: Any) -> None:
        top = path.rpartition("/")[0]
        if top in self.owners and self.owners[top] is not p:
            raise Violation("two processes write into the folder of one attempt")
        if path == "stop.json":
            is_lifted = content.get("is_lifted", False)
            self.cancelled_s = None if is_lifted else self.now_s
            self.num_lifted += is_lifted
        if path.startswith("gone/"):
            self._check_gone(p, path)
        if path.endswith("beat.json"):
            self.unsynced.setdefault(path, (p.node, self.server.get(path)))
        self.server[path] = content
        self.caches[p.node][path] = self.now_s + self.chance.random() * CACHE_S, content


class Saved(Record):
    """A checkpoint."""

    epochs: int


def violations(
    seeds: range, *, without: tuple[str, ...] = (), num_faults: int | None = None
) -> Iterator[tuple[int, str]]:
    """Yield the seed of each schedule that breaks a promise, and the promise."""
    for seed in seeds:
        try:
            World(seed, without=without, num_faults=num_faults).run()
        except Violation as violation:
            yield seed, str(violation)
