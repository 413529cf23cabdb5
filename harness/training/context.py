"""The parts of a run: `RunContext` (job and data) and `Compute` (devices, console).

This module doesn't import TensorFlow, so `launch` can check a run before the slow import.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.compute.execution_plan import ExecutionPlan
from harness.data.dataset import Dataset
from harness.data.vocabulary import WordVectors, open_vectors
from harness.errors import InputError
from harness.job.keys import Job
from harness.job.search import TrialRow
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.nodes import WorkerGroup
from harness.system.console import Console
from harness.system.processes import StopRequest
from harness.system.resource_monitor import ResourceMonitor
from harness.tracking.run_dir import RECORD, RunDirectory, first_start, run_identity

if TYPE_CHECKING:
    import tensorflow as tf


def known_words(job: Job, dataset: Dataset) -> Sequence[str]:
    """Return the model's vocabulary, the most frequent word first; the first word has index 4."""
    return dataset.vocab[: job.data.vocab_size - 4]


@dataclass(frozen=True)
class RunContext:
    """A run: its folder, its job and its data."""

    run: RunDirectory
    job: Job
    dataset: Dataset
    vectors: WordVectors | None = None  # pretrained vectors of the words in the vocabulary

    @classmethod
    def open(cls, run: RunDirectory, job: Job, dataset: Dataset) -> "RunContext":
        """Return the context of a run, with the word vectors that its job names.

        Raises:
            InputError: if the vectors are unreadable, or have changed since the run began.
        """
        if not job.model.embeddings:
            return cls(run, job, dataset)
        path = Path(job.model.embeddings)
        vectors = open_vectors(path, known_words(job, dataset), job.model.embedding_dim)
        began = first_start(run.certain_json(RECORD)).get("embeddings", vectors.checksum)
        if began != vectors.checksum:
            raise InputError(
                f"run {run.folder}: model.embeddings {path} has changed since the run began "
                f"(checksum {began[:12]}, now {vectors.checksum[:12]}); restore the file, or start "
                "a new run"
            )
        return cls(run, job, dataset, vectors)

    @property
    def identity(self) -> str:
        """The checksum of job and data. The run refuses a checkpoint with another identity."""
        vectors = self.vectors.checksum if self.vectors else ""
        return run_identity(self.job, self.dataset.checksum + vectors)


@dataclass(frozen=True)
class Compute:
    """The devices of a run, the plan for using them, and the console, monitor and stop request.

    On several nodes only the chief prints. A stop request to one worker stops all workers.
    """

    strategy: "tf.distribute.Strategy"
    plan: ExecutionPlan
    console: Console
    monitor: ResourceMonitor  # measures the load of the machine
    stop: StopRequest  # stores the signal that asks the run to stop
    allocation: SlurmEnvironment | None = None
    devices: str | None = None  # the requested devices, written as for `--devices`
    worker_group: WorkerGroup | None = None  # the workers, if the run uses several nodes
    # The row of a trial on TensorBoard's HParams page; None if the run is no trial of a search. One
    # process can train several trials, one after another.
    trial: TrialRow | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run's files."""
        return self.worker_group is None or self.worker_group.is_chief
