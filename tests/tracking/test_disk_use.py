"""What may go of a finished run's folder, and what never goes."""

import json
import os
from pathlib import Path

import pytest

from harness.tracking.disk_use import OF_A_RUN, OF_A_TRIAL, prune, refusal
from harness.tracking.run_dir import RunDirectory

KEPT = (
    *("job.toml", "provenance.json", "metrics.jsonl", "result.json", "predictions.npz"),
    *("model.keras", "vocabulary.txt", "timings.jsonl", "state.json"),
    *("tensorboard/events.out.tfevents.1.a.1", "tensorboard/train/events.out.tfevents.1.a.1"),
)
FREED = (
    *("checkpoints/step-000000007.npz", "tensorboard/train/.5.tmp", "tensorboard/train/.6.tmp"),
    "checkpoints/.7.tmp.npz",
)


def make_run(folder: Path) -> RunDirectory:
    """A finished run of files of seven bytes, but for its result."""
    for name in (*KEPT, *FREED):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")
    result = {"accuracy": 0.5, "dataset_checksum": "", "classes": ["negative", "positive"]}
    (folder / "result.json").write_text(json.dumps(result))
    return RunDirectory(folder)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_can_be_made_again_goes_and_all_else_stays(tmp_path: Path) -> None:
    """First only counted, then removed, then nothing is left to remove."""
    run = make_run(tmp_path / "run")
    for really in (False, True):
        assert files(run.folder) == {*KEPT, *FREED}
        amount = prune(run.folder, OF_A_RUN, really=really)
        assert amount.num_files == {"checkpoints": 1, "half-written files": 3}
        assert amount.num_bytes.total() == 7 * len(FREED)
    assert files(run.folder) == {*KEPT}
    assert not prune(run.folder, OF_A_RUN, really=True).num_files
    prune(run.folder, OF_A_TRIAL, really=True)
    assert len(files(run.folder)) == 7


def test_nothing_goes_through_a_link(tmp_path: Path) -> None:
    """Neither a linked folder, nor one in it, nor a linked file; a link is no run either."""
    run = make_run(tmp_path / "run")
    other = make_run(tmp_path / "other")
    (tmp_path / "link").symlink_to(other.folder)
    assert not prune(tmp_path / "link", OF_A_RUN, really=True).num_files
    assert refusal(tmp_path / "link") == "is a link"
    for path in run.path("checkpoints").iterdir():
        path.unlink()
    run.path("checkpoints").rmdir()
    run.path("checkpoints").symlink_to(other.path("checkpoints"))
    run.path("tensorboard/train/.5.tmp").unlink()
    run.path("tensorboard/train/.5.tmp").symlink_to(other.path("job.toml"))
    amount = prune(run.folder, OF_A_RUN, really=True)
    assert amount.num_files == {"half-written files": 1}
    assert files(other.folder) == {*KEPT, *FREED}


def test_only_own_finished_runs_are_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a whole result, or of another user, a run is left as it is, with the reason."""
    run = make_run(tmp_path / "run")
    assert refusal(run.folder) == ""
    run.path("result.json").write_text("{")
    assert refusal(run.folder) == "has a broken result.json"
    run.path("result.json").unlink()
    assert refusal(run.folder) == "is unfinished"
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert refusal(run.folder).startswith("belongs to ")
    assert not prune(run.folder, OF_A_RUN, really=True).num_files
