"""What a run tells of its way: numbers that people plan by."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.system.console import Console
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import RunDirectory
from harness.training import actions
from harness.training.actions import ProgressReport, StepResults, UsageMeter
from harness.training.progress import Progress


def test_the_heartbeat_tells_the_time_that_is_left(tmp_path: Path) -> None:
    """Three of twenty steps took six seconds, so the other seventeen take thirty-four."""
    heartbeat = Heartbeat(RunDirectory(tmp_path), None)
    report = ProgressReport(Console(), heartbeat, num_epochs=4, steps_per_epoch=5)
    losses = np.array([0.5, 0.4])
    results = StepResults(2, False, losses, losses, num_reviews=64, took_s=4.0)
    report.after_steps(results, Progress(training_s=6.0))
    told = {name: heartbeat.state[name] for name in ("step", "num_steps", "eta_s", "reviews_per_s")}
    assert told == {"step": 3, "num_steps": 20, "eta_s": 34.0, "reviews_per_s": 16.0}


def test_an_epochs_line_has_its_own_speed() -> None:
    """Reviews by seconds of the epoch, and means over its reviews."""
    progress = Progress()
    progress.add_steps(np.array([[40.0, 20.0, 0.0], [10.0, 5.0, 0.0]]), 0.5)
    assert progress.epoch_metrics(50, 0.01) == {
        "epoch": 1,
        "loss": 1.0,
        "accuracy": 0.5,
        "learning_rate": 0.01,
        "epoch_s": 0.5,
        "reviews_per_s": 100.0,
    }


def test_the_wait_for_input_is_that_of_the_epochs_latest_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of as many as tf.data times, without the first, which has waited for the validation."""
    asked: list[tuple[int, float]] = []

    def waited_s(batches: object, num_steps: int, took_s: float) -> float:
        asked.append((num_steps, took_s))
        return took_s / 4

    monkeypatch.setattr(actions, "waited_s", waited_s)
    monitor: Any = SimpleNamespace(sample=lambda: {"cpu": 1.0}, warning="")
    heartbeat = Heartbeat(RunDirectory(tmp_path), None)
    meter = UsageMeter(monitor, heartbeat)
    losses = np.zeros(60)
    for number, begins in enumerate((True, False, False, False)):
        results = StepResults(60 * number + 1, begins, losses, losses, 60, took_s=float(number))
        figures = meter.measure(results, iter(()))
    assert asked == [(60, 1.0), (60, 2.0), (60, 3.0)]  # two together are more than a hundred
    assert figures["step/input_wait_share"] == heartbeat.state["input_wait_share"] == 0.25
    assert figures["step/duration_ms"] == heartbeat.state["step_ms"] == 50.0
