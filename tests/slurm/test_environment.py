"""Slurm's variables describe the allocation, its CPUs, GPUs and memory, and unmet requests."""

from pathlib import Path

import pytest

from harness.slurm.batch import shown_values
from harness.slurm.environment import (
    SlurmEnvironment,
    array_seed,
    given_cpus,
    given_gpus,
    given_memory_gb,
    report_node_fault,
    request_args,
    resume_command,
    unmet_request,
    visible_gpus,
)


def allocation(**variables: str) -> SlurmEnvironment:
    """Return the allocation of job 7 with these variables."""
    environment = SlurmEnvironment.from_environment({"SLURM_JOB_ID": "7", **variables})
    assert environment
    return environment


def test_variables_of_an_allocation() -> None:
    """SLURM_PROCID is a rank only inside of a job step; the token SLURM_JWT is not recorded."""
    assert SlurmEnvironment.from_environment({"SLURM_NTASKS": "2"}) is None
    batch = allocation(SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2", SLURM_JWT="x", HOME="/root")
    assert (batch.job_id, batch.in_step, batch.rank, batch.num_tasks) == ("7", False, 0, 1)
    assert sorted(batch.variables) == ["SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"]
    lists = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_STEP_NODELIST": "n1"}
    shell = allocation(SLURM_STEP_ID="4294967290", SLURM_STEP_NUM_TASKS="1", **lists)
    assert (shell.in_step, shell.node_list) == (False, "n[1-2]")
    step = allocation(SLURM_STEP_ID="0", SLURM_PROCID="1", SLURM_STEP_NUM_TASKS="2")
    assert (step.in_step, step.rank, step.num_tasks) == (True, 1, 2)


def test_seed_of_an_array_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is the seed, or the position of the seed in the list HARNESS_ARRAY_SEEDS."""
    assert array_seed() is None
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert array_seed() == "2"
    monkeypatch.setenv("HARNESS_ARRAY_SEEDS", "42 1234 2024")
    assert array_seed() == "1234"
    monkeypatch.setenv("HARNESS_ARRAY_SEEDS", "42")
    assert array_seed() == "2"


def test_cpus_gpus_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of CPUs is also limited by affinity and by HARNESS_CPUS, the process's share."""
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
    for name in ("SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU"):
        assert given_memory_gb(allocation(**{name: "1024"})) is None
    for visible, count in (("", 0), ("-1", 0), ("0", 1), ("3,5", 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert visible_gpus() == count


@pytest.mark.parametrize(
    ("shown", "options"),
    [
        ("TresPerNode=gres/gpu:a100:2,gres/disk:9", ["--gres=gpu:a100:4,disk:9"]),
        ("TresPerNode=gres/gpu", ["--gres=gpu:4"]),
        ("TresPerNode=gres/gpu:0", ["--gres=none"]),
        ("TresPerNode=gres/gpu:1g.10gb,gres/disk", ["--gres=gpu:1g.10gb:4,disk"]),
        ("TresPerNode=gres/disk:9 TresPerTask=cpu=4,gres/gpu:t4=1", ["--gres=gpu:t4:4,disk:9"]),
        ("TresPerJob=gres/gpu:2 TresPerTask=cpu=4", ["--gres=gpu:4"]),
        ("Account=(null) QOS=N/A TresPerNode=(null)", ["--gres=none"]),
        ("MinMemoryNode=0", ["--mem=0", "--gres=none"]),
        ("MinMemoryCPU=2G", ["--mem-per-cpu=2G", "--gres=none"]),
        ("MinMemoryNode=0 MemPerTres=gres/gpu:8192", ["--mem-per-gpu=8192M", "--gres=none"]),
        (
            "Partition=a TimeLimit=1-02:00:00 CPUs/Task=4 Features=big ExcNodeList=n1",
            [
                *("--partition=a", "--time=1-02:00:00", "--cpus-per-task=4", "--constraint=big"),
                *("--exclude=n1", "--gres=none"),
            ],
        ),
        ("NumTasks=3", ["--ntasks=3", "--gres=none"]),
        ("NumTasks=1", ["--gres=none"]),
    ],
)
def test_requests_of_a_job(shown: str, options: list[str]) -> None:
    """The options request the GPUs that each node has, whichever option the user gave."""
    variables = {"SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS": "3"}
    assert request_args(shown_values(shown), variables) == options


def test_requests_of_a_job_without_an_answer_from_scontrol() -> None:
    """The job's variables contain the most important resources."""
    variables = {
        **{f"SLURM_JOB_{name}": name.lower() for name in ("PARTITION", "ACCOUNT", "QOS")},
        "SLURM_JOB_START_TIME": "1700000000",
        "SLURM_JOB_END_TIME": "1700086400",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_MEM_PER_NODE": "65536",
        "SLURM_GPUS_ON_NODE": "2",
    }
    assert request_args({}, variables) == [
        *("--partition=partition", "--account=account", "--qos=qos", "--time=1440"),
        *("--cpus-per-task=8", "--mem=65536", "--gres=gpu:2"),
    ]


def test_gpus_are_requested_again_in_the_sites_way() -> None:
    """A site that sets SBATCH_GPUS_PER_NODE may refuse GPUs in --gres."""
    known = shown_values("TresPerNode=gres/gpu:t4:2,gres/disk:9")
    variables = {"SLURM_GPUS_ON_NODE": "2", "SBATCH_GPUS_PER_NODE": "1"}
    assert request_args(known, variables) == ["--gpus-per-node=t4:2", "--gres=disk:9"]


@pytest.mark.parametrize(
    ("nodes", "given", "shown", "option"),
    [
        ("1", "2", "TresPerNode=gres/gpu:a100:2", None),
        ("1", "1", "TresPerNode=gres/gpu:a100:2,gres/gpu:1", "--gpus-per-node=a100:2"),
        ("1", "1", "TresPerTask=cpu=4,gres/gpu=2", "--gpus-per-task=2"),
        ("2", "4", "TresPerJob=gres/gpu:8", None),
        ("2", "4", "TresPerJob=gres/gpu:9", "--gpus=9"),
        ("2", "1", "TresPerJob=gres/gpu:2", "--gpus=2"),
    ],
)
def test_gpus_that_slurm_did_not_give(
    nodes: str, given: str, shown: str, option: str | None
) -> None:
    """For `--gpus=2` and a script's `--gres=gpu:1`, Slurm gives two nodes with one GPU each."""
    variables = {"SLURM_JOB_NUM_NODES": nodes, "SLURM_GPUS_ON_NODE": given}
    said = unmet_request(allocation(**variables), shown_values(shown)) or ""
    assert said.partition(" ")[0] == (option or "")
    # `harness submit` removes the script's --gres, so two nodes are the user's choice.
    submitted = allocation(**variables, HARNESS_SNAPSHOT="1")
    is_unmet = option is not None and (nodes, given) != ("2", "1")
    assert (unmet_request(submitted, shown_values(shown)) is not None) == is_unmet


def test_report_of_a_faulty_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is one line. Without a job script, which would read it, no report is written."""
    faults = tmp_path / "faults"
    monkeypatch.setenv("SLURMD_NODENAME", "n4")
    assert not report_node_fault("no driver")
    monkeypatch.setenv("HARNESS_NODE_FAULTS", str(faults))
    assert report_node_fault("no\n  driver")
    assert faults.read_text() == "n4 no driver\n"
    monkeypatch.setenv("HARNESS_NODE_FAULTS", "/dev/full")  # a full disk must not hide the fault
    assert not report_node_fault("no driver")
    monkeypatch.delenv("SLURMD_NODENAME")
    assert not report_node_fault("no driver")


def test_command_that_continues_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run of a job script continues as a job; a run in an interactive allocation does not."""
    monkeypatch.delenv("HARNESS_BATCH_JOB", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert resume_command("my runs/a") == "harness resume 'my runs/a'"
    monkeypatch.setenv("HARNESS_BATCH_JOB", "7")
    assert resume_command("my runs/a") == "harness submit --resume 'my runs/a'"
