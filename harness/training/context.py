"""What a run is handed: which run it is, what computes it, and who follows it.

TensorFlow is not imported, so that `launch` can check all of it first.
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
    """The words in the model's vocabulary, the most frequent first: indices 4 and up."""
    return dataset.vocab[: job.data.vocab_size - 4]


@dataclass(frozen=True)
class RunContext:
    """Which run this is: a job on a dataset, in a folder."""

    run: RunDirectory
    job: Job
    dataset: Dataset
    vectors: WordVectors | None = None  # pretrained ones, of the words that the job knows

    @classmethod
    def open(cls, run: RunDirectory, job: Job, dataset: Dataset) -> "RunContext":
        """The context of a run, with the vectors that its job names.

        Raises:
            InputError: if they can't be read, or are not those that the run began with.
        """
        if not job.model.embeddings:
            return cls(run, job, dataset)
        path = Path(job.model.embeddings)
        vectors = open_vectors(path, known_words(job, dataset), job.model.embedding_dim)
        began = first_start(run.certain_json(RECORD)).get("embeddings", vectors.checksum)
        if began != vectors.checksum:
            raise InputError(
                f"run {run.folder}: model.embeddings {path} has changed since it was begun "
                f"(checksum {began[:12]}, here {vectors.checksum[:12]}); put the file back as it "
                "was, or start a new run"
            )
        return cls(run, job, dataset, vectors)

    @property
    def identity(self) -> str:
        """What the run's checkpoints belong to."""
        vectors = self.vectors.checksum if self.vectors else ""
        return run_identity(self.job, self.dataset.checksum + vectors)


@dataclass(frozen=True)
class Compute:
    """What computes a run."""

    strategy: "tf.distribute.Strategy"
    plan: ExecutionPlan
    allocation: SlurmEnvironment | None = None
    devices: str | None = None  # as requested by `--devices`
    worker_group: WorkerGroup | None = None  # of a run on several nodes
    is_trial: bool = False  # of a process that trains others too, and keeps their GPU memory

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes the run's files."""
        return self.worker_group is None or self.worker_group.is_chief


@dataclass(frozen=True)
class Observers:
    """Who follows a run, and who can stop it.

    On several nodes only the chief's console is read; all workers take part in a stop.
    """

    console: Console
    monitor: ResourceMonitor
    stop: StopRequest
