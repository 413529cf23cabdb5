"""Asynchronous successive halving: many settings for a few epochs, the best of them for more.

Algorithm 2 of Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020).
"""

import math
from collections.abc import Sequence
from typing import Any

import keras_tuner as kt
from keras_tuner.engine.trial import Trial, TrialStatus


class AshaOracle(kt.Oracle):  # type: ignore[misc]  # KerasTuner ships no types
    """Random settings begin in the lowest rung; the top 1/factor of a rung go on to the next one.

    A setting goes on as a trial of its own, which names its parent and the epochs of its rung as
    KerasTuner's Hyperband does. It goes on as soon as it is among the top of those that have ended
    in its rung so far, so no trial waits for others. Which settings go on depends on the order of
    the results, on nothing else.

    Args:
        num_settings: that begin, None for all of a finite space.
        min_epochs: of the lowest rung, at least.
        max_epochs: of the highest rung.
        factor: a rung has so many times the epochs of the one below it.
        options: of KerasTuner's oracle.
    """

    known: Sequence[Any] = ()  # trials proposed before, in order, each with its `parent`; may grow

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
        self._seed_state: int  # of KerasTuner's oracle
        self.rungs = rung_epochs(min_epochs, max_epochs, factor)

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """A promotion, from as high a rung as possible, or a new setting."""
        rungs = self._trials_by_rung()
        for rung in reversed(range(len(self.rungs) - 1)):
            if parent := self._promotable(rungs[rung], rungs[rung + 1]):
                link = {"tuner/trial_id": parent.trial_id, "tuner/initial_epoch": self.rungs[rung]}
                return self._trial(rung + 1, {**parent.hyperparameters.values, **link})
        if self.num_settings is None or len(rungs[0]) < self.num_settings:
            before, values = self._seed_state, self._random_values()
            if values is not None and not self._is_known_to_wait():
                return self._trial(0, {**values, "tuner/initial_epoch": 0})
            if values is not None:  # with fewer settings, the search drew none here
                self._seed_state = before
        # Trials in progress may lead to promotions.
        return {"status": TrialStatus.IDLE if self.ongoing_trials else TrialStatus.STOPPED}

    def _is_known_to_wait(self) -> bool:
        """Whether a search that had fewer settings waited here for a promotion."""
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
        """The best trial of a rung's top 1/factor that has not gone on; of equal ones the first."""
        ended = [trial for trial in rung if trial.status == TrialStatus.COMPLETED]
        sign = -1 if self.objective.direction == "max" else 1
        ended.sort(key=lambda t: sign * t.score)
        promoted = {trial.hyperparameters.values["tuner/trial_id"] for trial in above}
        top = ended[: len(ended) // self.factor]
        return next((trial for trial in top if trial.trial_id not in promoted), None)

    def _compute_values_hash(self, values: dict[str, Any]) -> str:
        """The hash of a setting, by which KerasTuner avoids trying one twice."""
        setting = {key: value for key, value in values.items() if not key.startswith("tuner/")}
        return str(super()._compute_values_hash(setting))


def rung_epochs(min_epochs: int, max_epochs: int, factor: int) -> list[int]:
    """The epochs of each rung, the lowest first, such as 1, 3, 9; rounded up as in Hyperband."""
    num_rungs, epochs = 1, max_epochs
    while epochs >= min_epochs * factor:
        num_rungs, epochs = num_rungs + 1, epochs // factor
    return [math.ceil(max_epochs / factor**k) for k in reversed(range(num_rungs))]
