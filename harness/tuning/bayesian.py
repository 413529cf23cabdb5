"""Bayesian optimization whose cost per proposal does not grow with the number of trials.

For each proposal, KerasTuner fits its Gaussian process to all n finished trials, in O(n³) time.
Then KerasTuner minimizes the acquisition function from 50 starting points. Each step of a
minimization needs at least one prediction by the Gaussian process. This module fits the Gaussian
process to at most 100 finished trials. With one prediction, this module computes the acquisition
function at many random points, and then starts minimizations only from the best few of these
points.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.oracles import BayesianOptimizationOracle
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor

NUM_BEST, NUM_LATEST, NUM_SPREAD = 40, 30, 30  # numbers of trials that `subset` chooses
NUM_POINTS = 2000  # number of random points at which the acquisition function is computed
NUM_STARTS = 5  # number of minimizations; they start from the best random points


class BoundedBayesianOracle(BayesianOptimizationOracle):  # type: ignore[misc]  # no types
    """KerasTuner's Bayesian oracle with a cheaper choice of the next trial's values.

    Except for rounding, the values depend only on the seed and on the earlier trials. Processors
    may round differently. So if a sweep continues, the oracle reads the values that the Gaussian
    process chose earlier from the sweep's folder, and does not compute these values again.
    """

    known: Sequence[Any] = ()  # the sweep's trials, sorted by number; grows during the search

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Propose untried values: first random ones, later minima of the acquisition function."""
        finished = [t for t in self.trials.values() if t.status == TrialStatus.COMPLETED]
        if len(finished) < 3 * len(self.hyperparameters.space):
            return dict(self._random_populate_space())
        if len(self.trials) < len(self.known):
            values = dict(self.known[len(self.trials)].values)
            return {"status": TrialStatus.RUNNING, "values": values}
        sign = -1 if self.objective.direction == "max" else 1
        process = self._fitted(subset(finished, sign), sign)

        def bound(points: NDArray[np.float64]) -> NDArray[np.float64]:
            mean, deviation = process.predict(points.reshape(-1, num_keys), return_std=True)
            return np.asarray(mean - self.beta * deviation)

        num_keys = len(self._nonfixed_space())
        random = np.random.default_rng((self.seed, len(self.trials)))
        points = random.uniform(size=(NUM_POINTS, num_keys))
        starts = points[np.argsort(bound(points), kind="stable")[:NUM_STARTS]]
        limits = [(0.0, 1.0)] * num_keys
        minima = [scipy.optimize.minimize(bound, start, bounds=limits) for start in starts]
        for minimum in sorted(minima, key=lambda each: float(np.ravel(each.fun)[0])):
            values = self._vector_to_values(minimum.x)
            if not self._duplicate(values):
                return {"status": TrialStatus.RUNNING, "values": values}
        # The oracle draws no numbers for a trial whose values it reads from the sweep's folder, so
        # the seed of this draw must not depend on earlier draws.
        self._seed_state = self.seed + 1000 * len(self.trials)
        return dict(self._random_populate_space())

    def _fitted(self, finished: Sequence[Trial], sign: int) -> GaussianProcessRegressor:
        """Fit a Gaussian process to finished trials; running trials get pessimistic scores."""
        points = self._points(finished)
        scores = np.array([sign * trial.score for trial in finished])
        process = self._make_gpr().fit(points, scores)
        running = self._points([*self.ongoing_trials.values()])
        if not len(running):
            return process
        mean, deviation = process.predict(running, return_std=True)
        again = GaussianProcessRegressor(
            process.kernel_, alpha=self.alpha, optimizer=None, normalize_y=True
        )
        return again.fit(
            np.concatenate([points, running]), np.concatenate([scores, mean + deviation])
        )

    def _points(self, trials: Sequence[Trial]) -> NDArray[np.float64]:
        """Return the trials' values, scaled to 0 to 1, as an array `[num_trials, num_keys]`."""
        keys = self._nonfixed_space()
        return np.array(
            [
                [key.value_to_prob(trial.hyperparameters.values.get(key.name, key.default))
                 for key in keys]
                for trial in trials
            ]
        )  # fmt: skip


def subset(finished: Sequence[Trial], sign: int) -> list[Trial]:
    """Choose trials for the fit: the best, some evenly spaced in the ranking, and the latest.

    Args:
        finished: the finished trials in the order of their start.
        sign: 1 if a lower score is better, else -1.
    """
    latest = finished[-NUM_LATEST:]
    ranked = sorted(finished[:-NUM_LATEST], key=lambda trial: sign * trial.score)
    best, rest = ranked[:NUM_BEST], ranked[NUM_BEST:]
    if len(rest) > NUM_SPREAD:
        rest = [rest[i] for i in np.linspace(0, len(rest) - 1, NUM_SPREAD).astype(int)]
    return [*best, *rest, *latest]
