"""The cluster, the projects on it, and a run that nothing disturbed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import JOBS, Harness, shared_run
from tests.slurm.cluster import SlurmCluster
from tests.slurm.configuration import ELSEWHERE
from tests.slurm.project import JOB, SlurmProject, Submitted


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """A running Slurm."""
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[SlurmCluster]:
    """A running Slurm of another making."""
    with SlurmCluster(ELSEWHERE) as cluster:
        yield cluster


@pytest.fixture
def stand_in(cluster: SlurmCluster, tmp_path: Path) -> SlurmProject:
    """A project whose harness only notes how it was called."""
    return SlurmProject(cluster, tmp_path, real=False)


@pytest.fixture(scope="session")
def project(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmProject:
    """A project that trains."""
    return SlurmProject(cluster, tmp_path_factory.mktemp("trains"), real=True)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Harness, Path]:
    """The run of JOB by the LSTM outside Slurm."""
    harness = Harness(tmp_path_factory.mktemp("undisturbed"))

    def train() -> None:
        done = harness.run("train", JOBS / "lstm.toml", "--run-id", "undisturbed", *JOB)
        assert done.returncode == 0, done.stderr

    return harness, shared_run(harness, "lstm", "undisturbed", train)


@pytest.fixture(scope="session")
def finished(project: SlurmProject) -> Submitted:
    """A job that nothing disturbed."""
    job = project.sbatch("lstm")
    job.wait()
    return job
