"""What a failing disk means to a worker that starts, and to the command that joins workers."""

import errno
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.compute import strategy
from harness.data import imdb_sources
from harness.errors import DiskError, InputError, RunError
from harness.search_space import SEARCH_FILE
from harness.sweep_protocol.mailbox import Clock, Terms, patiently
from harness.system.console import Console
from harness.system.signals import StopRequest
from harness.tuning import join, oracle_process, sweep_dir, worker
from harness.tuning.pool import WorkerRequest
from tests.tuning.made_up_sweep import RANDOM, make_sweep


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
    monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / SEARCH_FILE).touch())
    assert worker.main([str(tmp_path), "w0"]) == 0
    assert starts == [tmp_path]


def test_a_failing_disk_is_no_refused_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: list[Path]
) -> None:
    """That would end the whole command; a worker that failed is started again."""
    monkeypatch.setattr(worker, "Terms", lambda: Terms(patience_s=-1))
    assert worker.main([str(tmp_path), "w0"]) == RunError.exit_code
    assert starts == []

    def refuse(*_: object) -> int:
        if is_failing:
            (tmp_path / SEARCH_FILE).unlink()
        raise InputError("can't be read")

    monkeypatch.setattr(worker, "work", refuse)
    for is_failing in (False, True):
        (tmp_path / SEARCH_FILE).touch()
        code = worker.main([str(tmp_path), "w0"])
        assert code == (RunError if is_failing else InputError).exit_code


class MovedClock(Clock):
    """A clock that waits for nobody."""

    time_s = 0.0

    def __init__(self, _: object = None) -> None:
        pass

    def now(self) -> float:
        return self.time_s

    def sleep(self, time_s: float) -> None:
        MovedClock.time_s += time_s


class Begins(Exception):  # noqa: N818 - what a worker does once it has read what it needs
    """TensorFlow would be imported."""


@pytest.mark.parametrize("name", [SEARCH_FILE, "data.json", "0_9.txt"])
@pytest.mark.parametrize("num_failing", [3, 10**9])
def test_a_disk_that_fails_while_a_worker_starts_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, num_failing: int
) -> None:
    """For ten minutes; as a refused input it would end the search."""
    sweep, failed, clock_s = make_sweep(tmp_path / "sweep", RANDOM), list[Path](), MovedClock.time_s
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
    monkeypatch.setattr(worker, "StopClock", MovedClock)
    monkeypatch.setattr(worker, "import_tensorflow", begin)
    arguments: Any = SimpleNamespace(data=None, threads=1, devices="cpu")
    with pytest.raises(Begins if num_failing == 3 else DiskError):
        worker.work(sweep, arguments)
    assert len(failed) >= 3
    assert MovedClock.time_s - clock_s == pytest.approx(6 if num_failing == 3 else 600, abs=6)


def test_what_is_no_fault_of_the_disk_is_not_waited_for(tmp_path: Path) -> None:
    """A file that is not there, or an input that is refused."""
    refusal, clock_s = InputError("units = 0: too few"), MovedClock.time_s

    def refuse() -> None:
        raise refusal

    with pytest.raises(InputError, match="too few"):
        patiently(refuse, MovedClock())
    with pytest.raises(FileNotFoundError):
        patiently((tmp_path / "none").read_bytes, MovedClock())
    assert MovedClock.time_s == clock_s


def test_an_oracle_that_starts_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its last word would end the search."""
    sweep, open_any, failed = make_sweep(tmp_path / "sweep", RANDOM), Path.open, list[Path]()

    def open_path(path: Path, *mode: Any, **options: Any) -> Any:
        if path.name == SEARCH_FILE and not failed:
            failed.append(path)
            raise OSError(errno.ESTALE, "stale")
        return open_any(path, *mode, **options)

    monkeypatch.setattr(Path, "open", open_path)
    monkeypatch.setattr(oracle_process, "Clock", MovedClock)
    monkeypatch.setattr(strategy, "import_tensorflow", lambda *_, **__: None)
    monkeypatch.setattr(oracle_process, "propose", lambda search, _: [{"end": search.name}])
    monkeypatch.setattr(sys, "argv", ["oracle", str(sweep.path(SEARCH_FILE))])
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    assert oracle_process.main() == 0
    assert (len(failed), capfd.readouterr().out) == (1, '{"end": "tune_lstm"}\n')


class Pool:
    """Workers whose logs can't be opened for some rounds."""

    num_failing = 3

    def __init__(self, *_: object, **__: object) -> None:
        self.workers: list[object] = []
        self.num_rounds = 0
        self.is_over = False

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def join_as(self, prefix: str) -> None:
        pass

    start_all = stop = lambda self: None

    def tend(self, num_done: int, states: object) -> None:
        self.num_rounds += 1
        self.is_over = self.num_rounds > self.num_failing
        if not self.is_over:
            raise OSError(errno.ESTALE, "stale")


class Suspended:
    """A clock of a process that was stopped once, for longer than a worker waits for the disk."""

    def __init__(self, _: object) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, _: float) -> None:
        self.now_s = 1000.0


@pytest.mark.parametrize("patience_s", [600, -1])
def test_a_joined_command_outlasts_a_failing_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    """Until it has failed for as long as a worker waits for it."""
    sweep = make_sweep(tmp_path / "sweep", RANDOM)
    shared = SimpleNamespace(terms=Terms(patience_s=patience_s))
    monkeypatch.setattr(sweep, "shared", lambda _: shared)
    monkeypatch.setattr(join, "WorkerPool", Pool)
    monkeypatch.setattr(join, "JOIN_ROUND_S", 0.0)
    monkeypatch.setattr(join, "StopClock", Suspended)
    arguments: Any = (sweep, WorkerRequest(), [])
    if patience_s > 0:
        join._join(*arguments, allocation=None, console=Console())
    else:
        with pytest.raises(RunError, match="stale"):
            join._join(*arguments, allocation=None, console=Console())
