"""Limits of accounts and QOS, on a Slurm with accounting."""

import getpass
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.accounting import REMEDY, AccountedCluster, is_installed
from tests.slurm.cluster import SlurmCluster
from tests.slurm.project import SlurmProject
from tests.slurm.test_cluster_submit import Submitter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(not is_installed(), reason=REMEDY),
]


# A QOS with a limit, the request of a job, and Slurm's reason; empty if sbatch refuses the job.
BEYOND = (
    ("MaxWall=30", "--time=60", "QOSMaxWallDurationPerJobLimit"),
    ("MinTRESPerJob=gres/gpu=2", "--gres=gpu:1", "QOSMinGRES"),
    ("GrpTRES=cpu=2", "", "QOSGrpCpuLimit"),
    ("MaxWall=2 Flags=DenyOnLimit", "", ""),
)
ASKED = ("--gres=gpu:1", "--cpus-per-task=4", "--mem=16G", "--time=5")


@pytest.fixture(scope="module")
def accounted() -> Iterator[SlurmCluster]:
    """A running Slurm with slurmdbd and MariaDB."""
    with AccountedCluster() as cluster:
        yield cluster


def test_more_jobs_than_a_user_may_have_are_refused(
    accounted: SlurmCluster, tmp_path: Path
) -> None:
    """By sbatch, before anything is written; a permitted number is submitted."""
    visitor = SlurmProject(accounted, tmp_path, real=False)
    submitter = Submitter.of(visitor)
    job = visitor.path / "jobs/gru.toml"
    done = submitter.run(job, "--seeds", "1-4", "--time", "30")
    assert (done.returncode, "job submit limit" in done.stderr) == (2, True), done.stderr
    assert not submitter.harness.runs.exists()
    (record,) = submitter.submit(job, "--time", "30", "--seeds", "1-3")
    for seed in (1, 2, 3):
        accounted.wait(f"{record['job_id']}_{seed}", ["COMPLETED"])


@pytest.fixture(scope="module")
def limited(accounted: SlurmCluster) -> SlurmCluster:
    """The same with a QOS per limit, and an account below another one."""
    user, run = getpass.getuser(), accounted.run
    add, modify = (("sacctmgr", "--immediate", what) for what in ("add", "modify"))
    for number, (limit, *_) in enumerate(BEYOND):
        run(*add, "qos", f"q{number}", *limit.split())
    run(*add, "account", "faculty", "GrpTRES=cpu=2")
    run(*add, "account", "group", "parent=faculty")
    run(*add, "user", user, "account=group")
    names = ",".join(f"q{number}" for number in range(len(BEYOND)))
    run(*modify, "user", user, "set", f"qos+={names}")
    run(*modify, "account", "faculty", "set", f"qos+={names}")
    return accounted


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        *(
            pytest.param(f"--qos=q{number} {flags}", why, id=limit)
            for number, (limit, flags, why) in enumerate(BEYOND)
        ),
        ("--account=group", "AssocGrpCpuLimit"),
    ],
)
def test_a_limit_is_told_by_slurms_own_reason(
    limited: SlurmCluster, tmp_path: Path, flags: str, why: str
) -> None:
    """sbatch or the queue names it."""
    visitor = SlurmProject(limited, tmp_path, real=False)
    submitter = Submitter.of(visitor)
    done = submitter.run(visitor.path / "jobs/gru.toml", "--", *ASKED, *flags.split())
    if not why:
        assert done.returncode == 2
        assert "violates accounting/QOS policy" in done.stderr
        assert submitter.left() == []
        return
    said = f"queue pending ({why})\n"
    assert (done.returncode, said in done.stdout) == (0, True), done.stdout + done.stderr
    limited.run("scancel", "--me")
