"""What a run tells of its way: numbers that people plan by."""

from pathlib import Path

import numpy as np

from harness.system.console import Console
from harness.tracking.heartbeat import Heartbeat
from harness.tracking.progress import Progress
from harness.tracking.run_dir import RunDirectory
from harness.training.actions import ProgressReport, StepResults


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
