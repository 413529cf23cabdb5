"""Before a run starts: the choice of its devices, and errors of its record."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.job.job_file import load_job
from harness.tracking.run_dir import RunDirectory
from harness.training.launch import (
    computing,
    devices_to_use,
)
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
