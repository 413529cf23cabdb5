"""Creates KerasTuner's oracles, which a `Schedule` calls in one process and in a fixed order.

This module differs from KerasTuner 1.4.8 in five ways. Each item first says what KerasTuner does:

- KerasTuner's oracle writes its whole state in every call. Here an oracle writes nothing: to
  restore its state, a new oracle receives the accepted results again.
- KerasTuner's grid search proposes a trial only when another trial has ended. The grid
  search of this module proposes the next trial without waiting, so that no worker is idle.
- KerasTuner's Hyperband promotes no trial before the first round of its bracket is full. If the
  search space has too few untried settings left, this round can't be filled. The Hyperband of this
  module then shrinks the round.
- KerasTuner rounds down the number of steps of a range, so that 0.1 to 0.6 in steps of 0.1 ends at
  0.5. Here a range with a step becomes a list of its values. The list contains the maximum if the
  maximum is a whole number of steps above the minimum.
- KerasTuner's `Choice` turns booleans into integers. Here a list of two booleans becomes a
  `Boolean`, and a list of one boolean becomes a `Fixed`.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import keras_tuner as kt
from keras_tuner.engine.trial import TrialStatus
from keras_tuner.oracles import GridSearchOracle, HyperbandOracle, RandomSearchOracle
from keras_tuner.src.engine import conditions

from harness.job.search import SearchSpec, Value
from harness.tuning.asha import AshaOracle
from harness.tuning.bayesian import BoundedBayesianOracle
from harness.tuning.protocol import Trial

# Print nothing: KerasTuner would print the value of every condition for every reported trial.
conditions.print = lambda *_: None


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
