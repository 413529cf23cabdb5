"""Before a run starts: the choice of its devices, and errors of its record."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.data.sources import open_sample
from harness.errors import DiskError, InputError, NodeFault
from harness.job.job_file import load_job
from harness.system.console import Console
from harness.tracking.run_dir import RunDirectory
from harness.training import launch
from harness.training.context import RunContext
from harness.training.launch import announce, dataset_of, devices_to_use
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


def test_a_full_disk_does_not_hide_a_fault_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run ends with the fault, or by the signal, although its record can't be written."""
    guards: list[Any] = []
    monkeypatch.setattr(launch, "may_use_gpus", lambda _: True)
    monkeypatch.setattr(launch, "stand_guard", guards.append)
    launch.guard_gpus(RunDirectory(tmp_path), None)
    monkeypatch.setattr(launch, "record_death", raising(DiskError("no space")))
    monkeypatch.setattr(launch, "tell_death", lambda *_, **__: None)
    guards[0](signal.SIGABRT, "", 1)
    monkeypatch.setattr(launch, "tell_death", raising(NodeFault("ECC", will_requeue=True)))
    with pytest.raises(NodeFault, match="ECC"):
        guards[0](signal.SIGABRT, "", 1)


def raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_run_on_the_sample_is_not_continued_with_full(tmp_path: Path) -> None:
    """`--full` promises the full data."""
    run, job = RunDirectory(tmp_path), load_job(JOBS / "lstm.toml")
    run.path("provenance.json").write_text(json.dumps({"dataset": open_sample().record()}))
    assert dataset_of(run, job, None).is_sample
    with pytest.raises(InputError, match=r"--full: run .* began with the SAMPLE .*; leave --full"):
        dataset_of(run, job, None, full=True)


@pytest.mark.parametrize(("num_gpus", "batch_size"), [(0, 2), (1, 2), (2, 128), (2, 126), (2, 2)])
def test_several_gpus_with_few_reviews_are_reported(
    num_gpus: int, batch_size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below 64 reviews per step, a second GPU saves no time; a single device has no remedy."""
    job = load_job(JOBS / "lstm.toml", [f"train.batch_size={batch_size}"])
    context = RunContext(RunDirectory(tmp_path), job, open_sample())
    announce(context, max(num_gpus, 1), Console(), on_gpus=num_gpus > 0)
    said = f"each GPU only {batch_size // 2} reviews" in capsys.readouterr().err
    assert said == (num_gpus == 2 and batch_size < 128)


def test_a_batch_has_a_review_for_each_replica(tmp_path: Path) -> None:
    """The error names the key, both numbers and the remedy."""
    job = load_job(JOBS / "lstm.toml", ["train.batch_size=2"])
    context = RunContext(RunDirectory(tmp_path), job, open_sample())
    with pytest.raises(InputError, match=r"train\.batch_size = 2: .* at least 3, .* fewer devices"):
        announce(context, 3, Console())


@pytest.mark.parametrize("key", ["monitor", "keep"])
def test_a_score_that_needs_many_classes_is_refused(tmp_path: Path, key: str) -> None:
    """IMDB has two classes, so a label is always among the five most probable classes."""
    job = load_job(JOBS / "lstm.toml", [f"train.{key}=val_top_5_accuracy"])
    context = RunContext(RunDirectory(tmp_path), job, open_sample())
    with pytest.raises(InputError, match=r"more than 10 classes, .* have 2; use val_accuracy"):
        announce(context, 1, Console())
