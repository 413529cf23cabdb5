"""The weights of an ensemble's members: those of least log loss on the validation reviews."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST = 1e-7  # of a probability, as in `harness.training.metrics.loss_and_accuracy`
DIGITS = 4


def best_weights(labels: NDArray[np.int64], members: Sequence[Floats]) -> list[float]:
    """The weights, from 0 on, of sum 1, by which the mean of the members has the least log loss.

    The loss is convex in the weights, so there is one least value and no start to choose. Four
    digits are kept: a review of 5,000 hardly moves them, and rounding in the last bits doesn't.

    Args:
        labels: `[num_reviews]`, from 0.
        members: the probability of each class by each member, `[num_reviews, num_classes]`.
    """
    from scipy.optimize import minimize

    reviews = np.arange(len(labels))
    of_truth = np.stack([np.clip(each[reviews, labels], LEAST, 1) for each in members])

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = np.maximum(weights @ of_truth, LEAST)
        return -float(np.log(mixed).mean()), -(of_truth / mixed).mean(axis=1)

    num = len(members)
    found = minimize(
        loss,
        np.full(num, 1 / num),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * num,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(num)},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    weights = np.round(np.clip(found.x, 0, 1), DIGITS)
    weights[weights.argmax()] += 1 - weights.sum()
    return [round(float(weight), DIGITS) for weight in weights]


def averaged(weights: Sequence[float], members: Sequence[Floats]) -> Floats:
    """The weighted mean of the members' probabilities, `[num_reviews, num_classes]`."""
    return np.asarray(sum(w * each for w, each in zip(weights, members, strict=True)), np.float64)
