"""Asynchronous successive halving: many settings for a few epochs, the best of them for more.

Algorithm 2 of Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020).
"""

import math
from collections.abc import Sequence
from typing import Any

import keras_tuner as kt
from keras_tuner.engine.trial import Trial, TrialStatus


class AshaOracle(kt.Oracle):  # type: ignore[misc]  # KerasTuner ships no types
    """Starts random settings in the lowest rung and promotes the top 1/factor of every rung.

    A promotion is a new trial with `tuner/trial_id` of its parent and `tuner/epochs` of its rung,
    as in KerasTuner's Hyperband. A setting is promoted as soon as it is among the top of the trials
    that have ended in its rung, so no trial waits for others. Only the order of the results decides
    which settings are promoted.

    Args:
        num_settings: settings in the lowest rung, None for all of a finite space.
        min_epochs: smallest number of epochs of the lowest rung.
        max_epochs: epochs of the highest rung.
        factor: ratio between the epochs of two consecutive rungs.
        options: arguments of KerasTuner's oracle.
    """

    known: Sequence[Any] = ()  # earlier proposals in order, each with its `parent`; may grow

    def __init__(
        self,
        *,
        num_settings: int | None,
        min_epochs: int,
        max_epochs: int,
        factor: int,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.num_settings, self.factor = num_settings, factor
        self._seed_state: int  # declared by KerasTuner's oracle
        self.rungs = rung_epochs(min_epochs, max_epochs, factor)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Propose a promotion, from the highest rung possible, or a new setting."""
        rungs = self._trials_by_rung()
        for rung in reversed(range(len(self.rungs) - 1)):
            if parent := self._promotable(rungs[rung], rungs[rung + 1]):
                link = {"tuner/trial_id": parent.trial_id, "tuner/initial_epoch": self.rungs[rung]}
                return self._trial(rung + 1, {**parent.hyperparameters.values, **link})
        if self.num_settings is None or len(rungs[0]) < self.num_settings:
            before, values = self._seed_state, self._random_values()
            if values is not None and not self._is_known_to_wait():
                return self._trial(0, {**values, "tuner/initial_epoch": 0})
            if values is not None:  # the search with fewer settings drew no values here
                self._seed_state = before
        # Running trials may still lead to promotions.
        return {"status": TrialStatus.IDLE if self.ongoing_trials else TrialStatus.STOPPED}

    def _is_known_to_wait(self) -> bool:
        """Whether the search, before `trials` was raised, waited for a promotion at this point."""
        n = len(self.trials)
        return n < len(self.known) and self.known[n].parent is not None

    def _trial(self, rung: int, values: dict[str, Any]) -> dict[str, Any]:
        values |= {"tuner/rung": rung, "tuner/epochs": self.rungs[rung]}
        return {"status": TrialStatus.RUNNING, "values": values}

    def _trials_by_rung(self) -> list[list[Trial]]:
        rungs: list[list[Trial]] = [[] for _ in self.rungs]
        for trial in self.trials.values():
            rungs[trial.hyperparameters.values["tuner/rung"]].append(trial)
        return rungs

    def _promotable(self, rung: list[Trial], above: list[Trial]) -> Trial | None:
        """The best trial in a rung's top 1/factor that is not promoted yet; the first if equal."""
        ended = [trial for trial in rung if trial.status == TrialStatus.COMPLETED]
        sign = -1 if self.objective.direction == "max" else 1
        ended.sort(key=lambda t: sign * t.score)
        promoted = {trial.hyperparameters.values["tuner/trial_id"] for trial in above}
        top = ended[: len(ended) // self.factor]
        return next((trial for trial in top if trial.trial_id not in promoted), None)

    def _compute_values_hash(self, values: dict[str, Any]) -> str:
        """Hash a setting without `tuner/` values, so that KerasTuner tries no setting twice."""
        setting = {key: value for key, value in values.items() if not key.startswith("tuner/")}
        return str(super()._compute_values_hash(setting))


def rung_epochs(min_epochs: int, max_epochs: int, factor: int) -> list[int]:
    """The epochs of all rungs from the lowest, such as 1, 3, 9; rounded up as in Hyperband."""
    num_rungs, epochs = 1, max_epochs
    while epochs >= min_epochs * factor:
        num_rungs, epochs = num_rungs + 1, epochs // factor
    return [math.ceil(max_epochs / factor**k) for k in reversed(range(num_rungs))]
