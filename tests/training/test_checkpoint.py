"""Checkpoints: their precision, broken and refused ones, and errors of the disk."""

import errno
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from harness.errors import DiskError, InputError, RunError
from harness.tracking import run_dir
from harness.tracking.run_dir import RunDirectory
from harness.training import checkpoint
from harness.training.checkpoint import Progress


class Step:
    """A model with one weight, and its optimizer."""

    def __init__(self, dtype: str = "float32") -> None:
        layer = keras.layers.Dense(1, use_bias=False, dtype=dtype)
        self.model = keras.Sequential([keras.Input([1]), layer])
        self.optimizer = keras.optimizers.SGD(momentum=0.5)
        self.optimizer.build(self.model.trainable_variables)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_restored_to_the_bit(tmp_path: Path, dtype: str) -> None:
    """Weights and best weights keep their bytes, also in a run that adopts the checkpoint."""
    run, step = RunDirectory(tmp_path / "run"), Step(dtype)
    of_step: Any = step
    run.take_lease()
    best = step.model.get_weights()
    checkpoint.save(run, of_step, Progress("mine", best_weights=best), total_steps=1)
    child = RunDirectory(tmp_path / "child")
    child.take_lease()
    assert not checkpoint.adopt(run, child, "mine", source_identity="other")
    assert checkpoint.adopt(run, child, "mine", source_identity="mine")
    for each in (run, child):
        step.model.set_weights([np.array([[7]])])
        progress, skipped = checkpoint.restore(each, of_step, "mine")
        assert not skipped
        for found in (step.model.get_weights(), progress.best_weights):
            assert found[0].dtype == best[0].dtype
            assert found[0].tobytes() == best[0].tobytes()


def saved_run(folder: Path, *numbers: int) -> tuple[RunDirectory, Any]:
    """Return a run with a checkpoint after each of these numbers of steps, and its model."""
    run, step = RunDirectory(folder), Step()
    of_step: Any = step
    run.take_lease()
    for number in numbers:
        checkpoint.save(run, of_step, Progress("mine", step=number), total_steps=number)
    return run, step


def test_a_folder_that_a_node_sees_late_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both listed checkpoints have been replaced by newer ones."""
    run, step = saved_run(tmp_path / "run", 100, 200)
    late, listed = iter([run.checkpoints()]), RunDirectory.checkpoints
    for number in (300, 400):
        checkpoint.save(run, step, Progress("mine", step=number), total_steps=number)
    monkeypatch.setattr(RunDirectory, "checkpoints", lambda run: next(late, None) or listed(run))
    monkeypatch.setattr(checkpoint, "RETRY_S", 0)
    progress, skipped = checkpoint.restore(run, step, "mine")
    assert (progress.step, skipped) == (400, [])


def test_a_broken_checkpoint_is_named_and_the_older_one_used(tmp_path: Path) -> None:
    """The checkpoint may be truncated or empty, or a FIFO in its place."""
    run, step = saved_run(tmp_path / "run", 400, 500)
    older, newest = run.checkpoints()
    newest.write_bytes(newest.read_bytes()[:-50])
    progress, (line,) = checkpoint.restore(run, step, "mine")
    assert progress.step == 400
    assert line.startswith(f"checkpoint {newest.name} is broken (")
    assert line.endswith("); using the checkpoint before it")
    older.unlink()
    os.mkfifo(older)
    newest.write_bytes(b"")
    progress, (_, line) = checkpoint.restore(run, step, "mine")
    assert progress.step == 0
    assert line.startswith(f"checkpoint {older.name} is broken (")
    assert line.endswith("); no checkpoint is left, so the run starts over")


def test_a_checkpoint_of_another_job_or_other_data_is_refused(tmp_path: Path) -> None:
    """It is not skipped, and stays."""
    run, step = saved_run(tmp_path / "run", 400, 500)
    contents = [path.read_bytes() for path in run.checkpoints()]
    with pytest.raises(RunError, match="another job or other data"):
        checkpoint.restore(run, step, "other")
    assert [path.read_bytes() for path in run.checkpoints()] == contents


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
def test_a_disk_error_is_no_broken_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Although zipfile reports "not a zip file", the run ends and can be resumed or continued."""
    run, step = saved_run(tmp_path / "run", 400, 500)

    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(zipfile, "_EndRecData", fail)
        with pytest.raises(DiskError, match=f"can't be read: {os.strerror(error)}; "):
            checkpoint.restore(run, step, "mine")
        with pytest.raises(DiskError, match=f"can't be read: {os.strerror(error)}; "):
            checkpoint.adopt(run, RunDirectory(tmp_path / "new"), "new", source_identity="mine")
    began, skipped = checkpoint.restore(run, step, "mine")
    assert (began.step, skipped) == (500, [])


def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    """A new version of a package may have added a variable to a layer."""
    run, step = saved_run(tmp_path / "run", 400)
    other: Any = SimpleNamespace(model=keras.Sequential([keras.Input([2]), keras.layers.Dense(3)]))
    other.optimizer = step.optimizer
    with pytest.raises(RunError, match=r"does not fit the network, because the code or"):
        checkpoint.restore(run, other, "mine")


def test_another_versions_checkpoint_is_refused_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only broken checkpoints are skipped; skipping an intact checkpoint would lose its steps."""
    with monkeypatch.context() as patched:
        patched.setattr(run_dir, "FORMAT", 99)
        run, step = saved_run(tmp_path / "run", 400)
    with pytest.raises(InputError, match=r"was written by harness .* \(format 99\)"):
        checkpoint.restore(run, step, "mine")
    assert len(run.checkpoints()) == 1


def test_a_run_with_a_parents_weights_does_not_begin_without_them(tmp_path: Path) -> None:
    """If all its checkpoints are broken, this run is refused, while other runs start over."""
    for begins_with, weights_of in (("weights", None), ("checkpoint", "/a"), ("checkpoint", None)):
        run, step = saved_run(tmp_path / f"{begins_with}-{weights_of}", 400)
        parent = {"run": "/a", "begins_with": begins_with, "weights_of": weights_of}
        run.write_json("provenance.json", {"starts": [{"parent": parent}]})
        (path,) = run.checkpoints()
        path.write_bytes(b"noise")
        if begins_with == "weights" or weights_of:
            refusal = r"begin again with the weights of /a, remove .*points, "
            with pytest.raises(RunError, match=refusal):
                checkpoint.restore(run, step, "mine")
        else:
            assert checkpoint.restore(run, step, "mine")[0].step == 0
