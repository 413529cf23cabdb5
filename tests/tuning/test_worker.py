"""What a failing disk means to a worker that starts, and what its attempts tell meanwhile."""

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.data import imdb_sources
from harness.errors import DiskError, InputError, Interrupted, RunError
from harness.files.lenient_json import read_json
from harness.search_space import SEARCH_FILE
from harness.system.signals import StopRequest
from harness.tuning import sweep_dir, worker
from harness.tuning.course import LOCAL, Sleep, Terms, Train, View, Worker
from harness.tuning.disk import Disk, patiently
from harness.tuning.records import Attempt, Trial
from harness.tuning.worker import Attempts
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


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sweeps for which a worker began to work in this process."""
    folders: list[Path] = []

    def work(sweep: Any, _: object) -> int:
        folders.append(sweep.folder)
        return 0

    monkeypatch.setenv("HARNESS_CPUS", "1")  # which the worker sets
    for name in ("end_with_parent", "take_any_text"):
        monkeypatch.setattr(worker, name, lambda: None)
    monkeypatch.setattr(worker, "work", work)
    return folders


def test_a_worker_that_starts_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: list[Path]
) -> None:
    """The command has opened the sweep, so the disk hides it for a while."""
    monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / SEARCH_FILE).write_text("a = 1"))
    assert worker.main([str(tmp_path), "w0"]) == 0
    assert starts == [tmp_path]


def test_a_failing_disk_is_no_refused_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: list[Path], waited_s: list[float]
) -> None:
    """That would end the whole command; a worker that failed is started again."""
    assert worker.main([str(tmp_path), "w0"]) == RunError.exit_code
    assert starts == []
    assert waited_s[0] == pytest.approx(600, abs=5)

    def refuse(*_: object) -> int:
        if is_failing:
            (tmp_path / SEARCH_FILE).unlink()
        raise InputError("can't be read")

    monkeypatch.setattr(worker, "work", refuse)
    for is_failing in (False, True):
        (tmp_path / SEARCH_FILE).write_text("a = 1")
        code = worker.main([str(tmp_path), "w0"])
        assert code == (RunError if is_failing else InputError).exit_code


class Begins(Exception):  # noqa: N818 - what a worker does once it has read what it needs
    """TensorFlow would be imported."""


@pytest.mark.parametrize("name", [SEARCH_FILE, "data.json", "0_9.txt"])
@pytest.mark.parametrize("num_failing", [3, 10**9])
def test_a_disk_that_fails_while_a_worker_starts_is_waited_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waited_s: list[float],
    name: str,
    num_failing: int,
) -> None:
    """For ten minutes; as a refused input it would end the search."""
    sweep, failed = make_sweep(tmp_path / "sweep", RANDOM), list[Path]()
    review = tmp_path / "0_9.txt"
    review.touch()
    really_open, open_any = os.open, Path.open

    def fail(path: Any) -> None:
        if Path(path).name == name and len(failed) < num_failing:
            failed.append(path)
            raise OSError(errno.ESTALE, "stale")

    def open_file(path: Any, *flags: Any, **options: Any) -> Any:
        fail(path)
        return really_open(path, *flags, **options)

    def open_path(path: Path, *mode: Any, **options: Any) -> Any:
        fail(path)
        return open_any(path, *mode, **options)

    def begin(*_: object) -> None:
        raise Begins

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(Path, "open", open_path)
    monkeypatch.setattr(sweep_dir, "reopen_data", lambda *_, **__: imdb_sources._read(review))
    monkeypatch.setattr(StopRequest, "listen", lambda self: None)
    monkeypatch.setattr(worker, "import_tensorflow", begin)
    arguments: Any = SimpleNamespace(data=None, threads=1, devices="cpu")
    with pytest.raises(Begins if num_failing == 3 else DiskError):
        worker._work(sweep, arguments)
    assert len(failed) >= 3
    assert waited_s[0] == pytest.approx(3 if num_failing == 3 else 600, abs=6)


def test_what_is_no_fault_of_the_disk_is_not_waited_for(
    tmp_path: Path, waited_s: list[float]
) -> None:
    """A file that is not there, or an input that is refused."""

    def refuse() -> None:
        raise InputError("units = 0: too few")

    with pytest.raises(InputError, match="too few"):
        patiently(refuse, StopRequest())
    with pytest.raises(FileNotFoundError):
        patiently((tmp_path / "none").read_bytes, StopRequest())
    assert waited_s == [0.0]


def test_a_worker_waits_ten_minutes_for_a_disk_that_fails(
    tmp_path: Path, waited_s: list[float]
) -> None:
    """One turn that goes well begins the time anew; then it is interrupted, which loses nothing."""
    sweep, course = Disk(tmp_path), iter_sleeps([*[True] * 100, False, *[True] * 10_000])
    with pytest.raises(Interrupted, match="the file system: stale"):
        sweep.run(course)
    assert waited_s[0] == pytest.approx(200 + 600, abs=5)


def iter_sleeps(fails: list[bool]) -> Any:
    """Sleeps of two seconds, some because the file system fails."""
    for each in fails:
        yield Sleep(2.0, OSError("stale") if each else None)


class OneTrial:
    """Trains until it is told that nobody needs the attempt."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.num_checks = error, 0

    def run(self, trial: Trial, k: int, check: Callable[[], None]) -> Trial:
        if self.error:
            raise self.error
        while True:
            self.num_checks += 1
            check()
            time.sleep(0.01)

    def saved(self, n: int, k: int) -> int:
        return 7

    def has_grown(self) -> bool:
        return False


@pytest.mark.parametrize("how", ["accepted", "later", "stopped"])
def test_an_attempt_ends_once_nobody_needs_it(tmp_path: Path, how: str) -> None:
    """Its beat tells its steps; another attempt, a result or a stop of the search ends it."""
    sweep = make_sweep(tmp_path / "s", RANDOM, trial(0, None, worker="me"))
    trials: Any = OneTrial()
    attempts = Attempts(Disk(sweep.folder), Terms(beat_s=0.02), trials)
    attempts.worker = Worker(View(time.monotonic, LOCAL), Attempt(worker="me"), 24)
    beat = sweep.path("trials/0/1/beat.json")

    def interfere() -> None:
        wait_for(lambda: read_json(beat).get("step", 0) > 1)
        place = {"accepted": "trials/0/accepted/trial", "later": "trials/0/2/owner"}
        path = sweep.path(f"{place.get(how, 'stops/1/stop')}.json")
        path.parent.mkdir()
        path.write_text('{"n": 0, "worker": "other", "by": "me", "at": "now", "values": {}}')

    thread = threading.Thread(target=interfere)
    thread.start()
    assert attempts.act(Train(trial(0, None), 1)) is None
    thread.join()
    assert read_json(beat)["saved"] == 7
    assert trials.num_checks > 1


def test_what_ends_an_attempt_is_told_apart(tmp_path: Path) -> None:
    """A disk that refuses is tried again; a signal and any other error end the process."""
    for error, expected in (
        (DiskError("no room"), OSError),
        (Interrupted("SIGTERM"), Interrupted),
        (RunError("it broke"), RunError),
    ):
        trials: Any = OneTrial(error)
        attempts = Attempts(Disk(tmp_path), LOCAL, trials)
        with pytest.raises(expected):
            attempts.act(Train(trial(0, None), 1))
