"""Where a run is: its state except the variables on the devices. Each checkpoint holds it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Progress:
    """The state of a run's training."""

    identity: str = ""  # of job and data
    epoch: int = 0  # the current one, from 0
    step: int = 0  # of the current epoch, how many are done
    loss_sum: float = 0.0  # over the reviews of these steps
    num_correct: float = 0.0
    epoch_s: float = 0.0  # training time of these steps
    training_s: float = 0.0  # of the whole run, without the lost work of killed processes
    history: list[dict[str, Any]] = field(default_factory=list)  # a metrics line per epoch
    best_epoch: int = 0  # from 1, 0 for none
    event_mark: dict[str, int] = field(default_factory=dict)  # bytes of each event file
    stopped: bool = False  # a callback has ended the training, after this epoch if it has begun
    callback_states: list[Any] = field(default_factory=list)  # of the user's, None without one
    best_weights: list[np.ndarray] = field(default_factory=list)

    @property
    def best(self) -> dict[str, Any]:
        """The metrics line of the best epoch."""
        return self.history[self.best_epoch - 1]

    def add_steps(self, sums: np.ndarray, took_s: float) -> None:
        """Add up the latest steps of the epoch.

        Args:
            sums: [n, 2 or 3], of each step, as `TrainStep.train_steps` gives them.
            took_s: how long they took together.
        """
        # One by one: the rounding must not depend on how many steps come together.
        for loss, num_correct, *_ in sums.tolist():
            self.loss_sum += loss
            self.num_correct += num_correct
        self.step += len(sums)
        self.epoch_s += took_s
        self.training_s += took_s

    def epoch_metrics(self, num_reviews: int, learning_rate: float) -> dict[str, Any]:
        """The metrics line of the current epoch once all its steps are done."""
        return {
            "epoch": self.epoch + 1,
            "loss": self.loss_sum / num_reviews,
            "accuracy": self.num_correct / num_reviews,
            "learning_rate": learning_rate,
            "epoch_s": round(self.epoch_s, 3),
            "reviews_per_s": round(num_reviews / max(self.epoch_s, 1e-9), 1),
        }

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Add the epoch's metrics line to the history, and go on to the next epoch."""
        self.history.append(line)
        self.epoch, self.step = line["epoch"], 0
        self.loss_sum = self.num_correct = self.epoch_s = 0.0
