"""The progress of a run: its state without the variables on the devices."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.job.keys import SCORES, TrainConfig


@dataclass
class Progress:
    """The state of a run's training, which checkpoints store."""

    identity: str = ""  # the checksum of job and data (`RunContext.identity`)
    epoch: int = 0  # the index of the current epoch, from 0
    step: int = 0  # the number of finished steps in the current epoch
    loss_sum: float = 0.0  # the sum of the reviews' losses in the epoch so far
    num_correct: float = 0.0  # the number of correct predictions in the epoch so far
    epoch_s: float = 0.0  # the training time of the epoch so far
    training_s: float = 0.0  # the run's training time; a step that the run repeats counts once
    history: list[dict[str, Any]] = field(default_factory=list)  # the metrics of each epoch
    event_mark: dict[str, int] = field(default_factory=dict)  # see `TensorBoardLog.mark`
    stopped: bool = False  # whether a callback ends the training after the current epoch
    callback_states: list[Any] = field(default_factory=list)  # see `RunCallbacks.states`
    best_weights: list[np.ndarray] = field(default_factory=list)

    def add_steps(self, sums: np.ndarray, took_s: float) -> None:
        """Add the results of n steps to the sums of the epoch.

        Args:
            sums: the result of `TrainStep.train_steps`, `[n, 2 or 3]`. Each row contains a step's
                sum of losses and number of correct predictions; a third column is ignored.
            took_s: the time that the n steps took together.
        """
        # Added step by step, so that rounding doesn't depend on n.
        for loss, num_correct, *_ in sums.tolist():
            self.loss_sum += loss
            self.num_correct += num_correct
        self.step += len(sums)
        self.epoch_s += took_s
        self.training_s += took_s

    def epoch_metrics(self, num_reviews: int, learning_rate: float) -> dict[str, Any]:
        """Return the metrics of the current epoch after its last step, with its times."""
        return {
            "epoch": self.epoch + 1,
            "loss": self.loss_sum / num_reviews,
            "accuracy": self.num_correct / num_reviews,
            "learning_rate": learning_rate,
            "epoch_s": round(self.epoch_s, 3),
            "reviews_per_s": round(num_reviews / max(self.epoch_s, 1e-9), 1),
        }

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Add `line`, the metrics of the epoch, to the history, and begin the next epoch."""
        self.history.append(line)
        self.epoch, self.step = line["epoch"], 0
        self.loss_sum = self.num_correct = self.epoch_s = 0.0


def score_to_keep(train: TrainConfig) -> str | None:
    """Return the name of the score that selects the kept epoch; None if the last epoch is kept."""
    if train.keep == "last":
        return None
    return train.keep if train.keep in SCORES else train.monitor


def exported_epoch(history: Sequence[dict[str, Any]], train: TrainConfig) -> dict[str, Any]:
    """Return the metrics of the kept epoch; of equally good epochs, the first is kept."""
    score = score_to_keep(train)
    if not score:
        return history[-1]
    sign = 1 if SCORES[score] == "min" else -1
    return min(history, key=lambda line: sign * line[score])
