"""Creates KerasTuner's oracles, which a `Schedule` calls in one process and in a fixed order.

KerasTuner has no counterpart to `AshaOracle`. This module's oracles for the other tuners differ
from the oracles of KerasTuner 1.4.8 in six ways:

- KerasTuner's oracle writes its whole state to disk whenever a trial starts or ends. An oracle of
  this module writes nothing. When a sweep continues, a new oracle receives the results of the
  sweep's trials again and thus gets the same state.
- KerasTuner's grid search proposes its second trial only after the first trial has ended, and so
  on. The grid search of this module does not wait for results, so that no worker is idle.
- KerasTuner's Hyperband promotes no trial before the first round of its bracket is full. If the
  search space has too few untried settings left to fill the first round, the Hyperband of this
  module makes the first round smaller.
- In KerasTuner a range from 0.1 to 0.6 in steps of 0.1 ends at 0.5, because the floor division
  `(0.6 - 0.1) // 0.1` gives 4. This module turns a range with a step into a list of the range's
  values, which contains the maximum if it is a whole number of steps above the minimum.
- KerasTuner's `Choice` turns booleans into integers. This module turns a list of two booleans
  into a `Boolean`, and a list of one boolean into a `Fixed`.
- KerasTuner's Bayesian search fits its Gaussian process to all n finished trials for each
  proposal, in O(n³) time. To choose a proposal, KerasTuner's Bayesian search minimizes the
  acquisition function from 50 starting points. Each minimization step needs at least one prediction
  by the Gaussian process. The Bayesian search of this module fits the Gaussian process to at most
  100 finished trials, so that the cost of a proposal does not grow with the number of finished
  trials.
  A single prediction by the Gaussian process yields the acquisition function at many random points.
  The Bayesian search of this module minimizes the acquisition function only from the best few of
  these random points.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import keras_tuner as kt
import numpy as np
import scipy.optimize
from keras_tuner.engine.trial import Trial as KerasTrial
from keras_tuner.engine.trial import TrialStatus
from keras_tuner.oracles import (
    BayesianOptimizationOracle,
    GridSearchOracle,
    HyperbandOracle,
    RandomSearchOracle,
)
from keras_tuner.src.engine import conditions
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor

from harness.job.search import SearchSpec, Value
from harness.tuning.protocol import Trial

# Print nothing: KerasTuner would print the value of every condition for every reported trial.
conditions.print = lambda *_: None

NUM_BEST, NUM_LATEST, NUM_SPREAD = 40, 30, 30  # numbers of trials that `subset` chooses
NUM_POINTS = 2000  # number of random points at which the acquisition function is computed
NUM_STARTS = 5  # number of minimizations; they start from the best random points


def hyperparameters(search: SearchSpec) -> kt.HyperParameters:
    """Return the search space as KerasTuner's hyperparameters, whose names are the job's keys."""
    space = kt.HyperParameters()
    for parameter in search.space:
        choices: Sequence[Value] = parameter.choices
        if parameter.step is not None:
            low, step, kind = parameter.low, parameter.step, int if parameter.is_whole else float
            num_steps = math.floor((parameter.high - low) / step + 1e-9)  # 4.9999999999 counts as 5
            choices = [kind(low + i * step) for i in range(num_steps + 1)]
        parent, values = parameter.parent, list(parameter.parent_choices)
        with space.conditional_scope(parent, values) if parent else contextlib.nullcontext():
            if choices and isinstance(choices[0], bool):
                if len(choices) > 1:
                    space.Boolean(parameter.key, default=choices[0])
                else:
                    space.Fixed(parameter.key, choices[0])
            elif choices:
                space.Choice(parameter.key, list(choices))
            else:
                declare = space.Int if parameter.is_whole else space.Float
                sampling = "log" if parameter.log else "linear"
                declare(parameter.key, parameter.low, parameter.high, sampling=sampling)
    return space


class SteadyGrid(GridSearchOracle):  # type: ignore[misc]  # KerasTuner ships no types
    """Grid search that proposes the next trial without waiting for another trial to end."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Propose the next values of the grid."""
        answer = dict(super().populate_space(trial_id))
        if answer["status"] == TrialStatus.RUNNING:
            self._populate_next.append(trial_id)  # the next call continues after this trial
        return answer


class FiniteHyperband(HyperbandOracle):  # type: ignore[misc]
    """Hyperband that shrinks a bracket when too few untried settings are left to fill it."""

    def __init__(self, **options: Any) -> None:
        self._num_first: dict[int, int] = {}  # number of a shrunk bracket → size of its first round
        super().__init__(**options)

    def _random_trial(self, trial_id: str, bracket: dict[str, Any]) -> dict[str, Any]:
        answer = dict(super()._random_trial(trial_id, bracket))
        if answer["status"] != TrialStatus.STOPPED:
            return answer
        self._num_first[bracket["bracket_num"]] = len(bracket["rounds"][0])
        return dict(self.populate_space(trial_id))

    def _get_size(self, bracket_num: int, round_num: int) -> int:
        size: int = super()._get_size(bracket_num, round_num)
        first = self._num_first.get(bracket_num)
        return size if first is None else min(size, math.ceil(first / self.factor**round_num))


class AshaOracle(kt.Oracle):  # type: ignore[misc]
    """Asynchronous successive halving: few epochs for many settings, more for the best ones.

    Implements Algorithm 2 of Li et al., "A System for Massively Parallel Hyperparameter Tuning"
    (2020). Starts random settings in the lowest rung and promotes the top 1/factor of every rung.

    In this class, a setting is a combination of values for the keys of the search space. Each
    promotion creates a new trial, whose values contain the id of the promoted trial
    (`tuner/trial_id`) and the epochs of the new rung (`tuner/epochs`), as in KerasTuner's
    Hyperband. The oracle promotes a trial as soon as the trial is among the best 1/factor of its
    rung's finished trials, so no trial waits for others. The promotions depend only on the trials'
    results and on the order of these results.

    Args:
        num_settings: the maximum number of settings in the lowest rung.
        min_epochs: a lower limit for the number of epochs of the lowest rung.
        max_epochs: the number of epochs of the highest rung.
        factor: the ratio between the epochs of two consecutive rungs.
        options: further arguments of `kt.Oracle`.
    """

    known: Sequence[Trial] = ()  # the sweep's trials, sorted by number; grows during the search

    def __init__(
        self,
        *,
        num_settings: int,
        min_epochs: int,
        max_epochs: int,
        factor: int,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.num_settings, self.factor = num_settings, factor
        self._seed_state: int  # declares the type; KerasTuner's oracle sets the value
        self.rungs = rung_epochs(min_epochs, max_epochs, factor)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Promote a trial from the highest possible rung, or propose a new random setting."""
        rungs = self._trials_by_rung()
        for rung in reversed(range(len(self.rungs) - 1)):
            if parent := self._promotable(rungs[rung], rungs[rung + 1]):
                link = {"tuner/trial_id": parent.trial_id, "tuner/initial_epoch": self.rungs[rung]}
                return self._trial(rung + 1, {**parent.hyperparameters.values, **link})
        if len(rungs[0]) < self.num_settings:
            before, values = self._seed_state, self._random_values()
            if values is not None and not self._is_known_to_wait():
                return self._trial(0, {**values, "tuner/initial_epoch": 0})
            # Undo the draw by restoring the random state. The sweep's folder records a promotion as
            # the next trial, because `search.trials` was smaller when this trial was proposed.
            if values is not None:
                self._seed_state = before
        # While a trial runs, a promotion may still follow, so the oracle waits and does not stop.
        return {"status": TrialStatus.IDLE if self.ongoing_trials else TrialStatus.STOPPED}

    def _is_known_to_wait(self) -> bool:
        """Whether the oracle must wait for results before it can propose the next trial.

        The sweep's folder may already contain the next trial, and this trial may be a promotion.
        The oracle can promote a trial only after the oracle has received the results of its rung.
        """
        n = len(self.trials)
        return n < len(self.known) and self.known[n].parent is not None

    def _trial(self, rung: int, values: dict[str, Any]) -> dict[str, Any]:
        values |= {"tuner/rung": rung, "tuner/epochs": self.rungs[rung]}
        return {"status": TrialStatus.RUNNING, "values": values}

    def _trials_by_rung(self) -> list[list[KerasTrial]]:
        rungs: list[list[KerasTrial]] = [[] for _ in self.rungs]
        for trial in self.trials.values():
            rungs[trial.hyperparameters.values["tuner/rung"]].append(trial)
        return rungs

    def _promotable(self, rung: list[KerasTrial], above: list[KerasTrial]) -> KerasTrial | None:
        """Return the best unpromoted trial in the top 1/factor of a rung, or None."""
        ended = [trial for trial in rung if trial.status == TrialStatus.COMPLETED]
        sign = -1 if self.objective.direction == "max" else 1
        ended.sort(key=lambda t: sign * t.score)
        promoted = {trial.hyperparameters.values["tuner/trial_id"] for trial in above}
        top = ended[: len(ended) // self.factor]
        return next((trial for trial in top if trial.trial_id not in promoted), None)

    def _compute_values_hash(self, values: dict[str, Any]) -> str:
        """Return a hash of `values` without the keys that begin with `tuner/`.

        If the values that the oracle draws have the same hash as an earlier trial's values, the
        oracle discards the drawn values and draws again.
        """
        setting = {key: value for key, value in values.items() if not key.startswith("tuner/")}
        return str(super()._compute_values_hash(setting))


def rung_epochs(min_epochs: int, max_epochs: int, factor: int) -> list[int]:
    """Return the number of epochs of every rung, rounded up as in Hyperband, such as 1, 3, 9."""
    num_rungs, epochs = 1, max_epochs
    while epochs >= min_epochs * factor:
        num_rungs, epochs = num_rungs + 1, epochs // factor
    return [math.ceil(max_epochs / factor**k) for k in reversed(range(num_rungs))]


class BoundedBayesianOracle(BayesianOptimizationOracle):  # type: ignore[misc]
    """KerasTuner's Bayesian oracle with a cheaper choice of the next trial's values.

    Except for rounding, the values depend only on the seed and on the earlier trials. When a
    sweep continues, the oracle reads the values of the earlier trials from the sweep's folder. The
    values are not computed again, because another processor may round differently.
    """

    known: Sequence[Trial] = ()  # the sweep's trials, sorted by number; grows during the search

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

    def _fitted(self, finished: Sequence[KerasTrial], sign: int) -> GaussianProcessRegressor:
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

    def _points(self, trials: Sequence[KerasTrial]) -> NDArray[np.float64]:
        """Return the trials' values, scaled to 0 to 1, as an array `[num_trials, num_keys]`."""
        keys = self._nonfixed_space()
        return np.array(
            [
                [key.value_to_prob(trial.hyperparameters.values.get(key.name, key.default))
                 for key in keys]
                for trial in trials
            ]
        )  # fmt: skip


def subset(finished: Sequence[KerasTrial], sign: int) -> list[KerasTrial]:
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


def make_oracle(search: SearchSpec, known: Sequence[Trial]) -> kt.Oracle:
    """Make the oracle of a search.

    Args:
        search: the search space, the tuner and its options, and the job.
        known: the sweep's trials, sorted by number; the caller appends each new trial to the list.
    """
    table, max_epochs = search.table, search.job.train.epochs
    options: dict[str, Any] = {
        "objective": kt.Objective(table.objective, search.goal),
        "seed": table.seed,
        "hyperparameters": hyperparameters(search),
        "allow_new_entries": False,
        "max_retries_per_trial": 0,
        # This limit is never reached: `same_failure` decides whether failed trials end a search.
        "max_consecutive_failed_trials": 10**9,
    }
    if table.tuner == "hyperband":
        oracle: kt.Oracle = FiniteHyperband(max_epochs=max_epochs, factor=table.factor, **options)
    elif table.tuner == "asha":
        oracle = AshaOracle(
            num_settings=table.trials,
            min_epochs=table.min_epochs,
            max_epochs=max_epochs,
            factor=table.factor,
            **options,
        )
    else:
        kinds = {"random": RandomSearchOracle, "grid": SteadyGrid}
        oracle = kinds.get(table.tuner, BoundedBayesianOracle)(**options)
    # With asha the number of trials has no limit (None): `search.trials` is the number of settings,
    # and each promotion of a setting is an additional trial.
    oracle.max_trials = search.max_trials
    oracle.verbose = 0
    oracle.save = oracle._save_trial = lambda *_: None
    oracle.known = known
    return oracle
