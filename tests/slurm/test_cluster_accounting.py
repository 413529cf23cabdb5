"""The limits of a QOS, on a Slurm that keeps accounts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.slurm.limits import Quota, read_limits
from tests.slurm.accounting import REMEDY, AccountedCluster, is_installed
from tests.slurm.cluster import SlurmCluster
from tests.slurm.project import SlurmProject
from tests.slurm.test_cluster_submit import Submitter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(not is_installed(), reason=REMEDY),
]


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
    assert limits.accounts["lab"] == Quota("account lab", "", None, "normal", tres={"node": 2})
    visitor = SlurmProject(accounted, tmp_path, real=False)
    submitter = Submitter.of(visitor)
    job = visitor.path / "jobs/gru.toml"
    for words, said in (
        (["--time", "1:30:00"], "qos normal allows 01:00:00 at most"),
        (["--seeds", "1-4", "--time", "30"], "allows 3 of one user at a time"),
        (["--gpus", "3", "--time", "30"], "3 GPUs: qos normal allows 2 at most"),
        (["--nodes", "3", "--time", "30"], "3 nodes: account lab allows 2 at most"),
    ):
        done = submitter.run(job, *words)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    (record,) = submitter.submit(job, "--time", "30", "--seeds", "1-3")
    for seed in (1, 2, 3):
        accounted.wait(f"{record['job_id']}_{seed}", ["COMPLETED"])
