"""Trains a trial, one run per seed, in the sweep's folder, with the same code as any other run."""

import gc
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from harness.compute.device_check import checked_plan
from harness.compute.strategy import describe_devices
from harness.data.dataset import Dataset
from harness.data.vocabulary import vectors_checksum
from harness.errors import DiskError, InputError, Interrupted, NodeFault, RunError, TakenOver
from harness.job.keys import OBJECTIVES, Job
from harness.job.own_code import forget_modules
from harness.job.search import SearchSpec
from harness.slurm.environment import SlurmEnvironment
from harness.system.console import Console, printable
from harness.system.files import is_of_disk
from harness.system.processes import StopRequest
from harness.system.resource_monitor import ResourceMonitor, resident_memory_gb
from harness.tracking.run_dir import RunDirectory
from harness.training import checkpoint
from harness.training.context import Compute, RunContext
from harness.training.launch import check_own_parts, plan_of
from harness.training.train import train
from harness.tuning.disk import Disk, execute
from harness.tuning.protocol import Trial, result_file
from harness.tuning.sweep_dir import SweepDirectory, VectorsChanged

MAX_ERROR = 2000  # largest number of characters of an error message
# Largest memory of a worker, as a multiple of its memory after its first run. A worker may keep
# memory of ended trials in use: 70 MB in a measurement with `data.bucket`.
MAX_GROWTH = 1.5


class Trials:
    """Trains a sweep's trials in this process, one at a time."""

    def __init__(
        self,
        sweep: SweepDirectory,
        search: SearchSpec,
        dataset: Dataset,
        strategy: tf.distribute.Strategy,
        console: Console,
        monitor: ResourceMonitor,
        stop: StopRequest,
    ) -> None:
        self.sweep, self.search, self.dataset = sweep, search, dataset
        self.strategy, self.console, self.monitor, self.stop = strategy, console, monitor, stop
        allocation = SlurmEnvironment.from_environment()
        # The Slurm job belongs to the sweep, so a trial's `state.json` must not set `owns_job`.
        self.allocation = replace(allocation, is_batch=False) if allocation else None
        self._first_gb = 0.0  # memory of this process after its first run
        self.devices = describe_devices(strategy)[0]["device"].partition(":")[0]

    def run(self, trial: Trial, k: int) -> Trial:
        """Train or continue an attempt's runs; return the trial with its scores or its error.

        Raises:
            Interrupted: after a signal; the attempt has saved a checkpoint. This process also sends
                itself a signal if the attempt is no longer needed.
            NodeFault: if the node or its GPU is faulty.
            OSError: if the file system fails.
            VectorsChanged: if the file of `model.embeddings` has changed since the sweep began. If
                the file is restored, the trial can be trained.
        """
        try:
            return trial.model_copy(update={"attempt": k, **self._run(trial, k)})
        except (OSError, Interrupted, NodeFault, VectorsChanged):
            raise
        except Exception as error:  # Keras and TensorFlow raise errors of any type
            if is_of_disk(error) or isinstance(error, TakenOver):  # another try may succeed
                raise OSError(str(error)) from None
            is_ours = isinstance(error, InputError | RunError)
            line = str(error) if is_ours else f"{type(error).__name__}: {error}"
            # Escape control characters, which errors in the user's own code may contain.
            line = printable(" ".join(line.split()))[:MAX_ERROR]
            return trial.model_copy(update={"attempt": k, "error": line})
        finally:
            forget_gradients()
            gc.collect()

    def has_grown(self) -> bool:
        """Whether this process uses more memory than `MAX_GROWTH` allows."""
        return 0 < MAX_GROWTH * self._first_gb < resident_memory_gb()

    def _run(self, trial: Trial, k: int) -> dict[str, Any]:
        results = []
        for seed in self.search.seeds():
            job = self.search.job_of(trial.values, seed=seed, epochs=trial.limit)
            run = self.sweep.trial_run(trial.n, k, seed)
            if not run.finished():
                self._train(trial, k, job, run)
            results.append(run.result())
        return {
            "scores": mean_scores(results, self.search.table.objective),
            "epochs": max(result["num_epochs"] for result in results),
            "kept_epoch": statistics.fmean(result["kept_epoch"] for result in results),
            "training_s": round(sum(result.get("training_s") or 0.0 for result in results), 3),
            "parameters": results[0].get("parameters"),
        }

    def _train(self, trial: Trial, k: int, job: Job, run: RunDirectory) -> None:
        forget_modules()
        self.sweep.check_lease()  # the next line would create the folder of a moved sweep again
        run.folder.mkdir(parents=True, exist_ok=True)
        run.take_lease()
        try:
            context = RunContext.open(run, job, self.dataset)
        except InputError:
            self._check_vectors(job)
            raise
        if context.vectors:  # the file may have changed during the search
            self.sweep.check_vectors(context.vectors.path, context.vectors.checksum)
        if not run.checkpoints():
            self._adopt(trial, k, context)
        values = ", ".join(f"{key} = {value}" for key, value in trial.values.items())
        self.console.info(f"trial {trial.n}, seed {job.train.seed}: {values}")
        plan = checked_plan(plan_of(job, self.devices, run), job)
        if not run.checkpoints():
            check_own_parts(context, plan, self.strategy.num_replicas_in_sync, self.console)
        parts = (self.console, self.monitor, self.stop, self.allocation)
        name = f"trial {trial.n} of {self.search.name}/{self.sweep.folder.absolute().name}"
        row = self.search.row(name, trial.values, trial.limit)
        keras.utils.clear_session(free_memory=False)  # layers are numbered from 1 again
        train(context, Compute(self.strategy, plan, *parts, trial=row))
        self._first_gb = self._first_gb or resident_memory_gb()

    @staticmethod
    def _check_vectors(job: Job) -> None:
        """Raise `VectorsChanged` if the word vectors are missing, perhaps only for a while."""
        if job.model.embeddings:
            try:
                vectors_checksum(Path(job.model.embeddings))
            except InputError as error:
                raise VectorsChanged(str(error)) from None

    def _adopt(self, trial: Trial, k: int, context: RunContext) -> None:
        """Copy a checkpoint into a new run of attempt k, so that the run continues from it.

        The method copies the newest checkpoint of the trial's earlier attempts. If the earlier
        attempts have no usable checkpoint, the method copies the newest checkpoint of the parent
        trial. If the parent trial's checkpoints were removed, as happens at the end of a search,
        the attempt trains the parent's epochs again, with bitwise identical results. With custom
        callbacks, no attempt uses a checkpoint of the parent trial, because callbacks receive
        `train.epochs` and may depend on it.

        Raises:
            OSError, DiskError: if the parent's result or checkpoint can't be read.
        """
        seed = context.job.train.seed
        earlier = [(trial, older) for older in range(k - 1, 0, -1)]
        continues = trial.parent is not None and not context.job.train.callbacks
        if trial.parent is not None and continues:
            parent = execute(Disk(self.sweep.folder).read(Trial, result_file(trial.parent)))
            if not parent:
                raise OSError(f"trial {trial.parent}: its result is not visible yet")
            earlier.append((parent, parent.attempt))
        for each, attempt in earlier:
            job = self.search.job_of(each.values, seed=seed, epochs=each.limit)
            theirs = replace(context, job=job).identity
            source = self.sweep.trial_run(each.n, attempt, seed)
            if checkpoint.adopt(source, context.run, context.identity, source_identity=theirs):
                return
        if continues:
            self.console.warning(
                f"trial {trial.parent}: its checkpoint can't be used; its epochs are trained again"
            )

    def saved(self, n: int, k: int) -> int:
        """Return the sum of the steps in the newest checkpoints of an attempt's runs."""
        runs = [self.sweep.trial_run(n, k, seed) for seed in self.search.seeds()]
        try:
            newest = [names[-1].stem for run in runs if (names := run.checkpoints())]
        except (OSError, DiskError):
            return 0
        return sum(int(name.removeprefix("step-")) for name in newest)


def forget_gradients() -> None:
    """Free the graphs of networks that are no longer used.

    TensorFlow stores the gradient function of each `tf.custom_gradient` in a global table, which
    keeps the function's graph in memory. Each trial adds gradient functions to TensorFlow's global
    table, because Keras's optimizers call `all_reduce`, which has a custom gradient. Without
    `forget_gradients`, the graphs of all trials would stay in memory. Call `forget_gradients` only
    while no network is being trained.
    """
    from tensorflow.python.framework import ops

    registered = ops.gradient_registry._registry
    for name in [name for name in registered if name.startswith("CustomGradient-")]:
        del registered[name]


def mean_scores(results: Sequence[Mapping[str, Any]], objective: str) -> dict[str, float]:
    """Return the mean of each validation score over a trial's runs.

    Raises:
        RunError: if a run has no score for the objective.
    """
    recorded = [
        name for name in OBJECTIVES if all(result.get(name) is not None for result in results)
    ]
    if objective not in recorded:
        raise RunError(
            f"search.objective = {objective!r}: the validation reviews are all of one class; "
            "choose another objective, or validate on more reviews (data.validation_split)"
        )
    return {name: statistics.fmean(result[name] for result in results) for name in recorded}
