"""What Slurm says about this process: the one place that knows its variables' names."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.slurm.client import ask


@dataclass(frozen=True)
class SlurmEnvironment:
    """The Slurm job that this process belongs to."""

    job_id: str
    num_nodes: int
    cpus_per_task: int | None
    in_step: bool  # started by srun
    num_tasks: int  # of this job step, 1 outside of one
    rank: int  # of this process among them, from 0
    node: str  # as Slurm names it; several nodes of a test cluster share a host name
    node_list: str  # of the step, such as n[08-10]
    nodes: tuple[str, ...]  # its names one by one, where our job scripts have asked for them
    submit_host: str  # where sbatch or salloc was called, often a login node
    restarts: int  # how often Slurm put the job back into its queue
    max_requeues: int | None  # set by our job scripts, which requeue a job that was interrupted
    secret: str | None  # of the workers of a step, made by our job scripts
    log: str | None  # the file that our job scripts print into
    variables: dict[str, str]

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ
    ) -> "SlurmEnvironment | None":
        """Read the allocation, `None` outside Slurm."""
        job_id = environment.get("SLURM_JOB_ID")
        if not job_id:
            return None

        def number(name: str) -> int | None:
            text = environment.get(name, "")
            return int(text) if text.isdigit() else None

        # salloc and sbatch set a rank and a number of tasks too, for steps that are yet to come.
        in_step = "SLURM_STEP_ID" in environment
        return cls(
            job_id=job_id,
            num_nodes=number("SLURM_JOB_NUM_NODES") or 1,
            cpus_per_task=number("SLURM_CPUS_PER_TASK"),
            in_step=in_step,
            num_tasks=(number("SLURM_STEP_NUM_TASKS") or 1) if in_step else 1,
            rank=(number("SLURM_PROCID") or 0) if in_step else 0,
            node=environment.get("SLURMD_NODENAME", ""),
            node_list=environment.get("SLURM_STEP_NODELIST", ""),
            nodes=tuple(environment.get("HARNESS_NODES", "").split()),
            submit_host=environment.get("SLURM_SUBMIT_HOST", ""),
            restarts=number("SLURM_RESTART_COUNT") or 0,
            max_requeues=number("HARNESS_MAX_REQUEUES"),
            secret=environment.get("HARNESS_SECRET"),
            log=environment.get("HARNESS_LOG"),
            variables={
                name: value
                for name, value in sorted(environment.items())
                # A job's token would let whoever reads the record act for it.
                if name.startswith("SLURM_") and "JWT" not in name
            },
        )


def node_names(allocation: SlurmEnvironment) -> list[str]:
    """The nodes of a job step in the order of its tasks, named as Slurm names them.

    Only Slurm itself expands its lists rightly: `n[08-10]` is n08, n09, n10. In a container, where
    its clients may be missing, the job scripts have asked before.
    """
    if allocation.nodes:
        return list(allocation.nodes)
    return ask("scontrol", "show", "hostnames", allocation.node_list).split()


def job_nodes(allocation: SlurmEnvironment) -> list[str]:
    """The nodes of the whole job; of one node that Slurm does not name here, an empty name.

    Raises:
        InputError, RunError: if Slurm must be asked and does not answer.
    """
    if allocation.nodes:
        return list(allocation.nodes)
    if allocation.num_nodes > 1:
        return ask(
            "scontrol", "show", "hostnames", allocation.variables.get("SLURM_JOB_NODELIST", "")
        ).split()
    return [allocation.node]


def given_cpus(allocation: SlurmEnvironment | None) -> int:
    """The CPUs that this process may use: Slurm's word, or its affinity where there is less.

    `HARNESS_CPUS` says how many of them, for processes that share a machine.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given = allocation.cpus_per_task if allocation else None
    share = os.environ.get("HARNESS_CPUS", "")
    chosen = int(share) if share.isdigit() else affinity
    return max(1, min(affinity or 1, given or affinity or 1, chosen or 1))


def given_gpus(allocation: SlurmEnvironment) -> int | None:
    """The GPUs that Slurm gave the job on this node, None where it does not say."""
    count = allocation.variables.get("SLURM_GPUS_ON_NODE", "")
    listed = allocation.variables.get("SLURM_JOB_GPUS", "")
    return int(count) if count.isdigit() else len(listed.split(",")) if listed else None


def visible_gpus() -> int:
    """The GPUs of this machine that a process may use, told without TensorFlow."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len([part for part in chosen.split(",") if part.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))  # the driver's, one a GPU


def given_memory_gb(allocation: SlurmEnvironment | None) -> float | None:
    """The memory that Slurm gave the job on this node, None where it does not say."""
    mb = allocation.variables.get("SLURM_MEM_PER_NODE", "") if allocation else ""
    return int(mb) * 2**20 / 1e9 if mb.isdigit() and int(mb) else None  # 0 is all of the node's


def scratch_folder(allocation: SlurmEnvironment) -> Path:
    """Where a job keeps temporary files: the site's folder for the job, or else TMPDIR."""
    return Path(allocation.variables.get("SLURM_TMPDIR") or tempfile.gettempdir())
