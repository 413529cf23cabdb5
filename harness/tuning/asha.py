"""Asynchronous successive halving: trains many settings for a few epochs, the best ones for more.

It is Algorithm 2 of Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020).
"""

import math
from collections.abc import Sequence
from typing import Any

import keras_tuner as kt
from keras_tuner.engine.trial import Trial, TrialStatus


class AshaOracle(kt.Oracle):  # type: ignore[misc]  # KerasTuner ships no types
    """Starts random settings in the lowest rung and promotes the top 1/factor of every rung.

    A promotion is a new trial. As in KerasTuner's Hyperband, its `tuner/trial_id` is the parent
    trial and its `tuner/epochs` are those of its rung. A setting is promoted as soon as it is in
    the top of the trials that have ended in its rung, so no trial waits for others. Only the order
    of the results decides which settings are promoted.

    Args:
        num_settings: the number of settings in the lowest rung; None tries all of a finite space.
        min_epochs: the smallest number of epochs that the lowest rung may have.
        max_epochs: the number of epochs of the highest rung.
        factor: the ratio between the epochs of two consecutive rungs.
        options: the arguments of KerasTuner's oracle.
    """

    known: Sequence[Any] = ()  # all trials proposed so far, in order; the list may grow

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
        """Promote a trial from the highest possible rung; if there is none, propose a setting."""
        rungs = self._trials_by_rung()
        for rung in reversed(range(len(self.rungs) - 1)):
            if parent := self._promotable(rungs[rung], rungs[rung + 1]):
                link = {"tuner/trial_id": parent.trial_id, "tuner/initial_epoch": self.rungs[rung]}
                return self._trial(rung + 1, {**parent.hyperparameters.values, **link})
        if self.num_settings is None or len(rungs[0]) < self.num_settings:
            before, values = self._seed_state, self._random_values()
            if values is not None and not self._is_known_to_wait():
                return self._trial(0, {**values, "tuner/initial_epoch": 0})
            if values is not None:  # before `trials` was raised, no random values were drawn here
                self._seed_state = before
        # Running trials may still lead to promotions.
        return {"status": TrialStatus.IDLE if self.ongoing_trials else TrialStatus.STOPPED}

    def _is_known_to_wait(self) -> bool:
        """Whether the search waited for a promotion here before the user raised `trials`."""
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
        """Return the best trial in a rung's top 1/factor that is not promoted yet, if any."""
        ended = [trial for trial in rung if trial.status == TrialStatus.COMPLETED]
        sign = -1 if self.objective.direction == "max" else 1
        ended.sort(key=lambda t: sign * t.score)
        promoted = {trial.hyperparameters.values["tuner/trial_id"] for trial in above}
        top = ended[: len(ended) // self.factor]
        return next((trial for trial in top if trial.trial_id not in promoted), None)

    def _compute_values_hash(self, values: dict[str, Any]) -> str:
        """Hash a setting without its `tuner/` values, so that KerasTuner tries none twice."""
        setting = {key: value for key, value in values.items() if not key.startswith("tuner/")}
        return str(super()._compute_values_hash(setting))


def rung_epochs(min_epochs: int, max_epochs: int, factor: int) -> list[int]:
    """Return the number of epochs of every rung, such as 1, 3, 9, rounded up as in Hyperband."""
    num_rungs, epochs = 1, max_epochs
    while epochs >= min_epochs * factor:
        num_rungs, epochs = num_rungs + 1, epochs // factor
    return [math.ceil(max_epochs / factor**k) for k in reversed(range(num_rungs))]
