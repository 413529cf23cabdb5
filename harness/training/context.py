"""The parts of a run: its job, data and folder; its devices and plan; its observers.

This module doesn't import TensorFlow, so `launch` can check a run before the slow import.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.compute.execution_plan import ExecutionPlan
from harness.data.dataset import Dataset
from harness.data.word_vectors import WordVectors, open_vectors
from harness.errors import InputError
from harness.job.keys import Job
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.nodes import WorkerGroup
from harness.system.console import Console
from harness.system.processes import StopRequest
from harness.system.resource_monitor import ResourceMonitor
from harness.tracking.run_dir import RECORD, RunDirectory, first_start, run_identity

if TYPE_CHECKING:
    import tensorflow as tf


def known_words(job: Job, dataset: Dataset) -> Sequence[str]:
    """The words in the model's vocabulary, the most frequent first; their indices begin with 4."""
    return dataset.vocab[: job.data.vocab_size - 4]


@dataclass(frozen=True)
class RunContext:
    """A job on a dataset, in a folder."""

    run: RunDirectory
    job: Job
    dataset: Dataset
    vectors: WordVectors | None = None  # pretrained, of the words in the vocabulary

    @classmethod
    def open(cls, run: RunDirectory, job: Job, dataset: Dataset) -> "RunContext":
        """The context of a run, with the word vectors of its job.

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
        """The checksum of job and data that the run's checkpoints must have."""
        vectors = self.vectors.checksum if self.vectors else ""
        return run_identity(self.job, self.dataset.checksum + vectors)


@dataclass(frozen=True)
class Compute:
    """The devices that compute a run, and how."""

    strategy: "tf.distribute.Strategy"
    plan: ExecutionPlan
    allocation: SlurmEnvironment | None = None
    devices: str | None = None  # as requested by `--devices`
    worker_group: WorkerGroup | None = None  # of a run on several nodes
    is_trial: bool = False  # its process also trains other trials

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run's files."""
        return self.worker_group is None or self.worker_group.is_chief


@dataclass(frozen=True)
class Observers:
    """The console, the monitor of the machine, and the request to stop.

    On several nodes only the chief prints; all workers take part in a stop.
    """

    console: Console
    monitor: ResourceMonitor
    stop: StopRequest
