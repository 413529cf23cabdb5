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
    variables: dict[str, str]

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Allocation | None":
        """Read the allocation, `None` outside Slurm."""
        job_id = environment.get("SLURM_JOB_ID")
        if not job_id:
            return None
        cpus = environment.get("SLURM_CPUS_PER_TASK", "")
        nodes = environment.get("SLURM_JOB_NUM_NODES", "")
        return cls(
            job_id=job_id,
            num_nodes=int(nodes) if nodes.isdigit() else 1,
            cpus_per_task=int(cpus) if cpus.isdigit() else None,
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
