"""Asynchronous successive halving: try many settings for few epochs, and only the best for more.

Implements Algorithm 2 of Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020).
"""

import math
from collections.abc import Sequence
from typing import Any

import keras_tuner as kt
from keras_tuner.engine.trial import Trial, TrialStatus


class AshaOracle(kt.Oracle):  # type: ignore[misc]  # KerasTuner ships no types
    """Starts random settings in the lowest rung and promotes the top 1/factor of every rung.

    A setting is a combination of values. Each promotion creates a new trial. The new trial's values
    contain the id of the promoted trial (`tuner/trial_id`) and the epochs of the new rung
    (`tuner/epochs`), as in KerasTuner's Hyperband. The oracle promotes a trial as soon as the trial
    is among the best 1/factor of its rung's finished trials, so no trial waits for others. The
    promotions depend only on the trials' results and on the order of these results.

    Args:
        num_settings: the maximum number of settings in the lowest rung.
        min_epochs: a lower limit for the number of epochs of the lowest rung.
        max_epochs: the number of epochs of the highest rung.
        factor: the ratio between the epochs of two consecutive rungs.
        options: further arguments of `kt.Oracle`.
    """

    known: Sequence[Any] = ()  # the sweep's trials, sorted by number; grows during the search

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
            # the next trial, because `search.trials` allowed no new setting when it was proposed.
            if values is not None:
                self._seed_state = before
        # While a trial runs, a promotion may still follow, so the oracle waits and does not stop.
        return {"status": TrialStatus.IDLE if self.ongoing_trials else TrialStatus.STOPPED}

    def _is_known_to_wait(self) -> bool:
        """Whether the oracle must wait, because the next trial is known to be a promotion.

        The sweep's folder records this promotion. Until the oracle can propose the promotion, the
        oracle draws no random setting.
        """
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
        """Return the best unpromoted trial in the top 1/factor of a rung; None if there is none."""
        ended = [trial for trial in rung if trial.status == TrialStatus.COMPLETED]
        sign = -1 if self.objective.direction == "max" else 1
        ended.sort(key=lambda t: sign * t.score)
        promoted = {trial.hyperparameters.values["tuner/trial_id"] for trial in above}
        top = ended[: len(ended) // self.factor]
        return next((trial for trial in top if trial.trial_id not in promoted), None)

    def _compute_values_hash(self, values: dict[str, Any]) -> str:
        """Return a hash of `values` without the keys that begin with `tuner/`.

        If the values that the oracle draws have the same hash as an earlier trial's values, the
        oracle discards the drawn values and draws again. So the oracle draws no combination of
        values twice.
        """
        setting = {key: value for key, value in values.items() if not key.startswith("tuner/")}
        return str(super()._compute_values_hash(setting))


def rung_epochs(min_epochs: int, max_epochs: int, factor: int) -> list[int]:
    """Return the number of epochs of every rung, rounded up as in Hyperband, such as 1, 3, 9."""
    num_rungs, epochs = 1, max_epochs
    while epochs >= min_epochs * factor:
        num_rungs, epochs = num_rungs + 1, epochs // factor
    return [math.ceil(max_epochs / factor**k) for k in reversed(range(num_rungs))]
