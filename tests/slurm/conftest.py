"""Fixtures: test clusters, projects on them, and an undisturbed run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import JOBS, Harness, shared_run
from tests.slurm.cluster import SlurmCluster
from tests.slurm.configuration import ELSEWHERE
from tests.slurm.project import JOB, SlurmProject


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """A running Slurm with the site HOME."""
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def elsewhere() -> Iterator[SlurmCluster]:
    """A running Slurm with the site ELSEWHERE."""
    with SlurmCluster(ELSEWHERE) as cluster:
        yield cluster


@pytest.fixture
def stand_in(cluster: SlurmCluster, tmp_path: Path) -> SlurmProject:
    """A project in which a stand-in replaces the harness and records its calls."""
    return SlurmProject(cluster, tmp_path, real=False)


@pytest.fixture(scope="session")
def project(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> SlurmProject:
    """A project whose jobs train."""
    return SlurmProject(cluster, tmp_path_factory.mktemp("trains"), real=True)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run outside of Slurm: the LSTM, trained with the arguments JOB."""
    harness = Harness(tmp_path_factory.mktemp("undisturbed"))

    def train() -> None:
        harness.succeed("train", JOBS / "lstm.toml", "--run-id", "undisturbed", *JOB)

    return shared_run(harness, "lstm", "undisturbed", train)
