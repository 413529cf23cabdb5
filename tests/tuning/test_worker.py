"""A worker's exit codes, its heartbeats (`beat.json`), and its patience with a failing disk."""

import errno
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from harness.errors import DiskError, InputError, Interrupted, NodeFault, RunError
from harness.job.search import SEARCH_FILE
from harness.system.lenient_json import read_json
from harness.system.processes import StopRequest
from harness.tuning import worker
from harness.tuning.disk import Disk, execute, make_once, to_bytes
from harness.tuning.protocol import Attempt, Gone, Trial, View, Worker, gone_file
from harness.tuning.worker import DISK_CODE, NODE_FAULT_CODE
from tests.conftest import wait_for
from tests.tuning.made_up_sweep import RANDOM, make_sweep, trial

UNREADABLE = InputError("vectors.txt: can't be read")
UNREADABLE.__context__ = OSError(errno.ESTALE, "stale")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (InputError("no such device"), InputError.exit_code),
        (RunError("it broke"), RunError.exit_code),
        (DiskError("stale"), DISK_CODE),
        (UNREADABLE, DISK_CODE),
        (NodeFault("no GPU", will_requeue=True), NODE_FAULT_CODE),
        (NodeFault("no GPU", will_requeue=False), RunError.exit_code),
        (Interrupted("SIGTERM"), Interrupted.exit_code),
    ],
)
def test_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, code: int
) -> None:
    """A failing disk must not count as refused input, which would end the search.

    A sweep that is not visible yet counts as a failing disk.
    """

    def work(*_: object) -> None:
        if error:
            raise error

    for name in ("end_with_parent", "take_any_text"):
        monkeypatch.setattr(worker, name, lambda: None)
    monkeypatch.setattr(worker, "work", work)
    words = [str(tmp_path), "w0", "--devices=cpu"]
    assert worker.main(words) == DISK_CODE
    (tmp_path / SEARCH_FILE).write_text("a = 1")
    assert worker.main(words) == code


class OneTrial:
    """Calls a function, then trains until a signal."""

    def __init__(self, stop: StopRequest, act: Callable[[], object]) -> None:
        self.stop, self.act = stop, act

    def run(self, trial: Any, k: int) -> Any:
        self.act()
        while True:
            self.stop.check()
            time.sleep(0.01)

    def saved(self, n: int, k: int) -> int:
        return 7


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> StopRequest:
    """Receives the signals that this process sends to itself."""
    stop = StopRequest()
    monkeypatch.setattr(os, "kill", lambda _, number: stop.note(number))
    monkeypatch.setattr(worker, "BEAT_S", 0.02)
    return stop


def train(folder: Path, stop: StopRequest, act: Callable[[], object]) -> None:
    """Train attempt 1 at trial 0."""
    trials: Any = OneTrial(stop, act)
    training = partial(worker.train, trials)
    me = Worker(Attempt(worker="me"), 24, View(Disk(folder)), training)
    execute(training(me, trial(0, None), 1))


def test_a_worker_first_continues_its_own_attempt(tmp_path: Path) -> None:
    """The disk reported an error when the attempt was created; an earlier trial is now free."""
    folder, begun = make_sweep(tmp_path / "sweep", RANDOM).folder, list[tuple[int, int]]()
    for n, name in enumerate(["dead", "me"]):
        make_once(folder / f"trials/{n}", {"values.json": to_bytes(trial(n, None))})
        make_once(folder / f"trials/{n}/1", {"owner.json": to_bytes(Attempt(worker=name))})
    execute(Disk(folder).write(gone_file(0, 1), Gone(has_left=True)))

    async def begin(_: Worker, taken: Trial, k: int) -> Trial:
        begun.append((taken.n, k))
        return trial(taken.n, 0.5)

    me = Worker(Attempt(worker="me"), 24, View(Disk(folder)), begin)
    for _ in range(2):
        execute(me.turn())
    assert begun == [(1, 1), (0, 2)]


@pytest.mark.parametrize("name", ["accepted", "2"])
def test_a_needless_attempt_ends(tmp_path: Path, stop: StopRequest, name: str) -> None:
    """An attempt ends after another worker's result or attempt; heartbeats have the saved steps."""
    sweep = make_sweep(tmp_path / "s", RANDOM, trial(0, None, worker="me"))
    beat = sweep.path("trials/0/1/beat.json")

    def interfere() -> None:
        wait_for(lambda: read_json(beat).get("count", 0) > 1)
        sweep.path("trials/0", name).mkdir()

    with pytest.raises(Interrupted):
        train(sweep.folder, stop, interfere)
    assert read_json(beat)["saved"] == 7


def test_beats_end_with_their_attempt(tmp_path: Path, stop: StopRequest) -> None:
    """After the end of the heartbeats, an accepted result stops nothing."""
    sweep = make_sweep(tmp_path / "s", RANDOM, trial(0, None, worker="me"))
    for error in (OSError("no room"), Interrupted("SIGTERM"), RunError("it broke")):
        with pytest.raises(type(error)):
            train(sweep.folder, stop, mock.Mock(side_effect=error))
    sweep.path("trials/0/accepted").mkdir()
    time.sleep(0.1)
    stop.check()
