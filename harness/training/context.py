"""What a run is handed: which run it is, what computes it, and who follows it.

TensorFlow is not imported, so that `launch` can check all of it first.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.compute.execution_plan import ExecutionPlan
from harness.data.dataset import Dataset
from harness.job import Job
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.rendezvous import WorkerGroup
from harness.system.console import Console
from harness.system.resource_monitor import ResourceMonitor
from harness.system.signals import StopRequest
from harness.tracking.run_dir import RunDirectory, run_identity

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class RunContext:
    """Which run this is: a job on a dataset, in a folder."""

    run: RunDirectory
    job: Job
    dataset: Dataset

    @property
    def identity(self) -> str:
        """What the run's checkpoints belong to."""
        return run_identity(self.job, self.dataset.checksum)


@dataclass(frozen=True)
class Compute:
    """What computes a run."""

    strategy: "tf.distribute.Strategy"
    plan: ExecutionPlan
    allocation: SlurmEnvironment | None = None
    devices: str | None = None  # as requested by `--devices`
    worker_group: WorkerGroup | None = None  # of a run on several nodes
    is_shared: bool = False  # the process trains other runs too, and keeps their GPU memory


@dataclass(frozen=True)
class Observers:
    """Who follows a run, and who can stop it.

    On several nodes only the chief's console is read; all workers take part in a stop.
    """

    console: Console
    monitor: ResourceMonitor
    stop: StopRequest
