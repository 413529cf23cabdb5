"""Simulates runs on several nodes with the real code, except model, clock and disk.

Time is virtual. A training step is a function of the weights and the step's number. The simulation
kills and suspends processes, loses nodes, fills or breaks the disk, and loses unsynced data. Slurm
may requeue a job whose processes are still alive, and a second job may be started for the run. A
schedule is one simulated run with its faults:

    python -m tests.training.run_world --seed N    prints the operations of a schedule
"""

import argparse
import contextlib
import errno
import functools
import heapq
import itertools
import json
import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from harness.errors import InputError, Interrupted, RunError, TakenOver
from harness.job.job_file import load_job
from harness.slurm import batch
from harness.slurm.batch import Counters, counters_file, decide, ending_of
from harness.slurm.environment import MAX_REQUEUES, SlurmEnvironment
from harness.system import leased_dir
from harness.system.processes import StopRequest
from harness.tracking import provenance
from harness.tracking.provenance import write_provenance
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import RECORD, RunDirectory, check_record, run_identity
from harness.training import checkpoint, trainer
from harness.training.failures import recorded_failures
from harness.training.record import finish
from harness.training.trainer import Trainer
from tests.training.made_up_disk import CACHE_S, MOUNT, TOP, Disk, mounted
from tests.training.safeguards import SAFEGUARDS, without

PROJECT = Path(__file__).parents[2]
RUNS = Path(TOP, "runs")
RUN_ID = "slurm-1"
RUN = RUNS / "lstm" / RUN_ID
RESULTS = ("metrics.jsonl", "vocabulary.txt", "predictions.npz", "model.keras", "job.toml")
STEP_S, START_S, REQUEUE_S = 10.0, (5.0, 25.0), 12.0
NUM_FAULTS = 8  # number of faults in a schedule that tests a safeguard
PATIENCE_S = 2500.0  # longest time from the last fault to the end of a run
SAVED, KILLED, WARNED = 75, 137, 140
FAULTS = (
    *("kill", "kill", "node", "node", "cut off", "second", "second", "pause", "pause"),
    *("warn", "warn", "warn", "cancel", "full", "outage", "error", "rot"),
)
PLACES = ("", "", "step-", "step-", "lease", "metrics", "provenance", "rename", "fsync", "unlink")


@functools.cache
def job() -> Any:
    """Return a job of three epochs of four steps that saves at least every 15 s."""
    sets = ["epochs=3", "batch_size=2", "log_every_steps=2", "checkpoint_every_s=15"]
    return load_job(PROJECT / "jobs/lstm.toml", [f"train.{each}" for each in sets])


class Violation(AssertionError):  # noqa: N818 - of a promise
    """A run broke a promise."""


class Killed(BaseException):
    """Ends a simulated process at once."""


class Number:
    """A variable on a device."""

    def __init__(self, value: Any) -> None:
        self.value = np.asarray(value, np.float64)
        self.shape = self.value.shape

    def numpy(self) -> Any:
        return self.value

    def assign(self, value: Any) -> None:
        self.value = np.asarray(value, np.float64)


class Step:
    """Replaces the training of a network by a function of the weights and the step's number."""

    strategy = SimpleNamespace(num_replicas_in_sync=1)

    def __init__(self, process: "Process") -> None:
        self.process = process
        self.weights, self.moment, rate = Number([1, 2]), Number([0.5, 0.25]), Number(0.1)
        self.optimizer = SimpleNamespace(
            variables=[self.moment, rate], learning_rate=rate, _learning_rate=rate
        )
        self.model = SimpleNamespace(
            variables=[self.weights], stop_training=False, optimizer=self.optimizer
        )
        self.exported = [self.weights.value]
        self.export_model = SimpleNamespace(
            get_weights=lambda: [*self.exported],
            set_weights=lambda weights: setattr(self, "exported", [*weights]),
        )
        self.train_steps: Any = functools.partial(self._train)
        self.train_steps.get_concrete_function = self._trace  # type: ignore[attr-defined]
        self.evaluator = SimpleNamespace(probabilities=self._probabilities)

    def _trace(self, *_: Any) -> Any:
        self.process.sleep(2.0)
        return SimpleNamespace(graph=None)

    def _train(self, batches: Iterator[int], num: int, vote: Any) -> Any:
        sums = []
        for _ in range(num):
            number = next(batches)
            self.process.sleep(STEP_S)
            self.moment.value = 0.9 * self.moment.value + np.sin(self.weights.value + number)
            self.weights.value = self.weights.value - 0.1 * self.moment.value
            self.process.trained = number + 1
            sums.append([float(np.abs(self.weights.value).sum()), float(number % 3)])
        return Number(sums)

    def export_weights(self) -> None:
        self.exported = [self.weights.value]

    def _probabilities(self, reviews: Any, stop: Any) -> Any:
        self.process.sleep(STEP_S)
        return 0.5 + 0.4 * np.sin(self.exported[0].sum() + np.arange(len(reviews.labels)))


DATA: Any = SimpleNamespace(record=lambda: {"checksum": "data"})
REVIEWS: Any = SimpleNamespace(labels=np.array([0, 1, 0, 1, 1, 0, 0, 1]))


class Process:
    """The script of a job on a node, and the harness process that the script runs."""

    def __init__(self, world: "World", job: "Job", node: int) -> None:
        self.world, self.job, self.node, self.since_s = world, job, node, world.now_s
        self.turn = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.is_alive = True
        self.is_gone = False  # script and harness are killed
        self.is_killed = False  # only the harness is killed
        self.stopped_until_s = 0.0
        self.listens = False  # the harness handles signals
        self.trains = self.saw_fault = False
        self.trained = self.saved = 0  # numbers of steps
        self.is_further = False  # this start saved a later step than all earlier starts
        self.stop, self.signals = StopRequest(), list[str]()
        self.looked_s = self.since_s  # when it last read the lease
        self.num_since = 0  # writes since it read the lease

    def _live(self) -> None:
        self.turn.acquire()
        try:
            self.world.script(self)
        except Killed:
            pass
        except BaseException as error:
            self.world.failed = self.world.failed or error
        self.is_alive = False
        self.world.turn.release()

    def sleep(self, time_s: float) -> None:
        """Let time pass; other processes act meanwhile.

        Raises:
            Killed: if this process was killed while time passed.
        """
        self.world.wait(self, time_s)
        if self.is_gone or self.is_killed:
            raise Killed


class Job:
    """A Slurm job."""

    def __init__(self, number: int, *, first: int, begins: bool) -> None:
        self.number, self.first, self.begins = number, first, begins
        self.restarts = 0
        self.num_idle = 0  # consecutive starts without a new checkpoint

    @property
    def allocation(self) -> SlurmEnvironment:
        found = SlurmEnvironment.from_environment(
            {
                "SLURM_JOB_ID": str(self.number),
                "SLURM_RESTART_COUNT": str(self.restarts),
                "HARNESS_BATCH_JOB": str(self.number),
                "HARNESS_FIRST_JOB": str(self.first),
            }
        )
        assert found
        return found


class World:
    """Nodes with a shared disk, jobs, and the plan of faults."""

    def __init__(self, seed: int, faults: tuple[str, ...] = (), num_faults: int | None = None):
        self.chance = chance = random.Random(seed)  # noqa: S311 - not a secret
        self.now_s = self.last_fault_s = 0.0
        self.turn = threading.Semaphore(0)
        self.heap: list[tuple[float, int, Process | Callable[[], None]]] = []
        self.number, self.job_number = itertools.count(), itertools.count(1)
        self.num_ops = 0
        self.processes: list[Process] = []
        self.failed: BaseException | None = None
        num_nodes = chance.randint(2, 3)
        self.disk = Disk(num_nodes, chance, self.act)
        self.down_until_s = [0.0] * num_nodes
        self.full_until_s, self.begun_s = 0.0, math.inf
        self.owner: Process | None = None  # the process that holds the lease
        self.owned_s = 0.0  # when the owner took the lease
        self.saved: list[tuple[int, float]] = []  # step and time of each checkpoint
        self.rotten: list[Any] = []  # broken checkpoint files
        self.furthest = self.num_starts = 0
        self.finished_s: float | None = None
        self.is_hopeless = chance.random() < 0.1  # every start is warned before its first step
        self.refuses_requeue = chance.random() < 0.2
        num = chance.choice((1, 2, 3, 4, 6, 8)) if num_faults is None else num_faults
        self.plan = [self._fault(chance.choice(faults or FAULTS)) for _ in range(num)]
        self.current: Process | None = None
        self.shows = False
        self._push(0.0, self.submit)

    def _fault(self, fault: str) -> tuple[int, str, str]:
        """Plan a fault: earliest operation, place and kind; `error@list` is a kind and a place."""
        kind, _, place = fault.partition("@")
        return self.chance.randrange(900), place or self.chance.choice(PLACES), kind

    # Time

    def _push(self, delay_s: float, act: "Process | Callable[[], None]") -> None:
        heapq.heappush(self.heap, (self.now_s + delay_s, next(self.number), act))

    def wait(self, p: Process, time_s: float) -> None:
        """Let other processes act for `time_s`, or longer if the process is suspended."""
        while True:
            if self.failed:
                raise Killed
            self._push(time_s, p)
            if self.heap[0][2] is p:
                self.now_s = self.disk.now_s = heapq.heappop(self.heap)[0]
            else:
                self.turn.release()
                p.turn.acquire()
            time_s = p.stopped_until_s - self.now_s
            if time_s <= 0 or p.is_gone or p.is_killed:
                return

    def run(self) -> None:
        """Simulate until the run has finished and all processes have ended.

        Raises:
            Violation: if a promise is broken.
        """
        MOUNT.disk, MOUNT.world = self.disk, self
        try:
            while self.heap and not self.failed:
                self.now_s, _, act = heapq.heappop(self.heap)
                self.disk.now_s = self.now_s
                if isinstance(act, Process):
                    self._resume(act)
                else:
                    act()
                if self.now_s > self.last_fault_s + PATIENCE_S:
                    raise Violation("no end")
            if self.failed:
                raise self.failed
            self._compare()
        finally:
            self.failed = self.failed or Violation("over")
            for each in self.processes:
                if each.is_alive:
                    each.is_gone = True
                    self._resume(each)

    def _resume(self, p: Process) -> None:
        if not p.is_alive:
            return
        self.current, self.disk.node = p, p.node
        p.turn.release()
        self.turn.acquire()

    # Jobs

    def submit(self) -> None:
        """Submit the job, or resume its run, as a person does."""
        number = next(self.job_number)
        begins = self.now_s < self.begun_s + CACHE_S  # a node may not see the run yet
        self._start(Job(number, first=number, begins=begins))

    def _submit_again(self) -> None:
        """Resume the run, as a person does, after all its jobs have ended."""
        self.is_hopeless = False
        if self.finished_s is None:
            if any(each.is_alive for each in self.processes):
                self._push(100.0, self._submit_again)
            else:
                self.submit()

    def _start(self, job: Job) -> None:
        p = Process(self, job, self.chance.randrange(len(self.down_until_s)))
        self.processes.append(p)
        self._push(0.0, p)
        p.thread.start()
        if self.is_hopeless:
            self._push(self.chance.uniform(3, 12), lambda: self._warn(p, signal.SIGUSR2))

    def _warn(self, p: Process, number: signal.Signals) -> None:
        if not p.trains:
            return
        p.signals.append(number.name.removeprefix("SIG"))
        p.stop.signal = number
        p.is_killed |= not p.listens

    def script(self, p: Process) -> None:
        """Act like `slurm/common.sh`: run the harness, then decide whether to requeue the job."""
        before = self.furthest
        p.trains = True
        try:
            code = self._harness(p)
        except Killed:
            if p.is_gone:
                raise
            code = WARNED if p.signals and not p.listens else KILLED
        if code == SAVED and p.trained > p.saved:
            raise Violation("exit code 75 without a checkpoint of the last step")
        p.trains = p.is_killed = False
        if (code == SAVED or code > 125) and self._goes_on(p, code, before):
            self._requeue(p)
        elif code:
            self._push(60.0, self._submit_again)

    def _goes_on(self, p: Process, code: int, before: int) -> bool:
        """Whether to requeue the job: `harness job-end` decides, or else the script if it fails."""
        job, allocation = p.job, p.job.allocation
        counted = counters_file(RUNS, allocation, str(RUN))
        signals = tuple(p.signals)
        try:
            ending = ending_of(
                code, signals=signals, run=str(RUN), runs=RUNS, allocation=allocation, shown=""
            )
            decision = decide(ending, Counters.read(counted))
            decision.counters.write(counted)
        except (OSError, RunError):
            return code in (SAVED, WARNED) and "TERM" not in signals
        is_further = self.furthest > before
        job.num_idle = 0 if is_further else job.num_idle + 1
        if p.is_further and decision.reason.startswith("gave up"):
            raise Violation("a job with new checkpoints is given up")
        if decision.requeue and job.num_idle > MAX_REQUEUES + 1:
            raise Violation("a job without new checkpoints is requeued for ever")
        return decision.requeue

    def _requeue(self, p: Process) -> None:
        job = p.job
        for each in self.processes:
            each.is_gone |= each.job is job and each is not p
        if self.refuses_requeue:
            if self.now_s < self.begun_s + CACHE_S:  # the next node may not see the run yet
                self._push(60.0, self._submit_again)
                return
            idle, job = job.num_idle, Job(next(self.job_number), first=job.first, begins=False)
            job.num_idle = idle
        else:
            job.restarts += 1
        self._push(REQUEUE_S, lambda: self._start(job))

    # The harness

    def _harness(self, p: Process) -> int:
        try:
            self._train(p)
        except Interrupted as end:
            return end.exit_code
        except InputError as error:
            raise Violation(f"a run refuses its own files: {error}") from error
        except TakenOver as error:
            if self.owner is p and self.finished_s is None:
                raise Violation(f"no process took the run over: {error}") from error
            return 1
        except (RunError, OSError) as error:
            if not p.saw_fault:
                raise Violation(f"an error without a fault of the disk: {error}") from error
            return 1
        return 0

    def _train(self, p: Process) -> None:
        """Train with the calls that `launch` and `train` make, in their order."""
        if p.job.begins:
            run = RunDirectory.new(RUNS, job(), RUN_ID)
        else:
            run = RunDirectory.open(RUN)
            run.job()
        if run.finished():
            run.result()
            return
        run.check_owner()
        check_record(run)
        run.certain_json(RECORD)
        p.sleep(self.chance.uniform(*START_S))
        p.listens = True
        run.take_lease()
        heartbeat = Heartbeat(run, p.job.allocation, clock=lambda: self.now_s)
        with recorded_failures(heartbeat):
            heartbeat.beat("starting")
            write_provenance(run, DATA, None, devices_asked=None, plan={}, start={"devices": []})
            run.write("job.toml", job().to_toml())
            run.write("vocabulary.txt", b"good\nbad\n")
            training = Simulated(p, run, heartbeat)
            training.prepare()
            with training.saved_when_interrupted():
                training.fit(REVIEWS)
                weights = training.train_step.export_model.get_weights()
                run.write("predictions.npz", weights[0].tobytes())
                model = repr(weights).encode()
                run.write("model.keras", model)
            result = {"job": "lstm", "accuracy": 0.5, "classes": ["no", "yes"]}
            finish(training.context, heartbeat, {**result, "dataset_checksum": "data"})

    # The disk

    def act(self, kind: str, path: str, effect: Callable[[], Any]) -> Any:
        """Do an operation on the disk, unless a fault prevents it."""
        p = self.current
        assert p
        p.sleep(self.chance.random() * 0.1)
        self.num_ops += 1
        if self.shows:
            print(f"{self.now_s:8.1f} s  job {p.job.number}.{p.job.restarts}  {kind} {path}")  # noqa: T201
        fault, is_done = self._strike(p, f"{kind} {path}")
        if fault in ("kill", "node", "error") and is_done:
            with contextlib.suppress(OSError):  # the process dies, or raises another error below
                self._apply(p, kind, path, effect)
        p.sleep(0.0)
        if fault == "error" or self.down_until_s[p.node] > self.now_s:
            p.saw_fault = True
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if kind in ("create", "write", "mkdir") and self.full_until_s > self.now_s:
            p.saw_fault = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return self._apply(p, kind, path, effect)

    def _apply(self, p: Process, kind: str, path: str, effect: Callable[[], Any]) -> Any:
        name = path.rpartition("/")[2]
        if kind in ("rename", "unlink") and path.startswith(f"{RUN}/") and name[0] != ".":
            self._check_writer(p, kind, name)
        found = effect()
        if name == "lease.json" and kind == "open":
            p.looked_s, p.num_since = self.now_s, 0
        elif name == "lease.json" and kind == "rename":
            self.owner, self.owned_s = p, self.now_s
        elif name == RECORD and kind == "rename" and self.owner is p:
            num = len(json.loads(self.disk.files[path].content)["starts"])
            if num < self.num_starts:
                raise Violation("the record of the first start is lost")
            self.num_starts = num
        elif name == "job.toml" and kind == "rename":
            self.begun_s = min(self.begun_s, self.now_s)
        elif name == "result.json" and kind == "rename":
            self.finished_s = self.finished_s or self.now_s
            self.saved.clear()
        return found

    def _check_writer(self, p: Process, kind: str, name: str) -> None:
        if self.finished_s is not None and p.since_s > self.finished_s + CACHE_S:
            raise Violation("a finished run is changed")
        if name == "lease.json" or self.owner is p or self.owner is None:
            return
        p.num_since += kind == "rename"
        if p.looked_s > self.owned_s + CACHE_S or p.num_since > 1:
            raise Violation(f"a second writer: {kind} {name}")

    def note_saved(self, p: Process, step: int) -> None:
        """Record that a process has saved a checkpoint."""
        p.saved = step
        if self.owner is p:
            self.saved.append((step, self.now_s))
            p.is_further |= step > self.furthest
            self.furthest = max(self.furthest, step)

    def note_restored(self, p: Process, step: int, looked_s: float) -> None:
        """Check that a process resumed from the newest sound checkpoint that it must see."""
        if self.owner is not p:
            return
        at = f"{RUN}/checkpoints/step-{{:09d}}.npz"
        saved = {each: self.disk.files.get(at.format(each)) for each, _ in self.saved}
        visible = [each for each, at_s in self.saved if at_s < looked_s - CACHE_S][-2:]
        sound = [each for each in visible if saved[each] not in self.rotten]
        if sound and step < max(sound):
            raise Violation(f"the checkpoint of step {max(sound)} is lost; resumed from {step}")
        self.saved = [each for each in self.saved if each[0] <= step]

    # Faults

    def _strike(self, p: Process, what: str) -> tuple[str, bool]:
        due = [each for each in self.plan if each[0] <= self.num_ops and each[1] in what][:1]
        if not due or self.finished_s is not None:
            return "", False
        self.plan.remove(due[0])
        chance, kind = self.chance, due[0][2]
        until_s = self.now_s + 100.0 * chance.random()
        if kind == "kill":
            p.is_killed = p.trains
        elif kind == "node":
            self.disk.cut_power(p.node)
            for each in self.processes:
                if each.is_alive and each.node == p.node:
                    each.is_gone = True
                    self._again(each.job)
        elif kind == "cut off":
            self._again(p.job)
        elif kind == "second":
            self.submit()
        elif kind == "pause":
            p.stopped_until_s = until_s
        elif kind in ("warn", "cancel"):
            self._warn(p, signal.SIGUSR2 if kind == "warn" else signal.SIGTERM)
        elif kind == "full":
            self.full_until_s = until_s
        elif kind == "outage":
            self.down_until_s[p.node] = until_s
        elif kind == "rot":
            self._rot()
        self.last_fault_s = max(self.now_s, until_s)
        if self.shows:
            print(f"{self.now_s:8.1f} s  {kind}")  # noqa: T201
        return kind, chance.random() < 0.4

    def _again(self, job: Job) -> None:
        """Requeue a job, as Slurm does if it can't reach the job's node."""
        job.restarts += 1
        self._push(REQUEUE_S, lambda: self._start(job))

    def _rot(self) -> None:
        """Break the newest checkpoint or the newest two, like a failing disk."""
        names = [each for each in self.disk.names(f"{RUN}/checkpoints") if each.startswith("step")]
        if self.rotten:
            return
        for name in names[-self.chance.choice((1, 1, 2)) :]:
            file = self.disk.files[f"{RUN}/checkpoints/{name}"]
            at = self.chance.randrange(len(file.content))
            broken = bytes([file.content[at] ^ 255])
            file.content = file.content[:at] + broken + file.content[at + 1 :]
            self.rotten.append(file)
        if len(self.rotten) > 1:
            self.saved.clear()  # perhaps no sound checkpoint is left

    def results(self) -> dict[str, bytes]:
        """Return the files of a finished run that contain no times."""
        files = self.disk.files
        return {
            name: files[f"{RUN}/{name}"].content for name in RESULTS if f"{RUN}/{name}" in files
        }

    def _compare(self) -> None:
        if self.finished_s is None or f"{RUN}/result.json" not in self.disk.files:
            raise Violation("the run is not finished")
        if self.results() != undisturbed():
            raise Violation("other bytes")


class Simulated(Trainer):
    """A trainer that reports its checkpoints to the world."""

    def __init__(self, p: Process, run: RunDirectory, heartbeat: Heartbeat) -> None:
        self.process = p
        quiet = SimpleNamespace(**dict.fromkeys(("warning", "epoch", "advance"), _nothing))
        monitor = SimpleNamespace(sample=_nothing)
        compute: Any = SimpleNamespace(
            console=quiet, stop=p.stop, monitor=monitor, worker_group=None
        )
        identity = run_identity(job(), "data")
        context: Any = SimpleNamespace(run=run, job=job(), identity=identity)
        step: Any = Step(p)
        super().__init__(context, compute, step, REVIEWS, (), heartbeat)

    def _open_batches(self) -> None:
        self._open_until = self.job.train.epochs
        self._batches: Any = itertools.count(self._num_steps_done())

    def prepare(self) -> None:
        world, looked_s = self.process.world, self.process.world.now_s
        super().prepare()
        world.note_restored(self.process, self._num_steps_done(), looked_s)

    def _save(self) -> None:
        super()._save()
        self.process.world.note_saved(self.process, self._num_steps_done())


def _nothing(*_: Any, **__: Any) -> None:
    pass


@functools.cache
def undisturbed() -> dict[str, bytes]:
    """Return the files of a run without faults."""
    world = World(0, num_faults=0)
    with patch.object(world, "_compare"):
        world.run()
    return world.results()


@contextlib.contextmanager
def made_up() -> Iterator[None]:
    """Replace this machine's clock and disk by the simulated clock and disk."""

    def now_s() -> Any:
        return MOUNT.disk.now_s

    def sleep(time_s: float) -> None:
        MOUNT.world.current.sleep(time_s)

    clock = SimpleNamespace(perf_counter=now_s, monotonic=now_s, sleep=sleep)
    # TensorFlow would write the files of the TensorBoard log to the real disk.
    log = SimpleNamespace(steps=_nothing, epoch=_nothing, mark=lambda: {"events": 1})
    with contextlib.ExitStack() as stack:
        stack.enter_context(mounted())
        for module, name, value in (
            (leased_dir, "monotonic", now_s),
            (leased_dir, "sleep", sleep),
            (checkpoint, "monotonic", now_s),
            (checkpoint, "sleep", sleep),
            (leased_dir, "log", _nothing),
            (trainer, "time", clock),
            (trainer, "TensorBoardLog", lambda *_, **__: log),
            (trainer, "age_s", now_s),
            (batch, "memory_peak_gb", _nothing),
            (provenance, "installed_packages", dict),
            (provenance, "code_of", lambda run: {}),
            (provenance, "processor", _nothing),
            (provenance, "nvidia_driver", _nothing),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield


def violations(
    seeds: Iterable[int], faults: tuple[str, ...] = (), num_faults: int | None = None
) -> Iterator[tuple[int, str]]:
    """Yield the seed of each schedule that breaks a promise, and a line that names the promise."""
    with made_up():
        undisturbed()
        for seed in seeds:
            try:
                World(seed, faults, num_faults).run()
            except Violation as violation:
                yield seed, f"--seed {seed}: {violation}"


def main() -> None:
    """Print the operations and faults of a schedule."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--without", choices=SAFEGUARDS, help="remove this safeguard from the code")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        stack.enter_context(made_up())
        undisturbed()
        world = World(options.seed)
        if name := options.without:
            stack.enter_context(without(name))
            world = World(options.seed, SAFEGUARDS[name].faults, NUM_FAULTS)
        world.shows = True
        try:
            world.run()
        except Violation as violation:
            print(f"--seed {options.seed}: {violation}")  # noqa: T201


if __name__ == "__main__":
    main()
