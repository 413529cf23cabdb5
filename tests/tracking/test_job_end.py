"""A job that failed: when it goes back into the queue, and when it gives up."""

import json
from pathlib import Path

import pytest

from harness.slurm.environment import SlurmEnvironment
from harness.tracking import job_end
from harness.tracking.job_end import Verdict, judge


def allocation(**more: str) -> SlurmEnvironment:
    variables = {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "16384", **more}
    found = SlurmEnvironment.from_environment(variables)
    assert found is not None
    return found


def note(runs: Path, **state: object) -> None:
    folder = runs / "lstm/slurm-7"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps(state))


def test_the_same_failure_without_a_step_ends_the_job(tmp_path: Path) -> None:
    """The third gives up with the reason; a step more, or another failure, begins anew."""
    two = allocation(SLURM_JOB_NUM_NODES="2")

    def ends(code: int, step: int) -> Verdict:
        note(tmp_path, step=step, signal="the loss of the worker on n4")
        return judge(code, "slurm-7", tmp_path, allocation=two)

    assert [ends(75, 10).requeue for _ in range(2)] == [True, True]
    assert [ends(75, 11).requeue, ends(139, 11).requeue, ends(75, 11).requeue] == [True] * 3
    assert ends(75, 11).requeue
    end = ends(75, 11)
    assert not end.requeue
    assert "3 times with exit code 75" in end.reason
    assert "the loss of the worker on n4" in end.reason


def test_a_trial_more_is_a_step_and_a_failed_start_forgets_none(tmp_path: Path) -> None:
    """A search counts its trials; a failure before the first step says nothing of progress."""
    two = allocation(SLURM_JOB_NUM_NODES="2")

    def ends(**state: object) -> bool:
        note(tmp_path, **state)
        return judge(1, "slurm-7", tmp_path, allocation=two).requeue

    assert [ends(finished=number) for number in range(1, 5)] == [True] * 4
    assert [ends(step=500), ends(), ends(step=500)] == [True, True, False]


def test_a_kill_for_memory_is_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked and used, and half as much again; with --retry-memory the job asks itself."""
    monkeypatch.setattr(job_end, "memory_peak_gb", lambda: None)
    note(tmp_path, step=3, device={"memory_gb": 17.1})
    end = judge(137, str(tmp_path / "lstm/slurm-7"), tmp_path, allocation=allocation())
    assert (end.requeue, end.memory_mb) == (False, None)
    assert "17.2 GB asked, 17.1 GB used when last seen; give --mem=24576M or more" in end.reason
    retrying = allocation(HARNESS_RETRY_MEMORY="1")
    ends = [judge(137, "slurm-7", tmp_path, allocation=retrying) for _ in range(3)]
    assert [(each.requeue, each.memory_mb) for each in ends] == [
        *((True, 24576), (True, 24576), (False, None)),
    ]


def test_without_a_known_amount_nothing_is_asked_for(tmp_path: Path) -> None:
    """A job that has all memory of its node, and a run that wrote nothing yet."""
    whole_node = allocation(SLURM_MEM_PER_NODE="0", HARNESS_RETRY_MEMORY="1")
    end = judge(137, "", tmp_path, allocation=whole_node)
    assert (end.requeue, "all memory of the node" in end.reason) == (False, True)
