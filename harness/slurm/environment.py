"""Slurm's environment variables: the only module that knows their names."""

import os
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.system.gpu import num_cards, visible_names

RETRY_MEMORY = "HARNESS_RETRY_MEMORY"
OF_ARRAYS = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
# Set for a user's own calls: they hide jobs, ask before a job is cancelled, change how times look.
OF_USERS = re.compile(r"(SQUEUE|SCANCEL|SINFO)_.*|SLURM_TIME_FORMAT")
# sbatch passes them on from the job that calls it, and the new job would take them for its own.
OF_CALLERS = re.compile(r"SLURM_(?!CONF|CLUSTERS|JWT|SACK|DEBUG|TIME_FORMAT).*")
# A request of the job, which srun would make again for each step.
OF_GPUS = tuple(f"SLURM_GPUS{of}" for of in ("", "_PER_NODE", "_PER_TASK", "_PER_SOCKET"))
FLAGS = "HARNESS_FLAGS"  # sbatch's own, that the job was asked for with
FIRST_JOB = "HARNESS_FIRST_JOB"  # of jobs that go on one after another
MAX_LIMIT_S = 365 * 86_400  # longer ones mean that there is no limit


@dataclass(frozen=True)
class SlurmEnvironment:
    """The Slurm job that this process belongs to."""

    job_id: str
    num_nodes: int
    cpus_per_task: int | None
    in_step: bool  # started by srun
    step: str  # its number among the steps of the job, empty outside of one
    num_tasks: int  # of this job step, 1 outside of one
    rank: int  # of this process among them, from 0
    node: str  # Slurm's name for it; the nodes of a test cluster share one host name
    node_list: str  # of the step, such as n[08-10]
    nodes: tuple[str, ...]  # the same, expanded, if our job scripts exported it
    submit_host: str  # where sbatch or salloc was called, often a login node
    restarts: int  # number of times that the job was requeued
    max_requeues: int | None  # set by our job scripts, which requeue an interrupted job
    retries_memory: bool  # ask for more memory after a kill for want of it
    is_submitted: bool  # by `harness submit`, which drops the script's --gres beside other options
    log: str | None  # the job's log file, if our job scripts named it
    flags: str  # sbatch's own, that the job was asked for with, as a shell would read them
    first_job_id: str  # of this job, or of the one with which its run began
    variables: dict[str, str]

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ
    ) -> "SlurmEnvironment | None":
        """Read the allocation; None outside Slurm."""
        job_id = environment.get("SLURM_JOB_ID")
        if not job_id:
            return None

        def number(name: str) -> int | None:
            return _whole(environment.get(name, ""))

        # salloc and sbatch also set a rank and a number of tasks, meant for later steps.
        in_step = "SLURM_STEP_ID" in environment
        return cls(
            job_id=job_id,
            num_nodes=number("SLURM_JOB_NUM_NODES") or 1,
            cpus_per_task=number("SLURM_CPUS_PER_TASK") or _per_task("cpu", environment),
            in_step=in_step,
            step=environment.get("SLURM_STEP_ID", ""),
            num_tasks=(number("SLURM_STEP_NUM_TASKS") or 1) if in_step else 1,
            rank=(number("SLURM_PROCID") or 0) if in_step else 0,
            node=environment.get("SLURMD_NODENAME", ""),
            node_list=environment.get("SLURM_STEP_NODELIST", ""),
            nodes=tuple(environment.get("HARNESS_NODES", "").split()),
            submit_host=environment.get("SLURM_SUBMIT_HOST", ""),
            restarts=number("SLURM_RESTART_COUNT") or 0,
            max_requeues=number("HARNESS_MAX_REQUEUES"),
            retries_memory=environment.get(RETRY_MEMORY) == "1",
            is_submitted=environment.get("HARNESS_SNAPSHOT") == "1",
            log=environment.get("HARNESS_LOG"),
            flags=environment.get(FLAGS, ""),
            first_job_id=environment.get(FIRST_JOB) or job_id,
            variables={
                name: value
                for name, value in sorted(environment.items())
                # A job's token would let any reader of the record act for the job.
                if name.startswith("SLURM_") and "JWT" not in name
            },
        )

    @property
    def job_node_list(self) -> str:
        """The nodes of the whole job, such as n[08-10]."""
        return self.variables.get("SLURM_JOB_NODELIST", "")

    @property
    def own_id(self) -> str:
        """The id for Slurm's programs; of a task of an array such as 42_3.

        The `job_id` of one task is that of the array, by which they would act on all tasks.
        """
        array, task, _ = (self.variables.get(name) for name in OF_ARRAYS)
        return f"{array}_{task}" if array and task else self.job_id


def array_task(variables: Mapping[str, str] = os.environ) -> str | None:
    """The number of this task of an array; None outside of one."""
    return variables.get(OF_ARRAYS[1]) or None


def not_own(variables: Mapping[str, str], shown: str) -> list[str]:
    """The variables for memory that a job has of its caller: sbatch passes on what that was told.

    Args:
        shown: what `scontrol show job` says of the job, which has memory by one option alone.
    """
    asked = {"MinMemoryCPU=": "CPU", "MemPerTres=": "GPU", "MinMemoryNode=": "NODE"}
    own = next((kind for word, kind in asked.items() if f" {word}" in f" {shown}"), None)
    given = [kind for kind in asked.values() if variables.get(f"SLURM_MEM_PER_{kind}")]
    return [f"SLURM_MEM_PER_{kind}" for kind in given if own in given and kind != own]


def num_tasks_of_array(allocation: SlurmEnvironment | None) -> int:
    """The number of tasks of the array that a job belongs to; 1 outside of one."""
    return (_whole(allocation.variables.get(OF_ARRAYS[2], "")) if allocation else None) or 1


def _per_task(name: str, variables: Mapping[str, str]) -> int | None:
    """A number in SLURM_TRES_PER_TASK, `cpu=4,gres/gpu:a100=2`; older ones have colons."""
    kind = r"(?::[A-Za-z][\w.-]*)?"
    found = re.search(
        rf"(?:^|,){name}{kind}[=:](\d+)(?:,|$)", variables.get("SLURM_TRES_PER_TASK", "")
    )
    return _whole(found[1]) if found else None


def _whole(text: str) -> int | None:
    """A number as Slurm writes it, None for what else a record may hold."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else None


def given_cpus(allocation: SlurmEnvironment | None) -> int:
    """The number of CPUs that this process may use: Slurm's, or the affinity's if that is less.

    `HARNESS_CPUS` says how many of them, for processes that share a machine.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given = allocation.cpus_per_task if allocation else None
    share = os.environ.get("HARNESS_CPUS", "")
    chosen = int(share) if share.isdigit() else affinity
    return max(1, min(affinity or 1, given or affinity or 1, chosen or 1))


def given_gpus(allocation: SlurmEnvironment) -> int | None:
    """The number of GPUs that Slurm gave the job on this node; None if it does not say."""
    num = _whole(allocation.variables.get("SLURM_GPUS_ON_NODE", ""))
    return num if num is not None else len(listed_gpus(allocation)) or None


def listed_gpus(allocation: SlurmEnvironment) -> tuple[str, ...]:
    """The indices of the GPUs that Slurm gave the job on this node; empty if it does not say."""
    listed = allocation.variables.get("SLURM_JOB_GPUS", "")
    return tuple(listed.split(",")) if listed else ()


def visible_gpus() -> int:
    """The number of GPUs here that a process may use, counted without TensorFlow."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len(visible_names(chosen))
    return num_cards() or 0


def given_memory_gb(allocation: SlurmEnvironment | None) -> float | None:
    """The memory in GB that Slurm gave the job on this node; None if it does not say."""
    if allocation is None:
        return None
    on_node = {
        "SLURM_MEM_PER_NODE": 1,
        "SLURM_MEM_PER_CPU": _number(allocation, "SLURM_CPUS_ON_NODE"),
        "SLURM_MEM_PER_GPU": given_gpus(allocation) or 0,
    }
    for name, factor in on_node.items():
        if mb := factor * _number(allocation, name):  # 0 means all of the node's
            return mb * 2**20 / 1e9
    return None


def _number(allocation: SlurmEnvironment, name: str) -> int:
    return _whole(allocation.variables.get(name, "")) or 0


def given_limit_s(variables: Mapping[str, str]) -> int | None:
    """The time limit of a job in seconds; None if Slurm does not tell it."""
    start, end = (_whole(variables.get(f"SLURM_JOB_{name}_TIME", "")) for name in ("START", "END"))
    return None if start is None or end is None else end - start


def request_args(known: Mapping[str, str], variables: Mapping[str, str]) -> list[str]:
    """The options of sbatch that a job keeps beside those of `asked_of`.

    Args:
        known: what `scontrol show job` says of the job, by its names.
        variables: of the job.
    """
    tasks = variables.get("SLURM_NTASKS")  # set only where a number was asked for
    asked = {
        "constraint": known.get("Features"),
        "exclude": known.get("ExcNodeList"),
        "nodelist": known.get("ReqNodeList"),
        "reservation": known.get("Reservation"),
        "licenses": known.get("Licenses"),
        "ntasks": tasks if tasks == known.get("NumTasks") else None,
    }
    return [
        f"--{name}={value}" for name, value in asked.items() if value not in (None, "(null)", "")
    ]


def asked_of(allocation: SlurmEnvironment) -> dict[str, Any]:
    """What a job asked for, by which a job that goes on with its run asks for the same.

    Returns:
        The nodes, the GPUs of each, sbatch's options for the rest as they are known from variables
        of Slurm, those that the user gave, and whether more memory is wanted after a kill. Slurm
        before 23.02 does not tell a job its time limit.
    """
    variables = allocation.variables
    limit_s = given_limit_s(variables) or 0
    by_part = {
        f"mem-per-{kind}": variables.get(f"SLURM_MEM_PER_{kind.upper()}") for kind in ("gpu", "cpu")
    }
    memory = by_part if any(by_part.values()) else {"mem": variables.get("SLURM_MEM_PER_NODE")}
    known = {
        "partition": variables.get("SLURM_JOB_PARTITION"),
        "account": variables.get("SLURM_JOB_ACCOUNT"),
        "qos": variables.get("SLURM_JOB_QOS"),
        "time": str(-(-limit_s // 60)) if 0 < limit_s < MAX_LIMIT_S else None,  # in minutes
        **{name: f"{mb}M" for name, mb in memory.items() if mb and mb != "0"},
        "cpus-per-task": variables.get("SLURM_CPUS_PER_TASK"),
    }
    return {
        "nodes": allocation.num_nodes,
        "gpus": variables.get("SLURM_GPUS_ON_NODE", "0"),
        "options": [f"--{name}={value}" for name, value in known.items() if value],
        "flags": allocation.flags,
        "retry_memory": allocation.retries_memory,
    }


def resume_command(folder: Path | str) -> str:
    """The command that goes on with a run or sweep: as a job, if this process is one."""
    own = SlurmEnvironment.from_environment()
    as_job = own is not None and own.max_requeues is not None  # which the job scripts set
    return f"harness {'submit --resume' if as_job else 'resume'} {shlex.quote(str(folder))}"


def node_name() -> str:
    """This machine, as Slurm names it if it does."""
    own = SlurmEnvironment.from_environment()
    return (own.node if own else "") or socket.gethostname()


def describe_given(allocation: SlurmEnvironment) -> str:
    """What Slurm gave the job: `job 7 on n10: 2 GPUs, 4 CPUs, 17.2 GB`."""
    gpus, memory_gb = given_gpus(allocation) or 0, given_memory_gb(allocation)
    given = [
        f"{gpus or 'no'} GPU{'' if gpus == 1 else 's'}",
        f"{allocation.cpus_per_task} CPUs" if allocation.cpus_per_task else "",
        f"{memory_gb:.1f} GB" if memory_gb else "",
    ]
    where = allocation.variables.get("SLURM_JOB_NODELIST") or allocation.node or "this node"
    each = "each of " if allocation.num_nodes > 1 else ""
    return f"job {allocation.job_id} on {each}{where}: {', '.join(filter(None, given))}"


def unmet_request(allocation: SlurmEnvironment) -> str | None:
    """What was asked for GPUs that the job did not get, and the option that asks for it.

    The `--gres` of a script stays beside the other options for GPUs, and Slurm gives what suits
    both. None if the job has what was asked, or if that can't be known.
    """
    given = given_gpus(allocation) or 0
    asked = (
        ("SLURM_GPUS_PER_NODE", "--gpus-per-node", 1),
        ("SLURM_GPUS_PER_TASK", "--gpus-per-task", 1),
        ("SLURM_GPUS", "--gpus", allocation.num_nodes),
    )
    for name, option, num_given in asked:
        value = allocation.variables.get(name, "")
        if option == "--gpus-per-task" and not value:
            value = str(_per_task("gres[/:]gpu", allocation.variables) or "")
        count = value.rpartition(":")[2]
        # `--gpus=2` beside `--gres=gpu:1` gets two nodes with one GPU each.
        spread = num_given > 1 and given == 1 and not allocation.is_submitted
        if count.isdigit() and (given * num_given < int(count) or spread):
            return (
                f"{option}={value} was asked for, beside the --gres of the script; for {count} on "
                f"one node: sbatch --gres=gpu:{value}, or {option}={value} with --gres=none"
            )
    return None


def report_node_fault(reason: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell the job script that this node is at fault, so that the job goes on without the node.

    Returns:
        Whether a job script listens: it names a file, in which each faulty node gets a line.
    """
    path = environment.get("HARNESS_NODE_FAULTS")
    node = environment.get("SLURMD_NODENAME")
    if not path or not node:
        return False
    with Path(path).open("a") as file:
        file.write(f"{node} {' '.join(reason.split())}\n")
    return True
