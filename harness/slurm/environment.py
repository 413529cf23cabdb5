"""Slurm's environment variables; no other module reads them."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.system.console import quoted
from harness.system.gpu import num_cards, visible_names

RETRY_MEMORY = "HARNESS_RETRY_MEMORY"
ARRAY_SEEDS = "HARNESS_ARRAY_SEEDS"  # seeds of tasks 1, 2, …; if unset, a task's index is its seed
OF_ARRAYS = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
# Variables that users set for interactive use. With these variables, Slurm's programs may hide
# jobs, ask for confirmation, or change the time format.
OF_USERS = re.compile(r"(SQUEUE|SCANCEL|SINFO)_.*|SLURM_TIME_FORMAT")
# Variables of the job that calls sbatch; the new job would inherit them.
OF_CALLERS = re.compile(r"SLURM_(?!CONF|CLUSTERS|JWT|SACK|DEBUG|TIME_FORMAT).*")
# These variables contain the job's requests for GPUs. While they are set, srun makes the same
# requests for each job step.
OF_GPUS = tuple(f"SLURM_GPUS{of}" for of in ("", "_PER_NODE", "_PER_TASK", "_PER_SOCKET"))
FLAGS = "HARNESS_FLAGS"  # the user's sbatch options, quoted for a shell
FIRST_JOB = "HARNESS_FIRST_JOB"  # id of the job that began the run, set in later jobs of the run
BATCH_JOB = "HARNESS_BATCH_JOB"  # id of the job, set by a job script for the command that it runs
MAX_REQUEUES = 2  # largest number of successive requeues without a new step
MAX_LIMIT_S = 365 * 86_400  # a time limit of this length or more counts as no limit


@dataclass(frozen=True)
class SlurmEnvironment:
    """The Slurm job that this process belongs to."""

    job_id: str
    num_nodes: int
    cpus_per_task: int | None
    in_step: bool  # whether srun started this process
    step: str  # number of the job step, empty outside of a step
    num_tasks: int  # number of tasks in the job step, 1 outside of a step
    rank: int  # rank of this process in the job step, from 0
    node: str  # this node's name in Slurm; a test cluster's nodes share one host name
    node_list: str  # the nodes of the job step or else of the job, such as n[08-10]
    nodes: tuple[str, ...]  # names of the job's nodes, if a job script exported them
    submit_host: str  # the host on which sbatch or salloc ran, often a login node
    restarts: int  # how often the job was requeued
    is_batch: bool  # whether a job script of the harness runs this process; False under salloc
    max_requeues: int  # largest number of successive requeues without a new step
    retries_memory: bool  # whether to request more memory after the job ran out of memory
    is_submitted: bool  # whether `harness submit`, which removes conflicting options, was used
    log: str | None  # the job's log file, if a job script exported its path
    flags: str  # the user's sbatch options, quoted for a shell
    first_job_id: str  # id of the job that began the run
    variables: dict[str, str]  # all SLURM_* variables except for the job's token

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ
    ) -> "SlurmEnvironment | None":
        """Read the job from environment variables; return None outside of Slurm."""
        job_id = environment.get("SLURM_JOB_ID")
        if not job_id:
            return None

        def number(name: str) -> int | None:
            return _whole(environment, name)

        # Outside of a job step, SLURM_PROCID and SLURM_STEP_NUM_TASKS don't describe this process.
        in_step = "SLURM_STEP_ID" in environment
        return cls(
            job_id=job_id,
            num_nodes=number("SLURM_JOB_NUM_NODES") or 1,
            cpus_per_task=number("SLURM_CPUS_PER_TASK"),
            in_step=in_step,
            step=environment.get("SLURM_STEP_ID", ""),
            num_tasks=(number("SLURM_STEP_NUM_TASKS") or 1) if in_step else 1,
            rank=(number("SLURM_PROCID") or 0) if in_step else 0,
            node=environment.get("SLURMD_NODENAME", ""),
            node_list=environment.get(f"SLURM_{'STEP' if in_step else 'JOB'}_NODELIST", ""),
            nodes=tuple(environment.get("HARNESS_NODES", "").split()),
            submit_host=environment.get("SLURM_SUBMIT_HOST", ""),
            restarts=number("SLURM_RESTART_COUNT") or 0,
            is_batch=environment.get(BATCH_JOB) == job_id,
            max_requeues=MAX_REQUEUES if (num := number("HARNESS_MAX_REQUEUES")) is None else num,
            retries_memory=environment.get(RETRY_MEMORY) == "1",
            is_submitted=environment.get("HARNESS_SNAPSHOT") == "1",
            log=environment.get("HARNESS_LOG"),
            flags=environment.get(FLAGS, ""),
            first_job_id=environment.get(FIRST_JOB) or job_id,
            variables={
                name: value
                for name, value in sorted(environment.items())
                # With the job's token, a reader of the record could control the job.
                if name.startswith("SLURM_") and "JWT" not in name
            },
        )

    @property
    def own_id(self) -> str:
        """The id to pass to Slurm's programs, such as 42_3 for an array task.

        In an array, `job_id` is ambiguous: one task's `job_id` is also the id of the whole array.
        """
        array, task, _ = (self.variables.get(name) for name in OF_ARRAYS)
        return f"{array}_{task}" if array and task else self.job_id


def array_seed(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the seed of this array task: a listed seed, else its index; None outside of arrays."""
    task = environment.get(OF_ARRAYS[1])
    listed = dict(enumerate(environment.get(ARRAY_SEEDS, "").split(), 1))
    # The list may belong to another, shorter array, if a shell exported it.
    return listed.get(int(task), task) if task else None


def not_own(variables: Mapping[str, str], shown: str) -> list[str]:
    """Return names of variables for memory and GPUs that come from the shell that called sbatch.

    Args:
        variables: the job's environment variables.
        shown: the output of `scontrol show job`, which shows the job's own requests.
    """
    kinds = {"MinMemoryCPU=": "CPU", "MemPerTres=": "GPU", "MinMemoryNode=": "NODE"}
    own = next((kind for word, kind in kinds.items() if f" {word}" in f" {shown}"), None)
    found = [kind for kind in kinds.values() if variables.get(f"SLURM_MEM_PER_{kind}")]
    memory = [f"SLURM_MEM_PER_{kind}" for kind in found if own in found and kind != own]
    asked = " ".join(re.findall(r"\bTresPer\w+=(\S+)", shown)).replace("=", ":")
    given = {name: variables.get(name) for name in OF_GPUS if shown}
    return memory + [name for name, num in given.items() if num and f"gpu:{num}" not in asked]


def num_tasks_of_array(allocation: SlurmEnvironment | None) -> int:
    """Return the number of tasks in the job's array; 1 outside of an array."""
    return (_whole(allocation.variables, OF_ARRAYS[2]) if allocation else None) or 1


def _whole(variables: Mapping[str, str], name: str) -> int | None:
    """Return a variable's value as an integer; None if it is unset, negative or not an integer."""
    text = variables.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else None


def given_cpus(allocation: SlurmEnvironment | None) -> int:
    """Return the number of CPUs that this process may use.

    The number is the smallest of the CPU affinity, the job's CPUs per task and HARNESS_CPUS.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limits = (
        affinity,
        allocation.cpus_per_task if allocation else None,
        _whole(os.environ, "HARNESS_CPUS"),
    )
    return min((limit for limit in limits if limit), default=1)


def given_gpus(allocation: SlurmEnvironment) -> int | None:
    """Return the number of the job's GPUs on this node; None if Slurm's variables do not say."""
    num = _whole(allocation.variables, "SLURM_GPUS_ON_NODE")
    return num if num is not None else len(listed_gpus(allocation)) or None


def listed_gpus(allocation: SlurmEnvironment) -> tuple[str, ...]:
    """Return the indices of the job's GPUs on this node; empty if Slurm's variables do not say."""
    listed = allocation.variables.get("SLURM_JOB_GPUS", "")
    return tuple(listed.split(",")) if listed else ()


def visible_gpus() -> int:
    """Return how many GPUs this process sees, without loading TensorFlow."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len(visible_names(chosen))
    return num_cards() or 0


def given_memory_gb(allocation: SlurmEnvironment | None) -> float | None:
    """Return the job's memory on this node in GB; None if Slurm's variables do not say."""
    if allocation is None:
        return None
    on_node = {
        "SLURM_MEM_PER_NODE": 1,
        "SLURM_MEM_PER_CPU": _whole(allocation.variables, "SLURM_CPUS_ON_NODE") or 0,
        "SLURM_MEM_PER_GPU": given_gpus(allocation) or 0,
    }
    for name, factor in on_node.items():
        # 0 means all memory of the node
        if mb := factor * (_whole(allocation.variables, name) or 0):
            return mb * 2**20 / 1e9
    return None


def given_limit_s(variables: Mapping[str, str]) -> int | None:
    """Return the job's time limit in seconds; None if Slurm's variables do not say."""
    start, end = (_whole(variables, f"SLURM_JOB_{name}_TIME") for name in ("START", "END"))
    return None if start is None or end is None else end - start


def request_args(known: Mapping[str, str], variables: Mapping[str, str]) -> list[str]:
    """Return a job's GRES, constraint, node lists, reservation, … as sbatch options.

    A later job that continues the run needs these options and those that `asked_of` returns.

    Args:
        known: the fields of `scontrol show job`.
        variables: the job's environment variables.
    """
    tasks = variables.get("SLURM_NTASKS")  # set only for --ntasks and --ntasks-per-…
    # The options --gpus and --gpus-per-task may contain the type of the GPUs, as `h100:2`.
    others = " ".join(known.get(f"TresPer{of}", "") for of in ("Job", "Task", "Socket"))
    typed = re.findall("gpu:[^:, ]+:[0-9]+", others.replace("=", ":"))
    gres = [re.sub("gres[/:]", "", known.get("TresPerNode", "")), *typed]
    requested = {
        "gres": ",".join(filter(None, gres)),
        # All memory of the node. Slurm also shows 0 for --mem-per-gpu.
        "mem": "0" if known.get("MinMemoryNode") == "0" and not known.get("MemPerTres") else None,
        "constraint": known.get("Features"),
        "exclude": known.get("ExcNodeList"),
        "nodelist": known.get("ReqNodeList"),
        "reservation": known.get("Reservation"),
        "licenses": known.get("Licenses"),
        "ntasks": tasks if tasks == known.get("NumTasks") else None,
    }
    return [
        f"--{name}={value}"
        for name, value in requested.items()
        if value not in (None, "(null)", "")
    ]


def asked_of(allocation: SlurmEnvironment) -> dict[str, Any]:
    """Return the resources that the job requested, for a later job that continues its run.

    Returns:
        A dictionary: `nodes`, the number of nodes; `gpus`, the number of GPUs per node; `options`,
        the sbatch options derived from Slurm's variables; `flags`, the user's sbatch options;
        `retry_memory`, whether the user set --retry-memory. If Slurm is older than 23.02, `options`
        contains no time limit.
    """
    variables = allocation.variables
    limit_s = given_limit_s(variables) or 0
    by_part = {
        f"mem-per-{kind}": variables.get(f"SLURM_MEM_PER_{kind.upper()}") for kind in ("gpu", "cpu")
    }
    # For --mem=0 Slurm sets no variable; `request_args` adds the option to the flags.
    all_memory = "0" if "--mem=0" in allocation.flags.split() else None
    per_node = {"mem": variables.get("SLURM_MEM_PER_NODE") or all_memory}
    memory = by_part if any(by_part.values()) else per_node
    options = {
        "partition": variables.get("SLURM_JOB_PARTITION"),
        "account": variables.get("SLURM_JOB_ACCOUNT"),
        "qos": variables.get("SLURM_JOB_QOS"),
        "time": str(-(-limit_s // 60)) if 0 < limit_s < MAX_LIMIT_S else None,  # in minutes
        **{name: f"{mb}M" for name, mb in memory.items() if mb},
        "cpus-per-task": variables.get("SLURM_CPUS_PER_TASK"),
    }
    return {
        "nodes": allocation.num_nodes,
        "gpus": variables.get("SLURM_GPUS_ON_NODE", "0"),
        "options": [f"--{name}={value}" for name, value in options.items() if value],
        "flags": allocation.flags,
        "retry_memory": allocation.retries_memory,
    }


def resume_command(folder: Path | str) -> str:
    """Return the command that continues a run or sweep; in a batch job it submits a new job."""
    own = SlurmEnvironment.from_environment()
    as_job = own is not None and own.is_batch
    return f"harness {'submit --resume' if as_job else 'resume'} {quoted(folder)}"


def node_name() -> str:
    """Return this machine's name in Slurm, or else its host name."""
    own = SlurmEnvironment.from_environment()
    return (own.node if own else "") or socket.gethostname()


def describe_given(allocation: SlurmEnvironment) -> str:
    """Describe the job's resources, such as `job 7 on n10: 2 GPUs, 4 CPUs, 17.2 GB`."""
    gpus, memory_gb = given_gpus(allocation) or 0, given_memory_gb(allocation)
    cpus = allocation.cpus_per_task
    resources = [
        f"{gpus or 'no'} GPU{'' if gpus == 1 else 's'}",
        f"{cpus} CPU{'' if cpus == 1 else 's'}" if cpus else "",
        f"{memory_gb:.1f} GB" if memory_gb else "",
    ]
    where = allocation.node_list or allocation.node or "this node"
    each = "each of " if allocation.num_nodes > 1 else ""
    return f"job {allocation.job_id} on {each}{where}: {', '.join(filter(None, resources))}"


def unmet_request(allocation: SlurmEnvironment) -> str | None:
    """Return a message with the remedy if a request for GPUs was not fulfilled; else None.

    A user's option such as --gpus does not replace a script's `--gres`: Slurm obeys both.
    """
    num = given_gpus(allocation) or 0
    num_in_job = num * allocation.num_nodes
    numbers = {"--gpus-per-node": num, "--gpus-per-task": num, "--gpus": num_in_job}
    for option, num_given in numbers.items():
        name = f"SLURM_{option[2:].replace('-', '_').upper()}"
        value = allocation.variables.get(name, "")
        count = value.rpartition(":")[2]
        # For `--gpus=2` with `--gres=gpu:1`, Slurm allocates two nodes with one GPU each.
        is_spread = num == 1 < num_given and not allocation.is_submitted
        if count.isdigit() and (num_given < int(count) or is_spread):
            return (
                f"{option}={value} does not replace the script's --gres: Slurm obeys both; to "
                f"get the GPUs on one node, use --gres=gpu:{value}, or {option}={value} together "
                "with --gres=none"
            )
    return None


def report_node_fault(reason: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Report that this node is faulty, so that the job continues without this node.

    Returns:
        Whether the report was written; False if no job script has set HARNESS_NODE_FAULTS.
    """
    path = environment.get("HARNESS_NODE_FAULTS")
    node = environment.get("SLURMD_NODENAME")
    if not path or not node:
        return False
    with Path(path).open("a") as file:
        file.write(f"{node} {' '.join(reason.split())}\n")
    return True
