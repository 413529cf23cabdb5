"""Slurm's environment variables, which no other module reads, and the settings of the site.

The site's settings are environment variables that slurm/site.sh exports. Job scripts source
slurm/site.sh, and users source it in their shells.
"""

import os
import re
import shlex
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import PROJECT
from harness.errors import InputError
from harness.system.console import quoted
from harness.system.gpu import num_cards, visible_names

ARRAY_SEEDS = "HARNESS_ARRAY_SEEDS"  # seeds of tasks 1, 2, …; if unset, a task's index is its seed
OF_ARRAYS = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
# Variables that users set for interactive use. With these variables, Slurm's programs may hide
# jobs, ask for confirmation, or change the time format.
OF_USERS = re.compile(r"(SQUEUE|SCANCEL|SINFO)_.*|SLURM_TIME_FORMAT")
# Variables of a job that calls sbatch. They are hidden from sbatch, because otherwise the new job
# would inherit them.
OF_CALLERS = re.compile(r"SLURM_(?!CONF|CLUSTERS|JWT|SACK|DEBUG|TIME_FORMAT).*")
# These variables contain the job's requests for GPUs. While they are set, srun repeats the requests
# for each job step.
OF_GPUS = tuple(f"SLURM_GPUS{of}" for of in ("", "_PER_NODE", "_PER_TASK", "_PER_SOCKET"))
FLAGS = "HARNESS_FLAGS"  # the job's sbatch options, quoted for a shell
FIRST_JOB = "HARNESS_FIRST_JOB"  # id of the job that began the run, set in later jobs of the run
SHELL_STEP = "4294967290"  # SLURM_STEP_ID in a shell of salloc, with use_interactive_step
BATCH_JOB = "HARNESS_BATCH_JOB"  # id of the job; the job script exports this variable
SITE = "slurm/site.sh"  # ignored by git
MAX_REQUEUES = 2  # largest number of successive requeues without a new step
# Fields of `scontrol show job` with requests for GPUs (TresPerNode, …), and the sbatch options that
# set these fields. A field has a value such as `gres/gpu:a100:2,gres/disk:9` or
# `cpu=4,gres/gpu=2`. If the value states no number of GPUs, the job requests one GPU.
TRES = {"Node": "--gpus-per-node", "Task": "--gpus-per-task", "Socket": "--gpus-per-socket",
        "Job": "--gpus"}  # fmt: skip
GPUS_OF_TRES = re.compile(r"\bgpu(?:[:=](?!\d+(?:,|$))([^:=,]+))?(?:[:=](\d+))?(?=,|$)")

# A model trains on several nodes only if this variable is 1, because TensorFlow's servers listen on
# every network interface, do not authenticate their clients, and are made for private networks
# (github.com/tensorflow/tensorflow/issues/11689).
TRUSTED_NETWORK = "HARNESS_TRUSTED_NETWORK"
NETWORK_RISK = (
    "any user who reaches the ports of your nodes could act with your permissions, and read and "
    "write your files, because TensorFlow's servers do not authenticate their clients"
)
NETWORK_REMEDY = (
    "train on one node; or, if no other user can reach the ports of your nodes, export "
    f"{TRUSTED_NETWORK}=1 in slurm/site.sh and source that file"
)


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
    node: str  # this node's name in Slurm, which may differ from its host name
    node_list: str  # the nodes of the job step or else of the job, such as n[08-10]
    nodes: tuple[str, ...]  # names of the job's nodes, if a job script exported them
    submit_host: str  # the host on which sbatch or salloc ran, often a login node
    restarts: int  # how often the job was requeued
    is_batch: bool  # whether a job script of the harness runs this process; False under salloc
    max_requeues: int  # largest number of successive requeues without a new step
    is_submitted: bool  # whether `harness submit` submitted the job; it removes conflicting options
    log: str | None  # the job's log file, if a job script exported its path
    flags: str  # the job's sbatch options, quoted for a shell
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
        # A shell of salloc may be a step of one task, but counts as outside.
        in_step = environment.get("SLURM_STEP_ID", SHELL_STEP) != SHELL_STEP
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
            is_submitted=environment.get("HARNESS_SNAPSHOT") == "1",
            log=environment.get("HARNESS_LOG"),
            flags=environment.get(FLAGS, ""),
            first_job_id=environment.get(FIRST_JOB) or job_id,
            variables={
                name: value
                for name, value in sorted(environment.items())
                # Leave out the job's token: a reader of the run's record could control the job.
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


def array_seed() -> str | None:
    """Return the seed of this array task; None outside of an array.

    The seed comes from the list HARNESS_ARRAY_SEEDS. If HARNESS_ARRAY_SEEDS has no seed for the
    task, the seed is the task's index.
    """
    task = os.environ.get(OF_ARRAYS[1])
    listed = dict(enumerate(os.environ.get(ARRAY_SEEDS, "").split(), 1))
    # The list may be too short: a user's shell may have exported the list of another array.
    return listed.get(int(task), task) if task else None


def num_tasks_of_array(allocation: SlurmEnvironment | None) -> int:
    """Return the number of tasks in the job's array; 1 outside of an array."""
    return (_whole(allocation.variables, OF_ARRAYS[2]) if allocation else None) or 1


def _whole(variables: Mapping[str, str], name: str) -> int | None:
    """Return a variable's value as an integer; None if the value is no integer >= 0."""
    text = variables.get(name, "")
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else None


def given_cpus(allocation: SlurmEnvironment | None) -> int:
    """Return the number of CPUs that this process may use.

    The number is the smallest of the number of CPUs in the affinity mask, the job's CPUs per task
    and HARNESS_CPUS.
    """
    limits = (
        len(os.sched_getaffinity(0)),
        allocation.cpus_per_task if allocation else None,
        _whole(os.environ, "HARNESS_CPUS"),
    )
    return min(limit for limit in limits if limit)


def given_gpus(allocation: SlurmEnvironment) -> int | None:
    """Return how many GPUs the job has on this node; None if Slurm's variables lack the number."""
    num = _whole(allocation.variables, "SLURM_GPUS_ON_NODE")
    return num if num is not None else len(listed_gpus(allocation)) or None


def listed_gpus(allocation: SlurmEnvironment) -> tuple[str, ...]:
    """Return the indices of the job's GPUs on this node; empty if Slurm's variables lack them."""
    listed = allocation.variables.get("SLURM_JOB_GPUS", "")
    return tuple(listed.split(",")) if listed else ()


def visible_gpus() -> int:
    """Return how many GPUs this process sees, without loading TensorFlow."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return len(visible_names(chosen))
    return num_cards() or 0


def given_memory_gb(allocation: SlurmEnvironment | None) -> float | None:
    """Return the job's memory on this node in GB; None if Slurm's variables lack this number."""
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


def request_args(known: Mapping[str, str], variables: Mapping[str, str]) -> list[str]:
    """Return the resources that a job requested, as sbatch options.

    A later job that continues the run is submitted with the returned options.

    Args:
        known: the fields of `scontrol show job`; if empty, some of them follow from `variables`.
        variables: the job's environment variables.
    """
    known = known or fields_of(variables)
    tasks = variables.get("SLURM_NTASKS")  # set only for --ntasks and --ntasks-per-…
    memory = {"mem-per-cpu": known.get("MinMemoryCPU"), "mem": known.get("MinMemoryNode")}
    if per_gpu := re.search(r"gpu:(\d+)$", known.get("MemPerTres", "")):
        memory = {"mem-per-gpu": f"{per_gpu[1]}M"}  # drops MinMemoryNode=0, which Slurm adds
    requested = {
        "partition": known.get("Partition"),
        "account": known.get("Account"),
        "qos": known.get("QOS"),
        "time": known.get("TimeLimit"),
        "cpus-per-task": known.get("CPUs/Task"),
        **memory,
        "constraint": known.get("Features"),
        "exclude": known.get("ExcNodeList"),
        "nodelist": known.get("ReqNodeList"),
        "reservation": known.get("Reservation"),
        "licenses": known.get("Licenses"),
        "ntasks": tasks if tasks == known.get("NumTasks") else None,
        **_gres_of(known, variables),
    }
    return [
        f"--{name}={value}"
        for name, value in requested.items()
        if value not in (None, "(null)", "N/A", "")
    ]


def fields_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of `scontrol show job` that a job's variables contain too."""
    names = {"Partition": "JOB_PARTITION", "Account": "JOB_ACCOUNT", "QOS": "JOB_QOS"}
    names |= {"CPUs/Task": "CPUS_PER_TASK", "MinMemoryNode": "MEM_PER_NODE"}
    names |= {"MinMemoryCPU": "MEM_PER_CPU"}
    known = {field: variables.get(f"SLURM_{name}", "") for field, name in names.items()}
    begun, ends = (_whole(variables, f"SLURM_JOB_{name}_TIME") for name in ("START", "END"))
    known["TimeLimit"] = str((ends - begun) // 60) if begun and ends else ""
    num_gpus = _whole(variables, "SLURM_GPUS_ON_NODE")
    return known | ({"TresPerNode": f"gres/gpu:{num_gpus}"} if num_gpus else {})


def _gres_of(known: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """Return a job's GPUs per node and its other generic resources as values of sbatch options."""
    others = [
        each
        for each in re.sub("gres[/:]", "", known.get("TresPerNode", "")).split(",")
        if each and not each.startswith(("gpu", "(null)"))
    ]
    if not (kinds := [kind for _, kind, _ in gpu_requests(known)]):
        return {"gres": ",".join(others) or "none"}
    num = variables.get("SLURM_GPUS_ON_NODE", "1")
    gpus = ":".join(filter(None, (max(kinds), num)))
    if variables.get("SBATCH_GPUS_PER_NODE"):  # the site requests GPUs by this option
        return {"gpus-per-node": gpus, "gres": ",".join(others)}
    return {"gres": ",".join((f"gpu:{gpus}", *others))}


def gpu_requests(known: Mapping[str, str]) -> list[tuple[str, str, int]]:
    """Return the requests for GPUs as tuples: sbatch option, GPU type or "", number of GPUs.

    Args:
        known: the fields of `scontrol show job`.
    """
    return [
        (option, kind, int(num or 1))
        for of, option in TRES.items()
        for kind, num in GPUS_OF_TRES.findall(known.get(f"TresPer{of}", ""))
        if num != "0"  # --gres=gpu:0 requests no GPU
    ]


def asked_of(allocation: SlurmEnvironment) -> dict[str, Any]:
    """Return the resources that the job requested, for a later job that continues its run.

    Returns:
        A dictionary: `nodes`, the number of nodes; `options`, the other sbatch options.
    """
    return {"nodes": allocation.num_nodes, "options": shlex.split(allocation.flags)}


def resume_command(folder: Path | str) -> str:
    """Return the command that continues a run or sweep.

    If this process belongs to a batch job, the returned command submits a new job.
    """
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


def unmet_request(allocation: SlurmEnvironment, known: Mapping[str, str]) -> str | None:
    """Return a message with the remedy if a request for GPUs was not fulfilled; else None.

    A user's option such as --gpus does not replace a script's `--gres`: Slurm obeys both.

    Args:
        known: the fields of `scontrol show job`.
    """
    num = given_gpus(allocation) or 0
    for option, kind, count in gpu_requests(known):
        num_given = num * allocation.num_nodes if option == "--gpus" else num
        # For `--gpus=2` with `--gres=gpu:1`, Slurm allocates two nodes with one GPU each.
        is_spread = num == 1 < num_given and not allocation.is_submitted
        if num_given < count or is_spread:
            value = ":".join(filter(None, (kind, str(count))))
            return (
                f"{option}={value} does not replace the script's --gres: Slurm obeys both; use "
                f"--gres=gpu:{value} instead, or add --gres=none"
            )
    return None


def report_node_fault(reason: str) -> bool:
    """Report that this node is faulty, so that the job continues without this node.

    Returns:
        Whether the report was written; False if no job script has set HARNESS_NODE_FAULTS, or if
        the file can't be written.
    """
    path = os.environ.get("HARNESS_NODE_FAULTS")
    node = os.environ.get("SLURMD_NODENAME")
    if not path or not node:
        return False
    try:
        with Path(path).open("a") as file:
            file.write(f"{node} {' '.join(reason.split())}\n")
    except OSError:  # the caller raises the fault, which must not be hidden by a full disk
        return False
    return True


# Settings of the site


def not_sourced(names: Iterable[str] = (), project: Path = PROJECT) -> str:
    """Return a hint if slurm/site.sh sets variables that are unset in this shell; else empty.

    Because slurm/site.sh is a bash script, this function reads only the names of the variables from
    it, not their values.

    Args:
        names: the names of the settings to look for; by default all that slurm/site.sh exports.
    """
    try:
        text = (project / SITE).read_text(errors="replace")
    except OSError:
        return ""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    exports = "\n".join(re.findall(r"\bexport (.*)", code))
    names = names or dict.fromkeys(re.findall(r"\b((?:HARNESS|SBATCH)_\w+)=", exports))
    found = [n for n in names if n not in os.environ and re.search(rf"\b{n}=", code)]
    if not found:
        return ""
    path = SITE if Path.cwd() == project else quoted(project / SITE)
    return f"{SITE} sets {', '.join(found)}, which this shell lacks; run: source {path}"


def check_alike(allocation: SlurmEnvironment) -> None:
    """Refuse a heterogeneous job, whose parts can have different nodes and GPUs.

    Raises:
        InputError: if the job is heterogeneous.
    """
    if (_whole(allocation.variables, "SLURM_HET_SIZE") or 1) > 1:
        raise InputError(
            f"job {allocation.job_id}: is heterogeneous, but a run needs equal nodes; submit each "
            "part as a separate job, without `:` among sbatch's options and without #SBATCH hetjob"
        )


def check_trusted_network(num_nodes: int) -> None:
    """Refuse to train one model on several nodes of a network that is not trusted.

    Raises:
        InputError: if there are several nodes and HARNESS_TRUSTED_NETWORK is not 1.
    """
    if num_nodes > 1 and os.environ.get(TRUSTED_NETWORK) != "1":
        hint = not_sourced([TRUSTED_NETWORK])
        raise InputError(
            f"training one model on {num_nodes} nodes is refused: {NETWORK_RISK}; {NETWORK_REMEDY}"
            f"{f' ({hint})' if hint else ''}"
        )
