"""What is read of Slurm's variables, and told to its job script."""

import json
import os
from pathlib import Path

import pytest

from harness.slurm.environment import (
    SlurmEnvironment,
    describe_given,
    given_cpus,
    report_node_fault,
    resume_command,
)


def test_the_allocation_is_what_slurm_says() -> None:
    """Outside Slurm there is none; inside, threads follow its CPUs, and no token is recorded."""
    assert SlurmEnvironment.from_environment({}) is None
    environment = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_JWT": "secret"}
    allocation = SlurmEnvironment.from_environment(environment | {"HOME": "/root"})
    assert allocation is not None
    assert allocation.job_id == "7"
    assert json.dumps(allocation.variables) == '{"SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": "7"}'
    assert given_cpus(allocation) == 1
    assert given_cpus(None) == len(os.sched_getaffinity(0))


def test_a_log_begins_with_what_a_job_was_given() -> None:
    """Several nodes by Slurm's list of them, one by its name."""
    one = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n4", "SLURM_CPUS_PER_TASK": "2"}
    two = one | {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[4-5]"}
    for variables, where in ((one, "n4"), (two, "each of n[4-5]")):
        allocation = SlurmEnvironment.from_environment(variables)
        assert allocation
        assert describe_given(allocation) == f"job 7 on {where}: no GPUs, 2 CPUs"


@pytest.mark.parametrize("missing", [None, "HARNESS_NODE_FAULTS", "SLURMD_NODENAME"])
def test_a_nodes_fault_is_a_line_for_the_job_script(tmp_path: Path, missing: str | None) -> None:
    """Where one listens and the node has a name; the reason is one line."""
    faults = tmp_path / "faults"
    environment = {"HARNESS_NODE_FAULTS": str(faults), "SLURMD_NODENAME": "n4"}
    environment.pop(missing or "", None)
    listens = report_node_fault("no\n  driver", environment)
    assert listens == (missing is None)
    assert (faults.read_text() if faults.exists() else "") == ("n4 no driver\n" if listens else "")


@pytest.mark.parametrize(
    ("variables", "command"),
    [
        ({}, "resume"),
        ({"SLURM_JOB_ID": "7"}, "resume"),
        ({"SLURM_JOB_ID": "7", "HARNESS_MAX_REQUEUES": "0"}, "submit --resume"),
    ],
)
def test_a_run_goes_on_as_it_began(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], command: str
) -> None:
    """As a job if one of our job scripts began it; a shell in an allocation is none."""
    for name in ("SLURM_JOB_ID", "HARNESS_MAX_REQUEUES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert resume_command("my runs/a") == f"harness {command} 'my runs/a'"
