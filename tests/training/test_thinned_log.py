"""A long run's log holds what can be seen of its curves and words, exact across kills."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from harness.training.tensorboard_log import TensorBoardLog
from tests.training.test_tensorboard_log import points


def write_steps(log: TensorBoardLog, first: int, last: int) -> None:
    """Write some steps, ten at a time, each a function of its number."""
    for start in range(first, last + 1, 10):
        steps = np.arange(start, min(start + 10, last + 1))
        log.steps(start, 1 / steps, 1 - 1 / steps, learning_rate=0.1, reviews_per_s=float(start))


@pytest.mark.parametrize("num_steps", [400, 500, 501, 5000, 123_456])
def test_a_long_run_logs_what_a_curve_can_show(tmp_path: Path, num_steps: int) -> None:
    """At most about 500 points of loss and 100 of the machine, evenly; of a short run every one."""
    with TensorBoardLog(tmp_path, num_steps=num_steps) as log:
        write_steps(log, 1, num_steps)
    steps: dict[str, list[int]] = {}
    for _, tag, step, value in points(tmp_path):
        steps.setdefault(tag, []).append(step)
        assert tag != "step/loss" or value == pytest.approx(1 / step)
    loss, speed = steps["step/loss"], steps["step/reviews_per_s"]
    assert steps["step/accuracy"] == loss
    assert len(loss) == num_steps if num_steps <= 500 else 250 <= len(loss) <= 501
    assert loss[0] == 1
    assert len({b - a for a, b in itertools.pairwise(loss[1:])}) == 1
    assert 40 <= len(speed) <= 101


def test_thinned_steps_are_exact_across_kills(tmp_path: Path) -> None:
    """Wherever a run was saved and killed, its curves have the points of one that was not."""
    with TensorBoardLog(tmp_path / "undisturbed", num_steps=5000) as log:
        write_steps(log, 1, 5000)
    mark: dict[str, int] = {}
    saved = 0
    for at, killed in ((3, 7), (1234, 1300), (1239, 1239), (4990, 5000), (5000, 5000)):
        log = TensorBoardLog(tmp_path / "killed", mark, num_steps=5000)
        write_steps(log, saved + 1, at)
        mark, saved = log.mark(), at
        write_steps(log, at + 1, killed)
    TensorBoardLog(tmp_path / "killed", mark).close()

    found = [
        [each for each in points(tmp_path / name) if each[1].endswith(("loss", "accuracy"))]
        for name in ("killed", "undisturbed")
    ]
    assert found[0] == found[1]
