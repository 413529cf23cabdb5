"""The limits of accounts and QOS, on a Slurm that keeps accounts."""

import contextlib
import getpass
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.checks.slurm_checks import check_slurm
from harness.slurm.limits import Quota, read_limits
from tests.slurm.accounting import REMEDY, AccountedCluster, is_installed
from tests.slurm.cluster import SlurmCluster, SlurmError, wait_until
from tests.slurm.project import SlurmProject
from tests.slurm.test_cluster_submit import Submitter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(not is_installed(), reason=REMEDY),
]


# A QOS with a limit, what a job of it asks for, why Slurm never starts it, and what we say.
BEYOND = (
    ("MaxWall=30", "--time=60", "QOSMaxWallDurationPerJobLimit", "--time 60: qos q0 allows 00:30"),
    ("MinTRESPerJob=gres/gpu=2", "--gres=gpu:1", "QOSMinGRES", "1 GPUs: qos q1 wants 2 at least"),
    ("MaxTRESPerNode=cpu=1", "", "QOSMaxCpuPerNode", "4 CPUs a node: qos q2 allows 1 at most"),
    ("MaxTRESPerJob=cpu=2", "", "QOSMaxCpuPerJobLimit", "4 CPUs: qos q3 allows 2 at most"),
    ("MaxTRESPerUser=cpu=2", "", "QOSMaxCpuPerUserLimit", "4 CPUs: qos q4 allows 2 at most"),
    ("MaxTRESPerAccount=cpu=2", "", "MaxCpuPerAccount", "4 CPUs: qos q5 allows 2 at most"),
    ("GrpTRES=cpu=2", "", "QOSGrpCpuLimit", "4 CPUs: qos q6 allows 2 at most"),
    ("MaxJobsPerUser=0", "", "QOSMaxJobsPerUserLimit", "qos q7 lets no job begin"),
    ("MaxJobsPerAccount=0", "", "MaxJobsPerAccount", "qos q8 lets no job begin"),
    ("GrpJobs=0", "", "QOSGrpJobsLimit", "qos q9 lets no job begin"),
    ("MaxTRESMinsPerJob=cpu=10", "", "QOSMaxCpuMinutesPerJobLimit", "20 CPUs times minutes: qos"),
    ("GrpTRESRunMins=cpu=10", "", "QOSGrpCPURunMinutesLimit", "20 CPUs times minutes: qos q11"),
    ("GrpSubmitJobs=0", "", "", "1 job: qos q12 allows 0 of all its users"),
    ("MaxSubmitJobsPerUser=0", "", "", "1 job: qos q13 allows 0 of one user"),
    ("MaxWall=2 Flags=DenyOnLimit", "", "", "--time 5: qos q14 allows 00:02:00 at most"),
    ("MinTRESPerJob=gres/gpu=1", "--gres=none", "QOSMinGRES", "0 GPUs: qos q15 wants 1 at least"),
)
# The same for an account below one with limits, and for the QOS of jobs that name none.
ABOVE = (
    ("--account=group", "AssocGrpCpuLimit", "4 CPUs: account faculty allows 2 at most"),
    ("--time=90", "QOSMaxWallDurationPerJobLimit", "--time 90: qos normal allows 01:00:00"),
)
ASKED = ("--gres=gpu:1", "--cpus-per-task=4", "--mem=16G", "--time=5")


@pytest.fixture(scope="module")
def accounted() -> Iterator[SlurmCluster]:
    """A running Slurm with slurmdbd and MariaDB."""
    with AccountedCluster() as cluster:
        yield cluster


def test_the_limits_of_a_qos_hold_before_sbatch(
    accounted: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More time or more jobs than it allows are refused; what it allows is submitted."""
    for name, value in accounted.environment.items():
        monkeypatch.setenv(name, value)
    limits = read_limits()
    gpus = {"gres/gpu": 2}
    assert limits.qos["normal"] == Quota("qos normal", "01:00:00", 3, tres=gpus)
    lab = Quota("account lab", "", None, "normal", tres={"node": 2}, parent="root")
    assert limits.accounts["lab"] == lab
    visitor = SlurmProject(accounted, tmp_path, real=False)
    submitter = Submitter.of(visitor)
    job = visitor.path / "jobs/gru.toml"
    for words, said in (
        (["--time", "1:30:00"], "qos normal allows 01:00:00 at most"),
        (["--seeds", "1-4", "--time", "30"], "allows 3 of one user at a time"),
        (["--gpus", "3", "--time", "30"], "3 GPUs: qos normal allows 2 at most"),
        (["--gpus", 0, "--nodes", 3, "--time", "30"], "3 nodes: account lab allows 2 at most"),
    ):
        done = submitter.run(job, *words)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    two = ("--time", "30", "--seeds", "1-2")
    (held,) = submitter.submit(job, *two, "--", "--hold")
    done = submitter.run(job, *two)
    assert "2 jobs beside 2 of yours in the queue: qos normal allows 3" in done.stderr
    accounted.run("scancel", held["job_id"])
    (record,) = submitter.submit(job, "--time", "30", "--seeds", "1-3")
    for seed in (1, 2, 3):
        accounted.wait(f"{record['job_id']}_{seed}", ["COMPLETED"])


@pytest.fixture(scope="module")
def limited(accounted: SlurmCluster) -> SlurmCluster:
    """The same with a QOS for each limit, and with an account below another one."""
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


def reason(cluster: SlurmCluster, *flags: str) -> str:
    """Why Slurm does not start a job; empty if sbatch refuses it for its limits."""
    words = ("--parsable", "--output=/dev/null", *ASKED, *flags, "--wrap=true")
    try:
        job_id = cluster.run("sbatch", *words).strip()
    except SlurmError as error:
        if "violates accounting/QOS policy" not in str(error):
            raise
        return ""
    passing = ("None", "Priority")  # before the scheduler has looked at it
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: cluster.show(job_id)["Reason"] not in passing, timeout_s=20)
    known = cluster.show(job_id)
    cluster.run("scancel", job_id)
    assert known["JobState"] == "PENDING"
    return known["Reason"]


@pytest.mark.parametrize(
    ("flag", "why", "said"),
    [
        ("--qos=q3", "QOSMaxCpuPerUserLimit", "4 CPUs: qos q4 allows 2 at most"),
        ("--qos=over", "QOSMaxCpuPerJobLimit", "4 CPUs: qos over allows 3 at most"),
    ],
)
def test_the_qos_of_a_partition_counts_too(
    limited: SlurmCluster, tmp_path: Path, flag: str, why: str, said: str
) -> None:
    """Before the job's own, unless that has the flag OverPartQOS."""
    user, add = getpass.getuser(), ("sacctmgr", "--immediate", "add")
    if flag == "--qos=over":
        limited.run(*add, "qos", "over", "MaxTRESPerJob=cpu=3", "Flags=OverPartQOS")
        modify = ("sacctmgr", "--immediate", "modify", "user", user, "set")
        limited.run(*modify, "qos+=over")
    limited.run("scontrol", "update", "PartitionName=spare", "QOS=q4")
    flags = ("--partition=spare", flag)
    assert reason(limited, *flags) == why
    visitor = SlurmProject(limited, tmp_path, real=False)
    done = Submitter.of(visitor).run(visitor.path / "jobs/gru.toml", "--", *ASKED, *flags)
    limited.run("scontrol", "update", "PartitionName=spare", "QOS=")
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("flags", "why", "said"),
    [
        *(
            pytest.param(f"--qos=q{number} {flags}", why, said, id=limit)
            for number, (limit, flags, why, said) in enumerate(BEYOND)
        ),
        *(pytest.param(*each, id=each[0]) for each in ABOVE),
    ],
)
def test_a_job_that_slurm_would_never_start_is_refused(
    limited: SlurmCluster, tmp_path: Path, flags: str, why: str, said: str
) -> None:
    """`submit` and `submit --test` say what Slurm's reason leaves out: how much is allowed."""
    assert reason(limited, *flags.split()) == why
    visitor = SlurmProject(limited, tmp_path, real=False)
    submitter = Submitter.of(visitor)
    for test in ([], ["--test"]):
        words = [*test, "--", *ASKED, *flags.split()]
        done = submitter.run(visitor.path / "jobs/gru.toml", *words)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert submitter.left() == []


def test_the_doctor_holds_its_script_to_them(
    limited: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings of this shell; and nobody is held to limits that Slurm does not enforce."""
    for name, value in limited.environment.items():
        monkeypatch.setenv(name, value)

    def script() -> tuple[str, str]:
        (found,) = (each for each in check_slurm(None) if each.name == "sbatch")
        return found.level, found.found

    monkeypatch.setenv("SBATCH_TIMELIMIT", "90")
    level, found = script()
    said = "lstm.sh with SBATCH_TIMELIMIT=90 would not start: --time 90: qos normal allows 01:00:00"
    assert (level, said in found) == ("red", True), found
    monkeypatch.setenv("SBATCH_TIMELIMIT", "30")
    assert script()[0] == "green"
    monkeypatch.setenv("SBATCH_QOS", "q3")
    level, found = script()
    assert (level, "4 CPUs: qos q3 allows 2 at most" in found) == ("red", True), found
    monkeypatch.setattr(
        "harness.slurm.limits.parse_settings", lambda text: {"AccountingStorageEnforce": "none"}
    )
    assert read_limits().qos == {}
