"""What Slurm says about this process: the one place that knows its variables' names."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Allocation:
    """The Slurm job that this process belongs to."""

    job_id: str
    num_nodes: int
    cpus_per_task: int | None
    num_tasks: int  # of this job step, 1 outside of one
    rank: int  # of this process among them, from 0
    node: str  # as Slurm names it; several nodes of a test cluster share a host name
    node_list: str  # of the step, or else of the job, such as n[08-10]
    submit_host: str  # where sbatch or salloc was called, often a login node
    restarts: int  # how often Slurm put the job back into its queue
    max_requeues: int | None  # set by our job scripts, which requeue a job that was interrupted
    log: str | None  # the file that our job scripts print into
    variables: dict[str, str]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Allocation | None":
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
            num_tasks=(number("SLURM_STEP_NUM_TASKS") or 1) if in_step else 1,
            rank=(number("SLURM_PROCID") or 0) if in_step else 0,
            node=environment.get("SLURMD_NODENAME", ""),
            node_list=environment.get("SLURM_STEP_NODELIST")
            or environment.get("SLURM_JOB_NODELIST", ""),
            submit_host=environment.get("SLURM_SUBMIT_HOST", ""),
            restarts=number("SLURM_RESTART_COUNT") or 0,
            max_requeues=number("HARNESS_MAX_REQUEUES"),
            log=environment.get("HARNESS_LOG"),
            variables={
                name: value
                for name, value in sorted(environment.items())
                # A job's token would let whoever reads the record act for it.
                if name.startswith("SLURM_") and "JWT" not in name
            },
        )


def given_cpus(allocation: Allocation | None) -> int:
    """The CPUs that this process may use: Slurm's word, or its affinity where there is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given = allocation.cpus_per_task if allocation else None
    return max(1, min(affinity or 1, given or affinity or 1))
