"""A made-up oracle, made-up trials, and what surrounds a supervisor in the made-up world."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.errors import Interrupted
from harness.sweep_protocol.journal import Ledger
from harness.sweep_protocol.mailbox import RESULT, Report, Result, Work, WorkerState
from harness.sweep_protocol.supervisor import Generation
from tests.sweep_protocol.planner import Planner

if TYPE_CHECKING:
    from tests.sweep_protocol.sweep_world import Process, World

EPOCH_S = 10.0


class Choices:
    """An oracle of kinds: numbers by chance, or in turn the best so far goes on."""

    def __init__(self, world: "World") -> None:
        self.world, self.promoted = world, set[int]()
        self.calls: list[tuple[str, int]] = []
        self.scores: dict[int, float] = {}
        self.values: list[dict[str, Any]] = []

    def create_trial(self, tuner_id: str) -> Any:
        n = len(self.values)
        best = max(((s, k) for k, s in self.scores.items() if k not in self.promoted), default=None)
        values: dict[str, Any] = {"x": hash((self.world.seed, n)), "tuner/epochs": 1 + n % 3}
        if self.world.tuner == "asha" and best and n % 2:
            self.promoted.add(best[1])
            parent = self.values[best[1]]
            values = {"x": parent["x"], "tuner/epochs": 2 * parent["tuner/epochs"]}
            values["tuner/trial_id"] = str(best[1])
        self.values.append(values)
        self._call(("new", n))
        return _Trial(str(n), "RUNNING", values)

    def update_trial(self, trial_id: str, metrics: dict[str, Any]) -> None:
        self.scores[int(trial_id)] = metrics["score"]

    def end_trial(self, trial: "_Trial") -> None:
        self._call(("end", int(trial.trial_id)))

    def _call(self, call: tuple[str, int]) -> None:
        self.calls.append(call)
        undisturbed = self.world.calls
        if undisturbed:
            assert self.calls == undisturbed[: len(self.calls)], "the oracle is called otherwise"


class _Trial:
    def __init__(self, name: str, status: str, values: dict[str, Any]) -> None:
        self.trial_id, self.status, self.message, self.hyperparameters = name, status, "", self
        self.values = values


def score_of(seed: int, x: int, epochs: int) -> float:
    """What a trial scores, whoever trains it."""
    return hash((seed, x, epochs)) / 2**61


class Runner:
    """Trains a made-up trial: an epoch takes `EPOCH_S`, and its state is saved after each."""

    def __init__(self, process: "Process") -> None:
        self.process, self.world, self.shared = process, process.world, process.shared
        self.epochs: dict[str, int] = {}

    def run(self, work: Work, check: Callable[[], None]) -> Report:
        x, epochs = int(work.values["x"]), work.epochs or 1
        done = 0
        for each in (work.attempt, *work.before):
            if content := self._read(each):
                done = content
                break
        if not done and work.parent:
            found = self.shared.wait_for(lambda: self._read(work.parent.attempt))  # type: ignore[union-attr]
            if found * 2 != epochs:
                raise OSError("the parent's checkpoint is not seen yet")
            done = found
        self._save(work.attempt, done)
        while done < epochs:
            if self.process.leaves:
                raise Interrupted("SIGTERM")
            check()
            self.process.sleep(EPOCH_S)
            self.world.check_training(self.process)
            done += 1
            self._save(work.attempt, done)
        return Report(scores={"score": score_of(self.world.seed, x, done)})

    def saved(self, attempt: str) -> int:
        return self.epochs.get(attempt, 0)

    def clean(self, attempt: str) -> None:
        self.epochs.pop(attempt, None)

    def has_grown(self) -> bool:
        return False

    def _read(self, attempt: str) -> int:
        return int(self.shared.disk.read(self.shared.path("trials", attempt)) or 0)

    def _save(self, attempt: str, done: int) -> None:
        self.shared.disk.write(self.shared.path("trials", attempt), b"%d" % done)
        self.epochs[attempt] = done


class Host:
    """What surrounds a supervisor here."""

    def __init__(self, process: "Process") -> None:
        self.process, self.world = process, process.world

    def planner(self, ledger: Ledger) -> Planner:
        return Planner(self.world.schedule(Choices(self.world), ledger.proposals))

    @property
    def ended(self) -> set[str]:
        here = [each for each in self.world.processes if each.client is self.process.client]
        return {each.uuid for each in here if each.crashed}

    def stop(self, reason: Exception) -> None:
        pass

    def limit_s(self, state: WorkerState) -> float:
        return 1e9

    def after_round(self, generation: Generation, news: list[int]) -> None:
        terms, time_s = self.process.shared.terms, self.world.time_s
        if generation.number == self.world.newest:
            self.world.shown.update(generation.ledger.accepted)
        if time_s - self.process.stopped_until < terms.round_s:
            return  # it judged by what it had read before it was stopped
        for name, view in generation.workers.items():
            process = self.world.by_uuid[name]
            is_well = process.alive and not process.leaves
            is_well &= time_s - process.disturbed_s > 0.9 * terms.lost_s
            assert not view.is_lost or view.has_ended or not is_well, f"{name} is well and lost"

    def conclude(self, generation: Generation) -> None:
        found = {n: report.scores["score"] for n, (_, report) in generation.ledger.accepted.items()}
        assert found == self.world.scores, "the leaderboard"
        generation.shared.write(Result(generation=generation.number), RESULT)

    def note(self, error: OSError) -> None:
        pass
