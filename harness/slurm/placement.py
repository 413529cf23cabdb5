"""Slots for processes that share a machine or an allocation: a node, a GPU or CPUs, memory."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import InputError
from harness.slurm import client
from harness.slurm.environment import (
    SlurmEnvironment,
    given_cpus,
    given_gpus,
    given_memory_gb,
    visible_gpus,
)
from harness.system import gpu
from harness.system.processes import available_gb, memory_limit_gb, total_memory_gb

MAX_WORKERS = 1000
GPU_INDEX = "HARNESS_GPU"  # of a process's slot, among those that it sees on its node


def usable_memory_gb(allocation: SlurmEnvironment | None) -> float:
    """The memory that this process and its children may take here, in GB."""
    limits = (total_memory_gb(), available_gb(), memory_limit_gb(), given_memory_gb(allocation))
    return min(limit for limit in limits if limit is not None)


@dataclass(frozen=True)
class Slot:
    """Where a worker runs: a GPU of a node, or some of its CPUs."""

    node: str | None  # as Slurm names it, None for this machine without Slurm
    gpu: int | None  # its index among those given on the node
    threads: int  # its share of the CPUs
    cpus: int  # given on the node, shared by all its workers

    def variables(self) -> dict[str, str]:
        """The environment variables that keep a process of ours in its slot."""
        variables = {"HARNESS_CPUS": str(self.threads)}
        if self.gpu is not None:
            variables[GPU_INDEX] = str(self.gpu)
        return variables


def take_own_gpu() -> None:
    """Leave this process only the GPU of its slot, before CUDA is started.

    The slot has the GPU's index alone, since every node has a list of its own.
    """
    index = os.environ.pop(GPU_INDEX, "")
    if index.isdigit():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu_name(int(index))


def gpu_name(index: int) -> str:
    """A GPU as CUDA_VISIBLE_DEVICES names it, by its index among those that are visible here."""
    listed = gpu.visible_names(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return listed[index] if index < len(listed) else str(index)


def num_in_memory(allocation: SlurmEnvironment | None, process_gb: float) -> int:
    """How many processes of so much memory an allocation, or this machine, holds; one at least."""
    num_nodes = allocation.num_nodes if allocation else 1
    return num_nodes * max(1, int(usable_memory_gb(allocation) / process_gb))


def allocate_slots(
    allocation: SlurmEnvironment | None,
    num_workers: int | None,
    *,
    workers_per_gpu: int = 1,
    option: str = "--workers-per-gpu",
    devices: str | None = None,
    at_most: int = MAX_WORKERS,
) -> list[Slot]:
    """One slot for each worker, spread over nodes and GPUs.

    Several single-threaded workers achieve far more than one with all CPUs, since the operations
    of a recurrent network are too small to be divided.

    Args:
        num_workers: how many; by default one per GPU or CPU.
        workers_per_gpu: how many share a GPU.
        option: by which a user says so, for messages.
        devices: `cpu` leaves GPUs alone.
        at_most: the number of tasks, or what `num_in_memory` allows.

    Raises:
        InputError: if that is more than the allocation holds.
    """
    nodes: Sequence[str | None] = client.job_nodes(allocation) if allocation else [None]
    cpus = given_cpus(allocation)
    gpus = (given_gpus(allocation) if allocation else visible_gpus()) or 0
    if devices == "cpu":
        gpus = 0
    if workers_per_gpu > 1 and not gpus:
        raise InputError(
            f"{option} {workers_per_gpu}: there is no GPU here; leave it out, or say how "
            "many by --workers"
        )
    room = len(nodes) * (gpus * workers_per_gpu if gpus else cpus)
    wanted = num_workers or room
    if wanted > MAX_WORKERS:
        raise InputError(f"--workers {wanted}: should be {MAX_WORKERS} at most")
    if (allocation or gpus) and wanted > room:
        what = f"{gpus} GPUs" if gpus else f"{cpus} CPUs"
        more = f", or raise {option}" if gpus else ""
        raise InputError(
            f"--workers {wanted}: {len(nodes)} node{'s' if len(nodes) > 1 else ''} with {what} "
            f"hold {room}; ask for fewer or for a larger allocation{more}"
        )
    wanted = min(wanted, at_most)
    threads = max(1, cpus // -(-wanted // len(nodes)))
    return [
        Slot(nodes[i % len(nodes)], (i // len(nodes)) % gpus if gpus else None, threads, cpus)
        for i in range(wanted)
    ]


def srun_args(slot: Slot, name: str) -> list[str]:
    """`srun` for one task on a slot's node, which shares the job's GPUs with the other steps.

    It shares all CPUs too, since overlapping steps would each get the first ones. Without --mem,
    srun refuses a second variable for memory, which the session that called sbatch may have left.
    """
    nodelist = [f"--nodelist={slot.node}"] if slot.node else []
    return [
        *("srun", "--overlap", "--nodes=1", "--ntasks=1", *nodelist, "--cpu-bind=none", "--mem=0"),
        *(f"--cpus-per-task={slot.cpus}", f"--job-name={name}", "--export=ALL", "--quiet"),
    ]


def needs_steps(allocation: SlurmEnvironment | None) -> bool:
    """Whether workers run as job steps. Without srun, as in a container, they are child processes.

    Raises:
        InputError: if there are several nodes, which only srun can reach.
    """
    if allocation is None:
        return False
    if client.has_client("srun"):
        return True
    if allocation.num_nodes > 1:
        raise InputError(
            "srun: is not on the PATH, and without it all processes are on one node; ask for "
            "--nodes=1"
        )
    return False
