"""The progress of a run: its state except the variables on the devices."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Progress:
    """The state of a run's training, as checkpoints hold it."""

    identity: str = ""  # of job and data
    epoch: int = 0  # the current one, from 0
    step: int = 0  # the number of finished steps of this epoch
    loss_sum: float = 0.0  # over the reviews of these steps
    num_correct: float = 0.0  # of the reviews of these steps
    epoch_s: float = 0.0  # training time of these steps
    training_s: float = 0.0  # of all steps, without those that killed processes lost
    history: list[dict[str, Any]] = field(default_factory=list)  # a metrics line per epoch
    best_epoch: int = 0  # from 1, 0 for none
    event_mark: dict[str, int] = field(default_factory=dict)  # see `TensorBoardLog.mark`
    stopped: bool = False  # by a callback; an epoch that has begun is trained to its end
    callback_states: list[Any] = field(default_factory=list)  # see `RunCallbacks.states`
    best_weights: list[np.ndarray] = field(default_factory=list)

    @property
    def best(self) -> dict[str, Any]:
        """The metrics line of the best epoch."""
        return self.history[self.best_epoch - 1]

    def add_steps(self, sums: np.ndarray, took_s: float) -> None:
        """Add the latest steps of the epoch.

        Args:
            sums: [n, 2 or 3], the results of `TrainStep.train_steps`.
            took_s: the time of all n steps.
        """
        # One by one, because rounding must not depend on the number of steps in a call.
        for loss, num_correct, *_ in sums.tolist():
            self.loss_sum += loss
            self.num_correct += num_correct
        self.step += len(sums)
        self.epoch_s += took_s
        self.training_s += took_s

    def epoch_metrics(self, num_reviews: int, learning_rate: float) -> dict[str, Any]:
        """The metrics line of the current epoch, after all its steps."""
        return {
            "epoch": self.epoch + 1,
            "loss": self.loss_sum / num_reviews,
            "accuracy": self.num_correct / num_reviews,
            "learning_rate": learning_rate,
            "epoch_s": round(self.epoch_s, 3),
            "reviews_per_s": round(num_reviews / max(self.epoch_s, 1e-9), 1),
        }

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Add the metrics line of the epoch to the history, and begin the next epoch."""
        self.history.append(line)
        self.epoch, self.step = line["epoch"], 0
        self.loss_sum = self.num_correct = self.epoch_s = 0.0
