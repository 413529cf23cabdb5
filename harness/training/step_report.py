"""Reports the latest training steps: on the console, in `state.json`, and for TensorBoard."""

from dataclasses import dataclass

import numpy as np

from harness.tracking.records import Heartbeat
from harness.training.context import Observers
from harness.training.progress import Progress


@dataclass(frozen=True)
class StepResults:
    """The values of the latest n training steps, copied from the device together."""

    first_step: int  # the number of the first of the n steps, counted from 1 over the whole run
    losses: np.ndarray  # [n] float64, each step's mean loss over the global batch
    accuracies: np.ndarray  # [n] float64, each step's share of correct predictions
    learning_rate: float  # the learning rate after the last of the n steps
    num_reviews: int
    took_s: float

    @property
    def num_steps(self) -> int:
        """The number of steps."""
        return len(self.losses)

    @property
    def reviews_per_s(self) -> float:
        """The training speed in reviews per second."""
        return self.num_reviews / self.took_s


def report_steps(
    results: StepResults,
    progress: Progress,
    observers: Observers,
    heartbeat: Heartbeat,
    *,
    num_epochs: int,
    steps_per_epoch: int,
) -> dict[str, float]:
    """Show the progress of the training on the console and in `state.json`.

    Returns:
        Tags and values for TensorBoard: the learning rate, the speed, and the load of the machine.
    """
    step, num_steps = results.first_step + results.num_steps - 1, num_epochs * steps_per_epoch
    duration_ms = 1e3 * results.took_s / results.num_steps
    measured = {
        "step/learning_rate": results.learning_rate,
        "step/reviews_per_s": results.reviews_per_s,
        "step/duration_ms": duration_ms,
    }
    if device := observers.monitor.sample():
        heartbeat.note(device=device)
        measured |= {f"device/{name}": value for name, value in device.items()}
    heartbeat.beat(
        "training",
        epoch=progress.epoch + 1,
        num_epochs=num_epochs,
        step=step,
        num_steps=num_steps,
        step_ms=round(duration_ms, 3),
        reviews_per_s=round(results.reviews_per_s, 1),
        eta_s=round((num_steps - step) * progress.training_s / step, 1),
    )
    figures = f"loss {results.losses[-1]:.4f}  {results.reviews_per_s:.0f} reviews/s"
    epoch = f"epoch {progress.epoch + 1}/{num_epochs}"
    observers.console.advance(epoch, step, num_steps, figures=figures)
    return measured
