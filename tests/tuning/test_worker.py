"""What a failing disk means to a worker that starts, and to the command that joins workers."""

import errno
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import InputError, RunError
from harness.search_space import SEARCH_FILE
from harness.sweep_protocol.mailbox import Terms
from harness.system.console import Console
from harness.tuning import join, worker
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
    for name in ("end_with_parent", "hold_own", "take_any_text"):
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
    arguments: Any = (sweep, WorkerRequest(), [])
    if patience_s > 0:
        join._join(*arguments, allocation=None, console=Console())
    else:
        with pytest.raises(RunError, match="stale"):
            join._join(*arguments, allocation=None, console=Console())
