"""KerasTuner's oracles, made safe: their state on disk is always whole, and no trial is lost.

Problems of KerasTuner 1.4.8 that these classes solve:

- `oracle.json` is overwritten in place, after the trial's own file: a kill between the two loses a
  trial. Here one file holds both, is written atomically, and the previous one is preserved.
- A trial whose worker is gone waits forever for a worker of the same name. Here it goes back into
  the queue (`release`), and the next worker continues it from its checkpoint.
- A trial that ends twice, because two workers had it, is counted twice.
- A restarted grid search loses its position (issue 1055 upstream).
- After three failures in a row `end_trial` raises and never releases its lock. Here `same_failure`
  reports three trials that failed with the same error.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_tuner as kt
from keras_tuner.engine.trial import Trial
from keras_tuner.oracles import (
    GridSearchOracle,
    HyperbandOracle,
    RandomSearchOracle,
)
from keras_tuner.src.engine import conditions

from harness.errors import RunError
from harness.files.atomic_file import atomic_write
from harness.oracles.asha import AshaOracle
from harness.oracles.bayesian import BoundedBayesianOracle
from harness.search_parameters import Values
from harness.search_space import SearchSpec

# It would print every condition's value for each trial that is reported.
conditions.print = lambda *_: None

STATE, BEFORE = "oracle.json", "oracle-before.json"
MAX_SAME_FAILURES = 3  # trials that fail in the same way are no accident
COMPLETED, FAILED, STOPPED = "COMPLETED", "FAILED", "STOPPED"


def hyperparameters(search: SearchSpec) -> kt.HyperParameters:
    """The search space as KerasTuner's hyperparameters, each named by its key of the job."""
    space = kt.HyperParameters()
    for parameter in search.space:
        scope: Any = contextlib.nullcontext()
        if parameter.parent:
            scope = space.conditional_scope(parameter.parent, list(parameter.parent_choices))
        with scope:
            if parameter.choices:
                space.Choice(parameter.key, list(parameter.choices))
            else:
                declare = space.Int if parameter.is_whole else space.Float
                options: dict[str, Any] = {"sampling": "log" if parameter.log else "linear"}
                if parameter.step is not None:
                    options["step"] = parameter.step
                declare(parameter.key, parameter.low, parameter.high, **options)
    return space


class SafeOracle(kt.Oracle):  # type: ignore[misc]  # KerasTuner ships no types
    """What the oracles share; precedes KerasTuner's own class in the method resolution order.

    It is called from the thread that serves the workers and from the chief's own, so each method
    takes KerasTuner's lock (`kt.synchronized`), which stays locked forever if a method raises.
    """

    folder: Path  # of the state
    error_of: Callable[[str], str]  # why a trial failed; KerasTuner's messages lack it
    problem: RunError | None = None  # why the state could not be written
    _sent_stop = False  # in answer to the last request for a trial

    # The state

    def save(self) -> None:
        """Write the state and all trials as one file, and preserve the previous one."""
        content = {
            **self.get_state(),
            "trials": {trial_id: trial.get_state() for trial_id, trial in self.trials.items()},
        }
        target = self.folder / STATE
        try:
            if target.exists():
                atomic_write(self.folder / BEFORE, target.read_bytes())
            atomic_write(target, json.dumps(content))
        except (RunError, OSError) as error:
            # Raising here would leave the lock locked. The chief checks `problem` and ends.
            self.problem = RunError(str(error))

    def _save_trial(self, trial: Trial) -> None:
        """Do nothing: `save` writes the trials and is called after each change."""

    def reload(self) -> None:
        """Restore the newest state that is whole, if there is one.

        A trial in progress stays with its worker, which may be alive and about to report.
        """
        content = load_state(self.folder)
        if content is None:
            return
        self.trials = {key: Trial.from_state(state) for key, state in content["trials"].items()}
        self.set_state(content)

    # The trials

    @kt.synchronized  # type: ignore[untyped-decorator]
    def create_trial(self, tuner_id: str) -> Trial:
        """A trial for a worker: its own unfinished one, one from the queue, or a new one."""
        trial = super().create_trial(tuner_id)
        self._sent_stop = trial.status == STOPPED
        return trial

    @kt.synchronized  # type: ignore[untyped-decorator]
    def update_trial(self, trial_id: str, metrics: dict[str, Any], step: int = 0) -> Trial:
        """Record the scores of a trial; its worker reports the end afterwards."""
        trial = super().update_trial(trial_id, metrics, step)
        self.save()
        return trial

    @kt.synchronized  # type: ignore[untyped-decorator]
    def end_trial(self, trial: Trial) -> None:
        """Record how a trial ended, the first time that this is reported."""
        known = self.trials.get(trial.trial_id)
        if known is None or trial.trial_id in self.end_order:
            self._forget(trial.trial_id)
            return
        if trial.status == COMPLETED and not known.metrics.exists(self.objective.name):
            # A chief that could not save them got the scores. They are in the trial's run.
            self._forget(trial.trial_id)
            self._retry_queue.append(trial.trial_id)
            return
        if trial.trial_id in self._retry_queue:  # its worker was taken for lost but was not
            self._retry_queue.remove(trial.trial_id)
        super().end_trial(trial)
        if known.status == FAILED:
            known.message = self.error_of(trial.trial_id)
        self._forget(trial.trial_id)
        self.save()  # again: KerasTuner saves before the trial leaves the list of ongoing ones

    def _forget(self, trial_id: str) -> None:
        for worker in [k for k, t in self.ongoing_trials.items() if t.trial_id == trial_id]:
            del self.ongoing_trials[worker]

    @kt.synchronized  # type: ignore[untyped-decorator]
    def release(self, tuner_id: str) -> str | None:
        """Put the trial of a lost worker back into the queue, and return its id."""
        trial = self.ongoing_trials.pop(tuner_id, None)
        self.tuner_ids.discard(tuner_id)
        if trial is None:
            return None
        if trial.trial_id not in (*self.end_order, *self._retry_queue):
            self._retry_queue.append(trial.trial_id)
        self.save()
        return str(trial.trial_id)

    @kt.synchronized  # type: ignore[untyped-decorator]
    def summary(self) -> dict[str, Any]:
        """The trials as plain values, each with its worker."""
        workers = {trial.trial_id: worker for worker, trial in self.ongoing_trials.items()}
        return {
            "trials": [
                {
                    "trial": key,
                    "status": self._status(trial, workers),
                    "score": None if trial.score is None else float(trial.score),
                    "worker": workers.get(key),
                    "error": trial.message,
                    "values": dict(trial.hyperparameters.values),
                }
                for key, trial in self.trials.items()
            ],
            "waiting": len(self._retry_queue),
        }

    @kt.synchronized  # type: ignore[untyped-decorator]
    def is_over(self) -> bool:
        """Whether every trial has ended and the tuner has no more."""
        return self._sent_stop and not self.ongoing_trials and not self._retry_queue

    def _status(self, trial: Trial, workers: dict[str, str]) -> str:
        if trial.trial_id in self.end_order:
            return "finished" if trial.status == COMPLETED else "failed"
        return "running" if trial.trial_id in workers else "waiting"

    @kt.synchronized  # type: ignore[untyped-decorator]
    def same_failure(self) -> str | None:
        """The error that `MAX_SAME_FAILURES` trials have in common, None if there is none."""
        errors = [t.message or "" for t in self.trials.values() if t.status == FAILED]
        same = Counter(re.sub(r"[0-9.]+", "#", error) for error in errors)
        for kind, count in same.items():
            if count >= MAX_SAME_FAILURES:
                return next(e for e in errors if re.sub(r"[0-9.]+", "#", e) == kind)
        return None


class SafeGrid(SafeOracle, GridSearchOracle):  # type: ignore[misc]
    """Grid search that resumes at its position after a restart."""

    def get_state(self) -> dict[str, Any]:
        """KerasTuner's state with the position in the grid."""
        ids = self._ordered_ids
        linked = {"memory": ids._memory, "next": ids._next_index, "last": ids._last_index}
        return {**super().get_state(), "populate_next": self._populate_next, "linked": linked}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the position."""
        super().set_state(state)
        self._populate_next = state["populate_next"]
        ids, linked = self._ordered_ids, state["linked"]
        ids._memory, ids._last_index = linked["memory"], linked["last"]
        ids._next_index.update({_index(key): value for key, value in linked["next"].items()})
        ids._data_to_index = {data: index for index, data in enumerate(ids._memory)}


def _index(key: str) -> int | None:
    return None if key == "null" else int(key)  # as JSON writes the keys None and 3


class SafeBayesian(SafeOracle, BoundedBayesianOracle):
    """Bayesian search."""


class SafeRandom(SafeOracle, RandomSearchOracle):  # type: ignore[misc]
    """Random search."""


class SafeHyperband(SafeOracle, HyperbandOracle):  # type: ignore[misc]
    """Hyperband: rounds of trials, of which the best continue with more epochs."""


class SafeAsha(SafeOracle, AshaOracle):
    """Asynchronous successive halving."""


def make_oracle(search: SearchSpec, folder: Path, error_of: Callable[[str], str]) -> SafeOracle:
    """The oracle of a search; its state is written to `folder`."""
    table, max_epochs = search.table, search.job.train.epochs
    options: dict[str, Any] = {
        "objective": kt.Objective(table.objective, search.goal),
        "seed": table.seed,
        "hyperparameters": hyperparameters(search),
        "allow_new_entries": False,
        "max_retries_per_trial": 0,
        "max_consecutive_failed_trials": 10**9,  # left to `same_failure`
    }
    if table.tuner == "hyperband":
        oracle: SafeOracle = SafeHyperband(max_epochs=max_epochs, factor=table.factor, **options)
    elif table.tuner == "asha":
        oracle = SafeAsha(
            num_settings=table.trials or None,
            min_epochs=table.min_epochs,
            max_epochs=max_epochs,
            factor=table.factor,
            tie_of=search.tie_of,
            **options,
        )
    else:
        kinds = {"random": SafeRandom, "grid": SafeGrid, "bayesian": SafeBayesian}
        oracle = kinds[table.tuner](**options)
    oracle.max_trials = search.max_trials
    oracle.verbose = 0
    oracle.folder, oracle.error_of = folder, error_of
    return oracle


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest state in the folder that is whole, None if there is none yet.

    Raises:
        RunError: if there are states but none is whole.
    """
    broken = []
    for name in (STATE, BEFORE):
        try:
            content = json.loads((folder / name).read_text())
            if isinstance(content, dict) and isinstance(content.get("trials"), dict):
                return content
            broken.append(name)
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            broken.append(name)
    if broken:
        raise RunError(f"{folder}: {' and '.join(broken)} are broken; begin a new sweep")
    return None


def epochs_of(values: Values) -> tuple[int | None, str | None]:
    """From a trial's values under hyperband or asha: epochs to train, and the trial to continue."""
    epochs, parent = values.get("tuner/epochs"), values.get("tuner/trial_id")
    return (int(epochs) if epochs else None), (str(parent) if parent else None)
