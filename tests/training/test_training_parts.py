"""Optimizers, schedules, losses and callbacks are exact over kills and equal on replicas."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.job.keys import OPTIMIZERS
from tests.conftest import PROJECT


def runs_of(folder: Path, *cases: str) -> dict[str, dict[str, Any]]:
    """Run `part_runs`, and return its output by case."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.part_runs", folder, *cases],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {each["case"]: each for each in found}


def check_case(found: dict[str, Any]) -> None:
    """Check that a kill changes no byte, and that one replica has the losses of two replicas."""
    assert found["killed"] == found["two"]
    for name in ("loss", "val_loss", "learning_rate"):
        one, two = ([line[name] for line in found[run]["metrics"]] for run in ("one", "two"))
        np.testing.assert_allclose(two, one, rtol=2e-5)


def rates(found: dict[str, Any]) -> list[float]:
    """Return the learning rate of each epoch."""
    return [line["learning_rate"] for line in found["two"]["metrics"]]


@pytest.mark.slow
def test_all_parts_are_exact_and_equal_on_replicas(tmp_path: Path) -> None:
    """The cases are own/*.toml, plateaus, steps, half precision and every optimizer."""
    found = runs_of(tmp_path, "parts", "own", "plateau", "steps", "half", *OPTIMIZERS)
    for each in found.values():
        check_case(each)
    assert rates(found["parts"])[-1] == pytest.approx(0.002 * 0.05)
    assert rates(found["plateau"])[-1] < 0.02
    np.testing.assert_allclose(rates(found["steps"])[:2], [5e-5, 5e-5], rtol=1e-5)
    lines = found["parts"]["two"]["metrics"]
    assert found["parts"]["two"]["kept_epoch"] == 1 + np.argmax([each["val_f1"] for each in lines])
    assert all("val_roc_auc" in line for line in found["plateau"]["two"]["metrics"])
