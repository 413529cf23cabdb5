"""KerasTuner's oracles, made safe: what they know is on the disk whole, and no trial is lost.

What KerasTuner 1.4.8 does, and these undo:

- `oracle.json` is overwritten in place, and a trial's file is written before it: a kill between
  the two loses a trial. Here one file holds both, written beside and renamed, the last one kept.
- A trial whose worker is gone waits for ever for a worker of that name. Here it goes back into
  the queue (`release`), and whoever asks next goes on with it from its checkpoint.
- A trial that ended twice, since two workers had it, is counted twice.
- Grid search forgets its place (issue 1055 upstream), Bayesian search its random numbers.
- After three failures in a row `end_trial` raises, and keeps its lock for ever. Here three trials
  that failed alike are told by `same_failure`.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_tuner as kt
import numpy as np
from keras_tuner.engine.trial import Trial
from keras_tuner.oracles import (
    BayesianOptimizationOracle,
    GridSearchOracle,
    HyperbandOracle,
    RandomSearchOracle,
)
from keras_tuner.src.engine import conditions

from harness.errors import RunError
from harness.files.atomic_file import atomic_write
from harness.search_parameters import Values
from harness.search_space import SearchSpec

# It prints every condition's value, for each trial that is told.
conditions.print = lambda *_: None

STATE, BEFORE = "oracle.json", "oracle-before.json"
ALIKE = 3  # trials that fail in the same way are no accident
COMPLETED, FAILED, STOPPED = "COMPLETED", "FAILED", "STOPPED"


def hyperparameters(search: SearchSpec) -> kt.HyperParameters:
    """The space as KerasTuner has it; a parameter's name is the job's key."""
    space = kt.HyperParameters()
    for dimension in search.space:
        scope: Any = contextlib.nullcontext()
        if dimension.parent:
            scope = space.conditional_scope(dimension.parent, list(dimension.parent_choices))
        with scope:
            if dimension.choices:
                space.Choice(dimension.key, list(dimension.choices))
            else:
                declare = space.Int if dimension.is_whole else space.Float
                options: dict[str, Any] = {"sampling": "log" if dimension.log else "linear"}
                if dimension.step is not None:
                    options["step"] = dimension.step
                declare(dimension.key, dimension.low, dimension.high, **options)
    return space


class SafeOracle(kt.Oracle):  # type: ignore[misc]  # KerasTuner ships no types
    """What all four of ours share; stands before KerasTuner's own in the order of resolution.

    Its calls come from the one thread that serves the workers and from the chief's own, so each
    takes KerasTuner's lock (`kt.synchronized`), which an exception would leave locked for ever.
    """

    folder: Path  # where the state is kept
    error_of: Callable[[str], str]  # why a trial failed: the workers' messages do not carry it
    problem: RunError | None = None  # why the state could not be written
    _said_stop = False  # to the worker that asked last

    # The state

    def save(self) -> None:
        """Write the state and all trials as one file, and keep the one before."""
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
            # Not raised: the lock would stay locked. The chief looks, and ends.
            self.problem = RunError(str(error))

    def _save_trial(self, trial: Trial) -> None:
        """Do nothing: `save` writes the trials, and follows each change of one."""

    def reload(self) -> None:
        """Take up the newest state that is whole, if there is one.

        A trial in progress stays its worker's: that one may be alive, and asks or tells soon.
        """
        content = load_state(self.folder)
        if content is None:
            return
        self.trials = {key: Trial.from_state(state) for key, state in content["trials"].items()}
        self.set_state(content)

    # The trials

    @kt.synchronized  # type: ignore[untyped-decorator]
    def create_trial(self, tuner_id: str) -> Trial:
        """A trial for a worker: the one that it has, one that waits to go on, or a new one."""
        trial = super().create_trial(tuner_id)
        self._said_stop = trial.status == STOPPED
        return trial

    @kt.synchronized  # type: ignore[untyped-decorator]
    def update_trial(self, trial_id: str, metrics: dict[str, Any], step: int = 0) -> Trial:
        """Note a trial's scores, before its worker may say that it ended."""
        trial = super().update_trial(trial_id, metrics, step)
        self.save()
        return trial

    @kt.synchronized  # type: ignore[untyped-decorator]
    def end_trial(self, trial: Trial) -> None:
        """Note how a trial ended, the first time that it is told."""
        known = self.trials.get(trial.trial_id)
        if known is None or trial.trial_id in self.end_order:
            self._forget(trial.trial_id)
            return
        if trial.status == COMPLETED and not known.metrics.exists(self.objective.name):
            # Its scores were told to a chief that could not write them. They stand in its run.
            self._forget(trial.trial_id)
            self._retry_queue.append(trial.trial_id)
            return
        if trial.trial_id in self._retry_queue:  # its worker was thought lost, and was not
            self._retry_queue.remove(trial.trial_id)
        super().end_trial(trial)
        if known.status == FAILED:
            known.message = self.error_of(trial.trial_id)
        self._forget(trial.trial_id)
        self.save()  # once more: KerasTuner's own is written before the trial is taken off

    def _forget(self, trial_id: str) -> None:
        for worker in [k for k, t in self.ongoing_trials.items() if t.trial_id == trial_id]:
            del self.ongoing_trials[worker]

    @kt.synchronized  # type: ignore[untyped-decorator]
    def release(self, tuner_id: str) -> str | None:
        """Put the trial of a worker that is gone back into the queue, and give its id."""
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
        """The trials as plain values, and whose each is."""
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
        """Whether every trial has ended and the tuner has said that there are no more."""
        return self._said_stop and not self.ongoing_trials and not self._retry_queue

    def _status(self, trial: Trial, workers: dict[str, str]) -> str:
        if trial.trial_id in self.end_order:
            return "finished" if trial.status == COMPLETED else "failed"
        return "running" if trial.trial_id in workers else "waiting"

    @kt.synchronized  # type: ignore[untyped-decorator]
    def same_failure(self) -> str | None:
        """The error of trials that failed alike, once there are `ALIKE` of them."""
        errors = [t.message or "" for t in self.trials.values() if t.status == FAILED]
        alike = Counter(re.sub(r"[0-9.]+", "#", error) for error in errors)
        for kind, count in alike.items():
            if count >= ALIKE:
                return next(e for e in errors if re.sub(r"[0-9.]+", "#", e) == kind)
        return None


class SafeGrid(SafeOracle, GridSearchOracle):  # type: ignore[misc]
    """Grid search that knows its place after a restart."""

    def get_state(self) -> dict[str, Any]:
        """KerasTuner's state, and the places of the grid that come next."""
        ids = self._ordered_ids
        linked = {"memory": ids._memory, "next": ids._next_index, "last": ids._last_index}
        return {**super().get_state(), "populate_next": self._populate_next, "linked": linked}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take the places up."""
        super().set_state(state)
        self._populate_next = state["populate_next"]
        ids, linked = self._ordered_ids, state["linked"]
        ids._memory, ids._last_index = linked["memory"], linked["last"]
        ids._next_index.update({_index(key): value for key, value in linked["next"].items()})
        ids._data_to_index = {data: index for index, data in enumerate(ids._memory)}


def _index(key: str) -> int | None:
    return None if key == "null" else int(key)  # as JSON writes the keys None and 3


class SafeBayesian(SafeOracle, BayesianOptimizationOracle):  # type: ignore[misc]
    """Bayesian search whose random numbers depend on how many trials there are, not on restarts."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """KerasTuner's choice of values."""
        self._random_state = np.random.RandomState((self.seed + len(self.trials)) % 2**32)
        return dict(super().populate_space(trial_id))


class SafeRandom(SafeOracle, RandomSearchOracle):  # type: ignore[misc]
    """Random search."""


class SafeHyperband(SafeOracle, HyperbandOracle):  # type: ignore[misc]
    """Hyperband: many trials of few epochs, the best third of which goes on, and so again."""


def make_oracle(search: SearchSpec, folder: Path, error_of: Callable[[str], str]) -> SafeOracle:
    """The oracle of a search, with what the folder knows of it."""
    table = search.table
    options: dict[str, Any] = {
        "objective": kt.Objective(table.objective, search.goal),
        "seed": table.seed,
        "hyperparameters": hyperparameters(search),
        "allow_new_entries": False,
        "max_retries_per_trial": 0,
        "max_consecutive_failed_trials": 10**9,  # `same_failure` looks at them
    }
    if table.tuner == "hyperband":
        oracle: SafeOracle = SafeHyperband(
            max_epochs=search.job.train.epochs, factor=table.factor, **options
        )
    else:
        kinds = {"random": SafeRandom, "grid": SafeGrid, "bayesian": SafeBayesian}
        oracle = kinds[table.tuner](**options)
    oracle.max_trials = table.trials or None
    oracle.verbose = 0
    oracle.folder, oracle.error_of = folder, error_of
    return oracle


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest state in the folder that is whole, None where the search has none yet.

    Raises:
        RunError: if there are states and none is whole.
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
    """Hyperband's word in a trial's values: epochs to train, and the trial to go on from."""
    epochs, parent = values.get("tuner/epochs"), values.get("tuner/trial_id")
    return (int(epochs) if epochs else None), (str(parent) if parent else None)
