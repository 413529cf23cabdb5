"""What a worker that starts says of a failing disk, and what its attempts tell meanwhile."""

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from harness.errors import DiskError, InputError, Interrupted, NodeFault, RunError
from harness.job.search import SEARCH_FILE
from harness.system.lenient_json import read_json
from harness.system.processes import StopRequest
from harness.tuning import worker
from harness.tuning.disk import Disk
from harness.tuning.pool import DISK_CODE, NODE_FAULT_CODE
from harness.tuning.protocol import Attempt, Sleep, Train, Worker
from harness.tuning.tune import patiently
from tests.conftest import wait_for
from tests.tuning.made_up_sweep import RANDOM, make_sweep, trial


@pytest.fixture
def waited_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that is waited for by nobody: how long this process has waited."""
    waited = [0.0]

    def sleep(time_s: float) -> None:
        waited[0] += time_s

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + waited[0])
    return waited


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (InputError("no such device"), InputError.exit_code),
        (RunError("it broke"), RunError.exit_code),
        (DiskError("stale"), DISK_CODE),
        (NodeFault("no GPU", will_requeue=True), NODE_FAULT_CODE),
        (NodeFault("no GPU", will_requeue=False), RunError.exit_code),
        (Interrupted("SIGTERM"), Interrupted.exit_code),
    ],
)
def test_how_a_worker_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, code: int
) -> None:
    """A failing disk, by which the search is hidden too, is no refused input."""

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


@pytest.mark.parametrize("name", [SEARCH_FILE, "provenance.json"])
def test_a_file_that_cant_be_read_is_a_failing_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As a refused input it would end the search."""
    sweep, really_open, really_open_path = make_sweep(tmp_path / "s", RANDOM), os.open, Path.open

    def fail(path: Any) -> None:
        if Path(path).name == name:
            raise OSError(errno.ESTALE, "stale")

    def open_file(path: Any, *flags: Any, **options: Any) -> Any:
        fail(path)
        return really_open(path, *flags, **options)

    def open_path(path: Path, *mode: Any, **options: Any) -> Any:
        fail(path)
        return really_open_path(path, *mode, **options)

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(Path, "open", open_path)
    for step in ("end_with_parent", "take_any_text"):
        monkeypatch.setattr(worker, step, lambda: None)
    monkeypatch.setattr(StopRequest, "listen", lambda self: None)
    assert worker.main([str(sweep.folder), "w0", "--devices=cpu"]) == DISK_CODE


def test_a_command_waits_ten_minutes_for_a_disk_that_fails(
    tmp_path: Path, waited_s: list[float]
) -> None:
    """Then it ends, in one line; at once for a folder that is gone, or an input that is refused."""
    failures: list[Exception] = [OSError(errno.ESTALE, "stale")] * 3

    def step() -> int:
        if failures:
            raise failures.pop()
        return 7

    assert patiently(step, StopRequest()) == 7
    failures += [OSError(errno.ESTALE, "stale")] * 1000
    with pytest.raises(DiskError, match="stale"):
        patiently(step, StopRequest())
    assert waited_s[0] == pytest.approx(3 + 600, abs=5)
    failures.append(InputError("units = 0: too few"))
    with pytest.raises(InputError, match="too few"):
        patiently(step, StopRequest())
    with pytest.raises(DiskError, match="No such file"):
        patiently((tmp_path / "none").read_bytes, StopRequest())
    assert waited_s[0] == pytest.approx(3 + 600, abs=5)


def test_a_worker_says_once_that_the_disk_fails(
    tmp_path: Path, waited_s: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    """And goes on as soon as it does not; a turn that goes well begins anew."""

    def course() -> Any:
        for fails in (True, True, False, True):
            yield Sleep(2.0, OSError("stale") if fails else None)

    Disk(tmp_path).run(course())
    assert waited_s[0] == pytest.approx(8)
    assert capfd.readouterr().err.count("stale; tried again") == 2


class OneTrial:
    """Trains until it is told to stop."""

    def __init__(self, stop: StopRequest, error: Exception | None = None) -> None:
        self.stop, self.error = stop, error

    def run(self, trial: Any, k: int) -> Any:
        while not self.error:
            self.stop.check()
            time.sleep(0.01)
        raise self.error

    def saved(self, n: int, k: int) -> int:
        return 7


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> StopRequest:
    """What the signal of this process to itself sets."""
    stop = StopRequest()
    monkeypatch.setattr(os, "kill", lambda _, number: stop._note(number, None))
    monkeypatch.setattr(worker, "BEAT_S", 0.02)
    return stop


@pytest.mark.parametrize("how", ["accepted/trial", "2/owner"])
def test_an_attempt_ends_once_nobody_needs_it(tmp_path: Path, stop: StopRequest, how: str) -> None:
    """Its beat tells what it saved; another attempt or a result ends it, and the process."""
    sweep = make_sweep(tmp_path / "s", RANDOM, trial(0, None, worker="me"))
    beat = sweep.path("trials/0/1/beat.json")

    def interfere() -> None:
        wait_for(lambda: read_json(beat).get("count", 0) > 1)
        sweep.path(f"trials/0/{how}.json").parent.mkdir()

    thread = threading.Thread(target=interfere)
    thread.start()
    trials: Any = OneTrial(stop)
    with pytest.raises(Interrupted):
        worker.train(of_me(), trials, sweep.folder, Train(trial(0, None), 1))
    thread.join()
    assert read_json(beat)["saved"] == 7


def of_me() -> Worker:
    """A worker that has looked at nothing yet."""
    return Worker(Attempt(worker="me"), 24)


def test_a_beat_ends_with_its_attempt(tmp_path: Path, stop: StopRequest) -> None:
    """Whatever ends it; that the result is accepted then stops nobody."""
    sweep = make_sweep(tmp_path / "s", RANDOM, trial(0, None, worker="me"))
    for error in (OSError("no room"), Interrupted("SIGTERM"), RunError("it broke")):
        trials: Any = OneTrial(stop, error)
        with pytest.raises(type(error)):
            worker.train(of_me(), trials, sweep.folder, Train(trial(0, None), 1))
    sweep.path("trials/0/accepted").mkdir()
    time.sleep(0.1)
    stop.check()
