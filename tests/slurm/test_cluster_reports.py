"""The scripts compare.sh and tensorboard.sh as jobs on a real Slurm cluster."""

import http.client
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.slurm.cluster import wait_until
from tests.slurm.project import SlurmProject


@pytest.fixture(scope="module")
def trained(project: SlurmProject, undisturbed: Path) -> Path:
    """A finished run in the project's folder of runs."""
    return shutil.copytree(undisturbed, project.path / "runs/lstm/undisturbed")


def test_compare_reports_on_the_runs_of_its_pattern(project: SlurmProject, trained: Path) -> None:
    """The job prints the table, names a pattern that matches no run, and writes the report."""
    missing = f"{project.path}/runs/gru/slurm-*"
    job = project.sbatch("compare", arguments=[str(trained), missing])
    job.wait()
    said = job.log.read_text()
    assert {"test %", "parameters", "seeds"} <= {*re.split(r"\s{2,}", said)}
    assert "lstm" in said
    assert f"{missing} (unmatched: no run matches this pattern)" in said
    assert (project.path / "runs/comparison/report.html").is_file()


def test_tensorboard_is_its_owners_alone(
    project: SlurmProject, trained: Path, tmp_path: Path
) -> None:
    """The log names a private file; only this file has the address, and scancel removes it."""
    cache, temporary = tmp_path / "cache", Path(tempfile.mkdtemp(prefix="t"))
    job = project.sbatch(
        "tensorboard",
        arguments=[str(trained)],
        TMPDIR=str(temporary),
        BOARD_CACHE=str(cache),
    )
    kept = cache / "harness/tensorboard"
    wait_until(lambda: any(kept.glob("*.txt")), timeout_s=60)
    (connection,) = kept.glob("*.txt")
    wait_until(lambda: str(connection) in job.log.read_text(), timeout_s=10)
    address = connection.read_text().split()[-1]
    secret = address.split("/")[3]
    assert secret not in job.log.read_text()
    assert connection.stat().st_mode & 0o777 == 0o600
    words = connection.read_text().split()
    target = words[words.index("-L") + 1].partition(":")[2]
    for path, status in ((f"/{secret}/data/runs", 200), ("/data/runs", 404)):
        browser = http.client.HTTPConnection(target)
        browser.request("GET", path)
        answer = browser.getresponse()
        content = answer.read().decode()
        assert answer.status == status
        assert (f"lstm/{trained.name}" in content) == (status == 200)
    job.cluster.run("scancel", job.job_id)
    job.wait("CANCELLED")
    wait_until(lambda: not connection.exists(), timeout_s=20)
    wait_until(lambda: not any(temporary.iterdir()), timeout_s=20)
