"""Before a run starts: the choice of its devices, and errors of its record."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import DiskError, InputError
from harness.job.job_file import load_job
from harness.system.console import Console
from harness.tracking.provenance import changes_since_first_start
from harness.tracking.run_dir import RunDirectory
from harness.training.context import RunContext
from harness.training.launch import (
    LaunchOptions,
    computing,
    dataset_of,
    devices_to_use,
    launch,
    plan_of,
)
from harness.training.parent import Parent, find_parent
from tests.conftest import JOBS


def test_a_resumed_run_keeps_its_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HARNESS_DEVICES applies to new runs only, `--devices` to all runs."""
    new, begun = RunDirectory(tmp_path / "new"), RunDirectory(tmp_path / "begun")
    begun.folder.mkdir()
    begun.path("provenance.json").write_text('{"devices_asked": "cpu:2"}')
    assert devices_to_use(new, None) is None
    monkeypatch.setenv("HARNESS_DEVICES", "cpu")
    assert devices_to_use(new, None) == "cpu"
    assert devices_to_use(begun, None) == "cpu:2"
    assert devices_to_use(begun, "cpu:3") == "cpu:3"
    begun.path("provenance.json").write_text('{"devices_asked": null}')
    assert devices_to_use(begun, None) == "cpu"


@pytest.mark.parametrize(("parent", "asked"), [(None, "cpu"), (Path("parent"), None)])
def test_a_run_with_a_parent_is_guarded_whatever_the_site_uses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parent: Path | None, asked: str | None
) -> None:
    """The run may continue on its parent's GPUs."""

    def end(devices: str | None) -> bool:
        assert devices == asked
        raise InputError("asked")

    monkeypatch.setattr("harness.training.launch.may_use_gpus", end)
    monkeypatch.setenv("HARNESS_DEVICES", "cpu")
    job, options = load_job(JOBS / "lstm.toml"), LaunchOptions(parent=parent)
    with pytest.raises(InputError, match="asked"):
        launch(RunDirectory(tmp_path / "new"), job, options=options, console=Console())


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
def test_an_unreadable_record_is_not_a_missing_one(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reads: Callable[[RunDirectory, RunContext], object],
) -> None:
    """If it counted as missing, the run would use other devices, another plan or random weights."""
    run = RunDirectory(tmp_path)
    dataset: Any = None
    run.path("provenance.json").write_text('{"devices_asked": "cpu:2"}')

    def fail(*_: object) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    for module in ("system.lenient_json", "system.leased_dir"):
        monkeypatch.setattr(f"harness.{module}.read_plain_file", fail)
    with pytest.raises(DiskError, match=r"provenance\.json: can't be read: Stale file handle"):
        reads(run, RunContext(run, load_job(JOBS / "lstm.toml"), dataset))


@pytest.mark.parametrize(
    ("option", "site", "visible"),
    [(None, "", 4), ("gpu", "gpu:2", 1), (None, "gpu:2", 2), ("gpu:8", "", 4), ("cpu:2", "", 0)],
)
def test_a_command_that_does_not_train_sees_only_its_devices(
    monkeypatch: pytest.MonkeyPatch, option: str | None, site: str, visible: int
) -> None:
    """A node has four GPUs. By default they are all used."""
    seen: dict[str, list[int]] = {}
    config = SimpleNamespace(
        list_physical_devices=lambda kind: [*range(4)],
        set_visible_devices=lambda devices, kind: seen.update({kind: devices}),
    )
    launching = "harness.training.launch"
    monkeypatch.setattr(f"{launching}.import_tensorflow", lambda *_: SimpleNamespace(config=config))
    monkeypatch.setattr(f"{launching}.stand_guard", lambda tell: None)
    monkeypatch.setattr(f"{launching}.gpu.has_driver", lambda: True)
    monkeypatch.setattr(f"{launching}.gpu.hidden_by", lambda: "")
    monkeypatch.setattr("harness.compute.device_check.check_devices", lambda warn: None)
    monkeypatch.setenv("HARNESS_DEVICES", site)
    with computing(load_job(JOBS / "lstm.toml"), devices=option):
        pass
    assert seen == {"GPU": [*range(visible)]}
