"""The sites that test clusters imitate, and the text of their configuration files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CRED_EXPIRE_S = 5
GRACE_S = 10

# A simulated GPU is a link to this device. Slurm opens it, and sets CUDA_VISIBLE_DEVICES as usual.
GPU_TARGET = "/dev/null"
NUM_GPUS = 2  # number of GPUs of each node that has GPUs

CGROUP_CONF = "CgroupPlugin=disabled\n"


@dataclass(frozen=True)
class Site:
    """The settings in which the test clusters differ."""

    nodes: Mapping[str, str]  # each node's name and its `Gres=`, which may be empty
    settings: str  # lines of slurm.conf, such as the partitions
    files: Mapping[str, str] = field(default_factory=dict)  # names and texts of more files


# A job in the partition `high` preempts jobs in `low`; Slurm requeues the preempted jobs.
HOME = Site(
    nodes={"n1": "gpu:2", "n2": "gpu:2", "n3": "", "n4": ""},
    settings=f"""
KillWait=10
EnforcePartLimits=ALL
PreemptMode=REQUEUE
PreemptParameters=send_user_signal
PartitionName=low Nodes=ALL Default=YES MaxTime=1-0 PriorityTier=1 GraceTime={GRACE_S}
PartitionName=high Nodes=ALL MaxTime=1-0 PriorityTier=2
""",
)


# A job_submit plugin. It refuses jobs with the comment `refuse`, with a message of three lines as
# on real sites. In the partition `whole` it refuses --gres and --mem, and demands --ntasks.
PLUGIN = """\
function slurm_job_submit(job, partitions, uid)
    if job.comment == "refuse" then
        slurm.log_user("Jobs of this kind need a project.")
        slurm.log_user("Yours are: alpha, beta.")
        slurm.log_user("Name one by --account=PROJECT.")
        return slurm.ERROR
    end
    if job.partition == "whole" then
        if job.tres_per_node ~= nil then
            slurm.log_user("--gres is not accepted here: choose a queue.")
            return slurm.ERROR
        end
        if job.min_mem_per_node ~= nil or job.min_mem_per_cpu ~= nil then
            slurm.log_user("--mem is not accepted here: nodes are yours as a whole.")
            return slurm.ERROR
        end
        if job.num_tasks == slurm.NO_VAL then
            slurm.log_user("You must specify the number of tasks (-n).")
            return slurm.ERROR
        end
    end
    return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, uid) return slurm.SUCCESS end
return slurm.SUCCESS
"""

# GPUs have types. `cpu` has no GPUs, `short` a limit of a minute, `spare` preemption by CANCEL.
ELSEWHERE = Site(
    nodes={"n9": "", "n10": "gpu:t4:2", "gpu-a-01": "gpu:a100:2"},
    settings=f"""
KillWait=2
JobRequeue=0
MaxArraySize=100
JobSubmitPlugins=lua
PreemptMode=CANCEL
PartitionName=DEFAULT PriorityTier=2 PreemptMode=OFF
PartitionName=gpu Nodes=n10,gpu-a-01 Default=YES MaxTime=1-0
PartitionName=cpu Nodes=n9 MaxTime=1-0
PartitionName=short Nodes=ALL MaxTime=1
PartitionName=whole Nodes=n9 MaxTime=1-0
PartitionName=spare Nodes=ALL MaxTime=1-0 PriorityTier=1 PreemptMode=CANCEL GraceTime={GRACE_S}
""",
    files={"job_submit.lua": PLUGIN},
)


def gres_conf(site: Site, folder: Path) -> str:
    """Return the text of gres.conf."""
    lines = []
    for name, gres in site.nodes.items():
        kind = f"Type={gres.split(':')[1]} " if gres.count(":") > 1 else ""
        if gres:
            lines.append(f"NodeName={name} Name=gpu {kind}File={folder}/gpu[0-{NUM_GPUS - 1}]\n")
    return "".join(lines)


def slurm_conf(site: Site, folder: Path, user: str, ports: Sequence[int]) -> str:
    """Return the text of slurm.conf; each node has the resources of a small GPU server.

    Args:
        site: the site that the cluster imitates.
        folder: the folder of all files of the cluster.
        user: the name of the user who starts the cluster.
        ports: the controller's port, then the port of each node.
    """
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
        f"CPUs=8 RealMemory=64000 {f'Gres={gres}' if gres else ''}"
        for (name, gres), port in zip(site.nodes.items(), ports[1:], strict=True)
    )
    return f"""\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}

# A requeued job waits a second longer than a credential lives; 5 s is the least there is.
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={CRED_EXPIRE_S}

StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
# In the foreground they write the same to stderr, early errors included.
SlurmctldLogFile=/dev/null
SlurmdLogFile=/dev/null

# More CPUs and memory than this machine has, and no cgroups, which containers lack.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
JobAcctGatherParams=OverMemoryKill
MpiDefault=none

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
ReturnToService=2
SlurmdTimeout=20
GresTypes=gpu
{nodes}
{site.settings}"""
