"""The heartbeat's record: what it holds beside the phase."""

import json
from pathlib import Path
from typing import Any

from harness.slurm.environment import SlurmEnvironment
from harness.tracking.records import Heartbeat
from harness.tracking.run_dir import RunDirectory

SLURM = {"SLURM_JOB_ID": "7", "HARNESS_MAX_REQUEUES": "2"}


def start(folder: Path, variables: dict[str, str] | None = None) -> tuple[Heartbeat, RunDirectory]:
    """A process that takes the run, in a Slurm job if there are variables."""
    run = RunDirectory(folder)
    run.take_lease()
    return Heartbeat(run, SlurmEnvironment.from_environment(variables or {})), run


def state(run: RunDirectory) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run.path("state.json").read_text())
    return content


def test_a_task_of_an_array_is_recorded_by_both_ids(tmp_path: Path) -> None:
    """Slurm's programs, called with the job's id alone, may act on the whole array."""
    array = {**SLURM, "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    for name, variables, own_id in (("a", array, "5_3"), ("b", SLURM, "7"), ("c", {}, None)):
        heart, run = start(tmp_path / name, variables)
        heart.beat("training")
        assert (state(run)["slurm_job"], state(run)["slurm_own_id"]) == (own_id and "7", own_id)


def test_a_run_in_a_session_does_not_own_its_job(tmp_path: Path) -> None:
    """Only the job scripts say that they requeue; a notebook server is a batch job too."""
    for name, variables in (("a", SLURM), ("b", {"SLURM_JOB_ID": "7"}), ("c", {})):
        heart, run = start(tmp_path / name, variables)
        heart.beat("training")
        assert state(run)["owns_job"] == (name == "a")
