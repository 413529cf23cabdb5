"""What happens before a run: its workers meet, its devices are judged."""

import contextlib
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import DiskError
from harness.job.job_file import load_job
from harness.system.console import Console
from harness.tracking.provenance import changes_since_first_start
from harness.tracking.run_dir import RunDirectory
from harness.training.context import RunContext
from harness.training.launch import (
    dataset_of,
    devices_to_use,
    join_workers,
    plan_of,
)
from harness.training.parent import Parent, find_parent
from tests.conftest import JOBS
from tests.slurm.test_nodes import allocation, job_id

__all__ = ["job_id"]  # pytest takes the fixture from here


def test_a_resumed_run_keeps_its_devices_whatever_the_site_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """HARNESS_DEVICES is for runs that have no devices yet; the command always wins."""
    new, begun = RunDirectory(tmp_path / "new"), RunDirectory(tmp_path / "begun")
    begun.folder.mkdir()
    begun.path("provenance.json").write_text('{"devices_asked": "cpu:2"}')
    assert devices_to_use(new, None) is None
    monkeypatch.setenv("HARNESS_DEVICES", "cpu")
    assert devices_to_use(new, None) == "cpu"
    assert devices_to_use(begun, None) == "cpu:2"
    assert devices_to_use(begun, "cpu:3") == "cpu:3"


@pytest.mark.parametrize(
    "reads",
    [
        lambda run, context: devices_to_use(run, None),
        lambda run, context: plan_of(context.job, "cpu", run),
        lambda run, context: dataset_of(run, context.job, None),
        lambda run, context: find_parent(context, named=None),
        lambda run, context: Parent(run, continues=True).record(),
        lambda run, context: changes_since_first_start(run, []),
    ],
)
def test_a_record_that_can_not_be_read_just_now_is_not_a_missing_one(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reads: Callable[[RunDirectory, RunContext], object],
) -> None:
    """The run would go on with other devices, another plan or random weights."""
    run = RunDirectory(tmp_path)
    dataset: Any = None
    run.path("provenance.json").write_text('{"devices_asked": "cpu:2"}')

    def fail(*_: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    for module in ("system.lenient_json", "system.leased_dir"):
        monkeypatch.setattr(f"harness.{module}.read_plain_file", fail)
    with pytest.raises(DiskError, match=r"provenance\.json: can't be read: Stale file handle"):
        reads(run, RunContext(run, load_job(JOBS / "lstm.toml"), dataset))


def test_only_the_chief_writes_where_others_read(job_id: str, tmp_path: Path) -> None:
    """The other worker has a silent console and a temporary folder, gone when the run ends."""
    run = RunDirectory(tmp_path / "lstm" / "wide")
    dataset: Any = SimpleNamespace(checksum="made up")
    context = RunContext(run, load_job(JOBS / "lstm.toml"), dataset)
    consoles, stacks = [Console(), Console()], [contextlib.ExitStack(), contextlib.ExitStack()]

    def join(rank: int) -> RunContext:
        own = allocation(job_id, rank)
        return join_workers(own, context, console=consoles[rank], stack=stacks[rank])[1]

    with ThreadPoolExecutor(2) as pool:
        chief, other = pool.map(join, range(2))
        folder = other.run.folder
        was_there = folder.parent.is_dir()
        list(pool.map(contextlib.ExitStack.close, stacks))  # each waits for the other
    assert chief.run is run
    assert (folder.name, folder.is_relative_to(tmp_path)) == ("wide", False)
    assert (was_there, folder.parent.exists()) == (True, False)
    assert [console.silent for console in consoles] == [False, True]
