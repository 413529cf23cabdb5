"""Tests that never end, for `test_guard.py` to end; pytest runs them only where they are named."""

import subprocess
import time
from pathlib import Path

from tests.conftest import Harness
from tests.slurm.cluster import SlurmCluster
from tests.slurm.project import SlurmProject
from tests.tuning.test_sweep import Sweeps


def test_daemon(tmp_path: Path) -> None:
    """A process in a session of its own, with an empty environment and no parent that lives."""
    subprocess.run(["/bin/sh", "-c", "setsid sleep 600 &"], env={}, check=True)
    time.sleep(600)


def test_cluster(tmp_path: Path) -> None:
    """A cluster with a job that trains."""
    with SlurmCluster() as cluster:
        SlurmProject(cluster, tmp_path, real=True).sbatch("lstm")
        time.sleep(600)


def test_sweep(harness: Harness) -> None:
    """A sweep with two workers."""
    Sweeps(harness).start("endless", "--workers", 2, "--set", "train.epochs=1000")
    time.sleep(600)
