"""Checkpoints: which of them a run keeps."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from harness.tracking.progress import Progress
from harness.tracking.run_dir import RunDirectory
from harness.training import checkpoint


class Step:
    """A model of one number and its optimizer."""

    def __init__(self) -> None:
        self.model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1, use_bias=False)])
        self.optimizer = keras.optimizers.SGD()


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
