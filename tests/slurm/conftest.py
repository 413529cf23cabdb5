"""Fixtures: test clusters, projects on them, and an undisturbed run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import JOBS, Harness, shared_run
from tests.slurm.cluster import SlurmCluster
from tests.slurm.configuration import ELSEWHERE
from tests.slurm.project import JOB, SlurmProject, Submitted, Watcher


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
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Harness, Path]:
    """A run outside of Slurm: the LSTM, trained with the arguments JOB."""
    harness = Harness(tmp_path_factory.mktemp("undisturbed"))

    def train() -> None:
        done = harness.run("train", JOBS / "lstm.toml", "--run-id", "undisturbed", *JOB)
        assert done.returncode == 0, done.stderr

    return harness, shared_run(harness, "lstm", "undisturbed", train)


@dataclass(frozen=True)
class Followed:
    """A job whose log `harness logs -f` has followed, since before the job began."""

    job: Submitted
    first: str  # the first line on standard error
    code: int | None
    output: str


@pytest.fixture(scope="session")
def followed(project: SlurmProject) -> Followed:
    """A job that has trained without any disturbance, and its log as `harness logs -f` shows it."""
    job = project.sbatch("lstm", "--hold")
    watcher = Watcher(project)
    following = watcher.start("logs", "-f", job.job_id)
    assert following.stderr is not None
    first = following.stderr.readline()
    job.cluster.run("scontrol", "release", job.job_id)
    output, _ = following.communicate(timeout=180)
    job.wait()
    return Followed(job, first, following.returncode, output)


@pytest.fixture(scope="session")
def finished(followed: Followed) -> Submitted:
    """A job that has trained without any disturbance."""
    return followed.job
