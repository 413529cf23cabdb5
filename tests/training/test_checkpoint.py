"""Checkpoints: which of them a run keeps, and which it believes."""

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from harness.errors import DiskError, RunError
from harness.tracking.run_dir import RunDirectory
from harness.training import checkpoint
from harness.training.progress import Progress


class Step:
    """A model of one number and its optimizer."""

    def __init__(self, dtype: str = "float32") -> None:
        layer = keras.layers.Dense(1, use_bias=False, dtype=dtype)
        self.model = keras.Sequential([keras.Input([1]), layer])
        self.optimizer = keras.optimizers.SGD(momentum=0.5)
        self.optimizer.build(self.model.trainable_variables)


@pytest.mark.parametrize("num_broken", [1, 2])
def test_broken_checkpoints_give_way_to_the_first_new_one(tmp_path: Path, num_broken: int) -> None:
    """A run that begins before them keeps what it saves, and the last two whole ones."""
    run, step = RunDirectory(tmp_path / "run"), Step()
    of_step: Any = step
    run.take_lease()
    for number in (400, 500):
        checkpoint.save(run, of_step, Progress("mine", step=number), total_steps=number)
    for path in run.checkpoints()[-num_broken:]:
        path.write_bytes(b"noise")
    began, skipped = checkpoint.restore(run, of_step, "mine")
    assert (began.step, len(skipped)) == ({1: 400, 2: 0}[num_broken], num_broken)
    for number in (began.step + 60, began.step + 80):
        step.model.set_weights([np.array([[number]])])
        checkpoint.save(run, of_step, Progress("mine", step=number), total_steps=number)
        found, skipped = checkpoint.restore(run, of_step, "mine")
        assert (found.step, skipped) == (number, [])
    kept = [f"step-{number:09d}" for number in (began.step + 60, began.step + 80)]
    assert [path.stem for path in run.checkpoints()] == kept


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weights_of_any_precision_come_back(tmp_path: Path, dtype: str) -> None:
    """Those of the best epoch too; a run that begins with the checkpoint gets the same."""
    run, step = RunDirectory(tmp_path / "run"), Step(dtype)
    of_step: Any = step
    run.take_lease()
    best = step.model.get_weights()
    checkpoint.save(run, of_step, Progress("mine", best_weights=best), total_steps=1)
    child = RunDirectory(tmp_path / "child")
    child.take_lease()
    assert checkpoint.adopt(run.checkpoints()[0], child, "mine")
    for each in (run, child):
        step.model.set_weights([np.array([[7]])])
        progress, skipped = checkpoint.restore(each, of_step, "mine")
        assert not skipped
        for found in (step.model.get_weights(), progress.best_weights):
            assert found[0].dtype == best[0].dtype
            assert found[0].tobytes() == best[0].tobytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_checksum_is_of_every_bit_of_model_and_optimizer(dtype: str) -> None:
    """One bit of a weight, a moment or the number of steps changes it, for as long as it is so."""
    step: Any = Step(dtype)
    sums = [checkpoint.checksum(step)]
    for variable in (*step.model.variables, *step.optimizer.variables):
        before = variable.numpy()
        flipped = np.frombuffer(before.tobytes(), np.uint8).copy()
        flipped[0] ^= 1
        variable.assign(flipped.view(before.dtype).reshape(before.shape))
        sums.append(checkpoint.checksum(step))
        variable.assign(before)
        assert checkpoint.checksum(step) == sums[0]
    assert len({*sums}) == len(sums) == 5


def saved_run(folder: Path, *numbers: int) -> tuple[RunDirectory, Any]:
    """A run with a checkpoint at each number of steps, and its model."""
    run, step = RunDirectory(folder), Step()
    of_step: Any = step
    run.take_lease()
    for number in numbers:
        checkpoint.save(run, of_step, Progress("mine", step=number), total_steps=number)
    return run, step


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
@pytest.mark.parametrize("fails", ["open", "directory", "folder"])
def test_a_disk_that_fails_breaks_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, fails: str
) -> None:
    """The run does not begin anew: it ends, keeps its checkpoints, and goes on later."""
    run, step = saved_run(tmp_path / "run", 400, 500)

    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        if fails == "open":
            patched.setattr(checkpoint, "open_plain_file", fail)
        elif fails == "directory":  # zipfile says "not a zip file"
            patched.setattr(zipfile, "_EndRecData", fail)
        else:
            patched.setattr(os, "listdir", fail)  # of Python 3.11 and 3.12
            patched.setattr(os, "scandir", fail)
        with pytest.raises(DiskError, match=f"can't be read: {os.strerror(error)}; "):
            checkpoint.restore(run, step, "mine")
    assert len(run.checkpoints()) == 2
    began, skipped = checkpoint.restore(run, step, "mine")
    assert (began.step, skipped) == (500, [])


def test_a_run_with_a_parents_weights_does_not_begin_without_them(tmp_path: Path) -> None:
    """Where all its checkpoints are broken; one that went on from a checkpoint begins anew."""
    for begins_with, weights_of in (("weights", None), ("checkpoint", "/a"), ("checkpoint", None)):
        run, step = saved_run(tmp_path / f"{begins_with}-{weights_of}", 400)
        parent = {"run": "/a", "begins_with": begins_with, "weights_of": weights_of}
        run.write_json("provenance.json", {"starts": [{"parent": parent}]})
        (path,) = run.checkpoints()
        path.write_bytes(b"noise")
        if begins_with == "weights" or weights_of:
            with pytest.raises(RunError, match=r"began with the weights of /a; remove .*points, "):
                checkpoint.restore(run, step, "mine")
        else:
            assert checkpoint.restore(run, step, "mine")[0].step == 0


def test_a_folder_that_is_seen_late_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old names say nothing of the newest checkpoint."""
    run, step = saved_run(tmp_path / "run", 400, 500, 600, 700)
    late = [run.path("checkpoints", f"step-{number:09d}.npz") for number in (400, 500)]
    views = iter([late, late, run.checkpoints()])
    monkeypatch.setattr(run, "checkpoints", lambda: next(views))
    monkeypatch.setattr(checkpoint, "sleep", lambda time_s: None)
    began, skipped = checkpoint.restore(run, step, "mine")
    assert (began.step, skipped) == (700, [])
