"""The configuration of the test cluster, as text."""

from collections.abc import Sequence
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
GPU_NODES = "n[1-2]"
PLAIN_NODES = "n[3-4]"
CRED_EXPIRE_S = 5
GRACE_S = 10

# Links to this stand for GPUs: Slurm opens them, and sets CUDA_VISIBLE_DEVICES, as for real ones.
GPU_TARGET = "/dev/null"

CGROUP_CONF = "CgroupPlugin=disabled\n"


def gres_conf(folder: Path) -> str:
    """Two GPUs on each node that has any."""
    return f"NodeName={GPU_NODES} Name=gpu File={folder}/gpu[0-1]\n"


def slurm_conf(folder: Path, user: str, controller_port: int, node_ports: Sequence[int]) -> str:
    """The text of slurm.conf for a cluster that keeps everything in `folder`.

    Each node claims the resources of a small GPU server whatever this machine has. Jobs in the
    partition `low` are requeued when one in `high` wants their node.
    """
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
        f"CPUs=8 RealMemory=64000 {'Gres=gpu:2' if name in ('n1', 'n2') else ''}"
        for name, port in zip(NODES, node_ports, strict=True)
    )
    return f"""\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
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
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PreemptParameters=send_user_signal

ReturnToService=2
SlurmdTimeout=20
KillWait=10

GresTypes=gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=1-0 PriorityTier=1 GraceTime={GRACE_S}
PartitionName=high Nodes=ALL MaxTime=1-0 PriorityTier=2
"""
