"""What a search costs beside its trials: operations on the folder, time of the processor."""

import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.job.search import GUIDED, load_search
from harness.tuning.disk import Disk, make_once, to_bytes
from harness.tuning.protocol import (
    Attempt,
    Sleep,
    Train,
    Trial,
    View,
    Worker,
    follow,
)
from harness.tuning.schedule import Proposer
from harness.tuning.sweep_dir import FOLDERS
from harness.tuning.worker import schedule_of
from tests.tuning.sweep_world import World
from tests.tuning.test_oracle import ended, written


class Busy(World):
    """64 workers in eight commands, each on a node of its own, and trials of two to six minutes."""

    scale = 12

    def __init__(self) -> None:
        self.expected = {}
        super().__init__(1, num_faults=0)
        self.is_guided, self.poison = False, None
        self.num_trials, self.num_starts, self.kinds = 192, 0, Counter[str]()
        self.caches, self.down_until_s = [{} for _ in range(8)], [0.0] * 8
        self.calls, self.expected = [], {}
        self.processes, self.heap = [], []
        for node in range(8):
            command = self._start("command", node, None)
            self._start("proposer", node, command)
            for _ in range(8):
                self._start("worker", node, command)

    def score(self, trial: Trial) -> float:
        return 0.5

    def _apply(self, p: Any, op: Any) -> Any:
        if not isinstance(op, Sleep | Train):
            self.kinds[p.kind] += 1
        return super()._apply(p, op)

    def ended(self, trial: Trial, k: int) -> Trial:
        self.expected[trial.n] = 0.5
        return super().ended(trial, k)


def test_64_workers_ask_the_folder_little() -> None:
    """About a hundred small operations a second for the whole search on a network."""
    world = Busy()
    world.run()
    num = world.kinds.total() / world.now_s
    print(f"{num:.0f} a second, by {dict(world.kinds)} in {world.now_s:.0f} s")  # noqa: T201
    assert num < 150
    assert len(world.result) == 192


def filled(folder: Path, tuner: str, num: int) -> Path:
    """A search of which so many trials are finished."""
    folder.mkdir()
    path = written(folder, tuner, 0 if tuner == "hyperband" else num + 10)
    text = path.read_text().replace("0.3]", "0.3]\ntrain.learning_rate = { min = 1e-5, max = 0.1 }")
    path.write_text(text)
    for name in FOLDERS:
        (folder / name).mkdir()
    known, schedule = list[Trial](), schedule_of(load_search(path), [])
    while len(known) < num and (new := schedule.next()):
        schedule.offer(done := ended(new).model_copy(update={"attempt": 1}))
        known.append(done)
        place = folder / "trials" / str(new.n)
        make_once(place, {"values.json": to_bytes(new)})
        make_once(place / "1", {"owner.json": to_bytes(Attempt(worker="other"))})
        make_once(place / "accepted", {"trial.json": to_bytes(done)})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("num", [10, 100, 1000])
@pytest.mark.parametrize("tuner", ["random", "asha"])
def test_a_trial_costs_little_however_many_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuner: str, num: int
) -> None:
    """In a process of each kind, its start with all that has ended on five trials; `-m slow -s`."""
    monkeypatch.setattr(Disk, "_sleep", lambda *_: None)
    path = filled(tmp_path / "s", tuner, num)
    search, disk, took = load_search(path), Disk(path.parent), dict[str, float]()
    views = {kind: View() for kind in ("proposer", "worker", "command")}
    is_guided = tuner in GUIDED
    proposer = Proposer(
        partial(schedule_of, search),
        search.table.trials,
        ahead=3,
        is_guided=is_guided,
        view=views["proposer"],
    )
    worker = Worker(Attempt(worker="me"), search.table.trials, view=views["worker"])
    num_trained = 0

    def act(operation: Any) -> Trial | None:
        nonlocal num_trained
        if not isinstance(operation, Train):
            return None
        num_trained += 1
        return ended(operation.trial).model_copy(update={"attempt": operation.k})

    for kind, turn in (
        ("proposer", proposer.turn),
        ("worker", worker.turn),
        ("command", lambda: follow(views["command"], time.monotonic())),
    ):
        since_s = time.process_time()
        disk.run(turn(), act)
        took[f"{kind} start"] = time.process_time() - since_s
    num_trained, since_s = 0, time.process_time()
    for _ in range(5):
        disk.run(proposer.turn())
        disk.run(worker.turn(), act)
        disk.run(follow(views["command"], time.monotonic()))
    took["a trial"] = (time.process_time() - since_s) / max(1, num_trained)
    shown = {name: f"{1000 * s:.1f} ms" for name, s in took.items()}
    print(f"{tuner}, {num} finished: {shown}")  # noqa: T201
    assert num_trained >= 3
    assert took["a trial"] + took["worker start"] / 50 < 0.1
