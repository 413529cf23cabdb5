"""A trial is a run: trained and validated by the same code, in its own folder of the sweep."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from harness.compute.strategy import describe_devices
from harness.data.dataset import Dataset
from harness.errors import InputError, RunError
from harness.files.atomic_file import atomic_write
from harness.search_parameters import Value
from harness.search_space import OBJECTIVES
from harness.slurm.environment import SlurmEnvironment
from harness.tracking.run_dir import RunDirectory, run_identity
from harness.training import checkpoint
from harness.training.context import Compute, Observers, RunContext
from harness.training.launch import plan_of
from harness.training.train import train
from harness.tuning.oracle import epochs_of
from harness.tuning.sweep_dir import SweepDirectory

MAX_ATTEMPTS = 25  # of a run without a new checkpoint


class Trials:
    """Runs trials of a sweep one after another in this process."""

    def __init__(
        self,
        sweep: SweepDirectory,
        dataset: Dataset,
        strategy: tf.distribute.Strategy,
        *,
        observers: Observers,
    ) -> None:
        self.sweep, self.search = sweep, sweep.search()
        self.dataset, self.strategy, self.observers = dataset, strategy, observers
        self.allocation = SlurmEnvironment.from_environment()
        self.devices = describe_devices(strategy)[0]["device"].partition(":")[0]

    def run(self, trial: str, values: Mapping[str, Value]) -> dict[str, float]:
        """Train a trial's runs, or continue them, and return the means of their scores.

        Raises:
            InputError: if its values are not valid together.
            Interrupted, RunError, TakenOver: see `harness.training.train.train`.
        """
        epochs, parent = epochs_of(values)
        own = {p.key: values[p.key] for p in self.search.space if p.key in values}
        results = []
        for seed in self.search.seeds():
            job = self.search.job_of(own, seed=seed, epochs=epochs)
            run = self.sweep.trial_run(trial, seed)
            if run.finished():
                results.append(run.result())
                continue
            keras.utils.clear_session()  # else names and memory grow from trial to trial
            run.take_lease()
            _count_attempt(run)
            if parent and not checkpoint.list_checkpoints(run):
                before = self.sweep.trial_run(parent, seed)
                checkpoint.adopt(before, run, run_identity(job, self.dataset.checksum))
            self.observers.console.info(f"trial {trial}, seed {seed}: {_listed(own)}")
            compute = Compute(
                self.strategy, plan_of(job, self.devices, run), self.allocation, is_shared=True
            )
            context = RunContext(run, job, self.dataset)
            more = self.search.scores_validation
            results.append(train(context, compute, self.observers, scores_validation=more))
            if not self.search.continues_trials:  # else another one may begin with them
                checkpoint.remove_all(run)
        return mean_scores(results, self.search.table.objective)

    def note_failure(self, trial: str, error: Exception) -> None:
        """Record for the chief why a trial failed, since KerasTuner's protocol loses it."""
        known = isinstance(error, InputError | RunError)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        atomic_write(self.sweep.path("errors", f"{trial}.txt"), message)


def _count_attempt(run: RunDirectory) -> None:
    """Count an attempt at a run, and give up if no attempt reaches the next checkpoint.

    Raises:
        RunError: after `MAX_ATTEMPTS`.
    """
    newest = [path.name for path in checkpoint.list_checkpoints(run)][-1:]
    before = run.read_json("attempts.json")
    count = before.get("count", 0) + 1 if before.get("newest") == newest else 1
    if count > MAX_ATTEMPTS:
        raise RunError(
            f"its worker was killed {MAX_ATTEMPTS} times before the next checkpoint, perhaps for "
            "lack of memory; lower train.checkpoint_every_s or the size of the model"
        )
    run.write_json("attempts.json", {"newest": newest, "count": count})


def mean_scores(results: Sequence[Mapping[str, Any]], objective: str) -> dict[str, float]:
    """The mean of each validation score over a trial's runs.

    Raises:
        RunError: if the runs lack the objective.
    """
    recorded = [
        name for name in OBJECTIVES if all(result.get(name) is not None for result in results)
    ]
    if objective not in recorded:
        raise RunError(
            f"search.objective = {objective!r}: the validation reviews are all of one class; "
            "choose another objective, or raise data.validation_split"
        )
    return {name: statistics.fmean(result[name] for result in results) for name in recorded}


def _listed(values: Mapping[str, Value]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())
