"""Slots for workers: how many, where, with what; and what Slurm's variables say of them."""

import pytest

from harness.errors import InputError
from harness.slurm import client, pool
from harness.slurm.environment import (
    SlurmEnvironment,
    given_cpus,
    given_gpus,
    given_memory_gb,
    unmet_request,
    visible_gpus,
)
from harness.slurm.pool import Slot, allocate_slots, needs_steps, srun_args


def allocation(**variables: str) -> SlurmEnvironment:
    environment = SlurmEnvironment.from_environment({"SLURM_JOB_ID": "1", **variables})
    assert environment
    return environment


def test_an_allocation_is_known_by_its_variables() -> None:
    """Ranks count inside a step alone, a token is left out of the record."""
    assert SlurmEnvironment.from_environment({"SLURM_NTASKS": "2"}) is None
    batch = allocation(SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2", SLURM_JWT="token")
    assert (batch.in_step, batch.rank, batch.num_tasks) == (False, 0, 1)
    assert sorted(batch.variables) == ["SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"]
    step = allocation(SLURM_STEP_ID="0", SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2")
    assert (step.in_step, step.rank, step.num_tasks) == (True, 1, 2)


def test_cpus_gpus_and_memory_are_those_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither more than the affinity nor more than the process's share."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("HARNESS_CPUS", raising=False)
    assert given_cpus(None) == 8
    assert given_cpus(allocation(SLURM_CPUS_PER_TASK="4")) == 4
    assert given_cpus(allocation(SLURM_CPUS_PER_TASK="16")) == 8
    monkeypatch.setenv("HARNESS_CPUS", "2")
    assert given_cpus(allocation(SLURM_CPUS_PER_TASK="4")) == 2
    assert given_gpus(allocation(SLURM_GPUS_ON_NODE="2", SLURM_JOB_GPUS="0,1,2")) == 2
    assert given_gpus(allocation(SLURM_JOB_GPUS="0,3,5")) == 3
    assert given_gpus(allocation()) is None
    assert given_memory_gb(allocation(SLURM_MEM_PER_NODE="2048")) == pytest.approx(2.147483648)
    assert given_memory_gb(allocation(SLURM_MEM_PER_NODE="0")) is None
    by_cpu = allocation(SLURM_MEM_PER_CPU="1024", SLURM_CPUS_ON_NODE="3")
    assert given_memory_gb(by_cpu) == pytest.approx(3.221225472)
    by_gpu = allocation(SLURM_MEM_PER_GPU="1024", SLURM_GPUS_ON_NODE="2")
    assert given_memory_gb(by_gpu) == pytest.approx(2.147483648)
    for visible, count in (("", 0), ("-1", 0), ("0", 1), ("3,5", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert visible_gpus() == count


def test_more_workers_than_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the number, what is there, and what to do."""
    monkeypatch.setattr(pool, "given_cpus", lambda _: 4)
    here = allocation(SLURM_GPUS_ON_NODE="2", SLURM_JOB_NUM_NODES="1")
    with pytest.raises(InputError, match="--workers 3: 1 node with 2 GPUs hold 2"):
        allocate_slots(here, 3)
    assert [slot.gpu for slot in allocate_slots(here, 4, workers_per_gpu=2)] == [0, 1, 0, 1]
    with pytest.raises(InputError, match="--workers 5: 1 node with 4 CPUs hold 4"):
        allocate_slots(here, 5, devices="cpu")
    with pytest.raises(InputError, match="--workers-per-gpu 2: there is no GPU here"):
        allocate_slots(here, 2, workers_per_gpu=2, devices="cpu")
    with pytest.raises(InputError, match=r"--workers 5: .* or raise --runs-per-gpu"):
        allocate_slots(here, 5, workers_per_gpu=2, option="--runs-per-gpu")
    with pytest.raises(InputError, match="--workers 2000: should be 1000 at most"):
        allocate_slots(None, 2000)
    assert len(allocate_slots(None, 1000)) == 1000


def test_a_step_runs_on_its_slots_node_and_shares_it() -> None:
    """One task, all of the node's CPUs, and no binding to the first of them."""
    args = srun_args(Slot("n10", 0, 2, 8), "lstm-seed1")
    assert args[0] == "srun"
    assert {"--overlap", "--ntasks=1", "--nodelist=n10", "--cpus-per-task=8"} <= set(args)
    assert {"--cpu-bind=none", "--mem=0", "--job-name=lstm-seed1", "--export=ALL"} <= set(args)
    assert not any(arg.startswith("--nodelist") for arg in srun_args(Slot("", None, 1, 1), "x"))


def test_without_srun_several_nodes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one node the workers are then children, outside Slurm always."""
    monkeypatch.setattr(client, "has_client", lambda _: False)
    assert needs_steps(None) is False
    assert needs_steps(allocation()) is False
    with pytest.raises(InputError, match="--nodes=1"):
        needs_steps(allocation(SLURM_JOB_NUM_NODES="2"))
    monkeypatch.setattr(client, "has_client", lambda _: True)
    assert needs_steps(allocation()) is True


@pytest.mark.parametrize(
    ("said", "cpus", "unmet"),
    [
        ("cpu=4", 4, False),
        ("cpu=4,gres/gpu:a100=2", 4, True),
        ("cpu:4,gres:gpu:2", 4, True),
        ("gres/gpu=1", None, False),
    ],
)
def test_what_a_task_gets_may_stand_in_one_variable(
    said: str, cpus: int | None, unmet: bool
) -> None:
    """`sbatch --tres-per-task` sets none of the older variables."""
    job = allocation(SLURM_TRES_PER_TASK=said, SLURM_GPUS_ON_NODE="1")
    assert (job.cpus_per_task, unmet_request(job) is not None) == (cpus, unmet)
    assert allocation(SLURM_TRES_PER_TASK=said, SLURM_CPUS_PER_TASK="7").cpus_per_task == 7


@pytest.mark.parametrize(
    ("nodes", "given", "asked", "is_unmet"),
    [
        *(("1", "1", "1", False), ("1", "2", "2", False), ("1", "1", "2", True)),
        *(("2", "4", "8", False), ("2", "4", "9", True), ("2", "1", "2", True)),
    ],
)
def test_gpus_of_a_whole_job_are_counted_over_its_nodes(
    nodes: str, given: str, asked: str, is_unmet: bool
) -> None:
    """Two nodes with one GPU each are what `--gpus=2` beside `--gres=gpu:1` gets by mistake."""
    variables = {
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_GPUS_ON_NODE": given,
        "SLURM_GPUS": asked,
    }
    assert (unmet_request(allocation(**variables)) is not None) == is_unmet
    # harness submit asks for so many nodes, and drops the --gres.
    submitted = unmet_request(allocation(**variables, HARNESS_SNAPSHOT="1"))
    assert (submitted is not None) == (is_unmet and int(nodes) * int(given) < int(asked))


@pytest.mark.parametrize("num_workers", [3, 4])
def test_workers_share_the_cpus_of_their_own_node(
    monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    """Two on a node with eight CPUs have four each, however many nodes there are."""
    monkeypatch.setattr(pool, "given_cpus", lambda _: 8)
    more = {"SLURM_JOB_NUM_NODES": "2", "HARNESS_NODES": "n08 n10", "SLURM_GPUS_ON_NODE": "2"}
    slots = allocate_slots(allocation(**more), num_workers)
    assert [slot.threads for slot in slots] == [4] * num_workers
