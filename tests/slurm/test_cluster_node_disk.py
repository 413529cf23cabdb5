"""An environment that a job unpacks to its node's own disk, and what it finds there."""

import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.node_disk.image import pack
from harness.node_disk.use import MARK, MAX_UNUSED_S, environments, staged_data
from tests.conftest import PROJECT, Harness, results
from tests.node_disk.conftest import make_environment
from tests.slurm.cluster import SlurmCluster
from tests.slurm.project import SlurmProject

Undisturbed = tuple[Harness, Path]


@pytest.fixture
def disk() -> Iterator[Path]:
    """The disk of the nodes."""
    with tempfile.TemporaryDirectory(prefix="nodes-disk-") as name:
        yield Path(name)


def test_a_job_trains_from_its_nodes_disk_with_the_same_bytes(
    cluster: SlurmCluster, tmp_path: Path, disk: Path, undisturbed: Undisturbed
) -> None:
    """Requeued, it finds the environment there; what nobody used for a week, the job removes."""
    project = SlurmProject(cluster, tmp_path, real=True)
    environment = make_environment(tmp_path / "shared disk/environment")
    (environment / "bin/harness").touch(mode=0o755)
    pack(environment)
    (project.path / "harness").symlink_to(PROJECT / "harness")  # `python -m` needs it there
    with (project.path / "slurm/site.sh").open("a") as file:
        file.write(f"HARNESS_VENV={shlex.quote(str(environment))}\nexport TMPDIR={disk}\n")
    old = staged_data(disk)
    old.mkdir()
    (old / MARK).touch()
    long_ago = old.stat().st_mtime - MAX_UNUSED_S - 60
    os.utime(old / MARK, (long_ago, long_ago))

    job = project.sbatch("lstm", "--gres=none")
    job.wait_for_step(20)
    process = Path("/proc", str(job.record()["process"]))
    (folder,) = (each for each in environments(disk).iterdir() if each.name[0] != ".")
    assert (process / "cmdline").read_bytes().startswith(f"{folder}/bin/python\0".encode())
    assert not old.exists()
    cluster.run("scancel", "--batch", "--signal=USR2", job.job_id)
    job.wait()
    assert results(job.run) == results(undisturbed[1])
    assert job.requeues() == 1
    lines = job.log.read_text().splitlines()
    assert sum(f"using the environment in {folder}, ready after" in line for line in lines) == 2
