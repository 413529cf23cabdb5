"""Before a run starts: the choice of its devices, and errors of its record."""

from pathlib import Path

import pytest

from harness.tracking.run_dir import RunDirectory
from harness.training.launch import (
    devices_to_use,
)


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
