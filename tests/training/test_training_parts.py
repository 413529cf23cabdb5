"""Custom parts, and random jobs, are exact over kills and equal on replicas."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import PROJECT
from tests.training.part_runs import PAIRS


def runs_of(folder: Path, *cases: str) -> dict[str, dict[str, Any]]:
    """Run `part_runs`, and return its output by case."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.part_runs", folder, *cases],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=7200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {each["case"]: each for each in found}


@pytest.mark.slow
def test_custom_parts_are_exact_over_kills_and_equal_on_replicas(tmp_path: Path) -> None:
    """The schedule of own/parts lowers the learning rate nearly to a twentieth."""
    found = runs_of(tmp_path, "parts", "own", "network")
    for each in found.values():
        assert each["killed"] == each["two"]
        check_losses(each, rtol=2e-5)
    lines = found["parts"]["two"]["metrics"]
    cosine = math.cos(math.pi * 20 / 21)  # three of the 24 steps are the warm-up
    assert lines[-1]["learning_rate"] == pytest.approx(0.002 * (0.05 + 0.95 * (1 + cosine) / 2))
    assert found["parts"]["two"]["kept_epoch"] == 1 + np.argmax([each["val_f1"] for each in lines])


@pytest.mark.slow
def test_random_jobs_are_exact_over_kills_and_equal_on_replicas(tmp_path: Path) -> None:
    """The jobs combine every optimizer with every precision; other settings are drawn."""
    for each in runs_of(tmp_path, *map(str, range(len(PAIRS)))).values():
        assert each["killed"] == each["two"], (each["case"], each["settings"])
        if "train.precision=float64" in each["settings"]:
            check_losses(each, rtol=1e-9)


def check_losses(found: dict[str, Any], rtol: float) -> None:
    """Check that a run on one replica has the losses of the run on two replicas."""
    for name in ("loss", "val_loss", "learning_rate"):
        one, two = ([line[name] for line in found[run]["metrics"]] for run in ("one", "two"))
        np.testing.assert_allclose(two, one, rtol=rtol, err_msg=f"{found['case']}: {name}")
