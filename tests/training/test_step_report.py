"""The figures that a run reports: remaining time, speed, use of the machine."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from harness.system.console import Console
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import RunDirectory
from harness.training.progress import Progress
from harness.training.step_report import StepResults, report_steps


def test_the_heartbeat_has_the_remaining_time_and_the_use_of_devices(tmp_path: Path) -> None:
    """After three of twenty steps in 6 s, the other seventeen will take 34 s."""
    heartbeat = Heartbeat(RunDirectory(tmp_path), None)
    monitor = SimpleNamespace(sample=lambda: {"cpu": 1.0})
    observers: Any = SimpleNamespace(console=Console(), monitor=monitor)
    losses, progress = np.array([0.5, 0.4]), Progress(training_s=6.0)
    results = StepResults(2, losses, losses, learning_rate=0.1, num_reviews=64, took_s=4.0)
    measured = report_steps(
        results, progress, observers, heartbeat, num_epochs=4, steps_per_epoch=5
    )
    assert measured == {
        "step/learning_rate": 0.1,
        "step/reviews_per_s": 16.0,
        "step/duration_ms": 2000.0,
        "device/cpu": 1.0,
    }
    wanted: dict[str, Any] = {"step": 3, "num_steps": 20, "eta_s": 34.0, "reviews_per_s": 16.0}
    wanted |= {"step_ms": 2000.0, "device": {"cpu": 1.0}}
    assert {name: heartbeat.state[name] for name in wanted} == wanted


def test_a_metrics_line_has_the_means_and_the_speed_of_the_epoch() -> None:
    """Loss and accuracy are sums divided by the number of reviews."""
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
