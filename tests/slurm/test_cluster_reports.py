"""The scripts compare.sh, tensorboard.sh and doctor.sh as jobs on a real Slurm cluster."""

import json
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from harness.doctor.doctor import check_slurm
from harness.slurm.snapshot import take_snapshot
from tests.conftest import PROJECT, Harness
from tests.slurm.cluster import SlurmCluster, wait_until
from tests.slurm.project import SlurmProject


@pytest.fixture(scope="module")
def trained(project: SlurmProject, undisturbed: Path) -> Path:
    """A finished run in the project's folder of runs."""
    return shutil.copytree(undisturbed, project.path / "runs/lstm/undisturbed")


def test_compare_reports_on_the_runs_of_its_pattern(project: SlurmProject, trained: Path) -> None:
    """The job names a pattern that matches no run, and writes the report."""
    missing = f"{project.path}/runs/gru/slurm-*"
    job = project.sbatch("compare", arguments=[str(trained), missing])
    job.wait()
    assert f"{missing} (unmatched: no run matches this pattern)" in job.log.read_text()
    assert (project.path / "runs/comparison/report.html").is_file()


def test_tensorboard_is_its_owners_alone(project: SlurmProject, trained: Path) -> None:
    """The log names a private file; only this file has the address, and scancel removes it."""
    temporary = Path(tempfile.mkdtemp(prefix="t"))
    job = project.sbatch("tensorboard", arguments=[str(trained)], TMPDIR=str(temporary))
    kept = project.stand_in.outside / "cache/harness/tensorboard"
    wait_until(lambda: any(kept.glob("*.txt")), timeout_s=60)
    (connection,) = kept.glob("*.txt")
    wait_until(lambda: str(connection) in job.log.read_text(), timeout_s=10)
    address = connection.read_text().split()[-1]
    assert address.split("/")[3] not in job.log.read_text()
    assert connection.stat().st_mode & 0o777 == 0o600
    job.cluster.run("scancel", job.job_id)
    job.wait("CANCELLED")
    wait_until(lambda: not connection.exists(), timeout_s=20)
    wait_until(lambda: not any(temporary.iterdir()), timeout_s=20)


def test_doctor_on_a_login_node_and_in_a_job(
    cluster: SlurmCluster, harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the login node the checks are green; in a job, a GPU that TensorFlow can't see is red."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    login = {each.name: each for each in check_slurm(None)}
    assert login["slurm"].level == "green"
    assert login["gpus"].found == "in low, high: --gres=gpu:1"
    assert login["sbatch"].level == "green"
    assert " on nodes n" in login["sbatch"].found
    monkeypatch.setenv("SBATCH_GRES", "gpu:7")
    refused = {each.name: each for each in check_slurm(None)}["sbatch"]
    assert refused.level == "red"
    assert "with this shell's SBATCH_ settings: would not start" in refused.found
    monkeypatch.delenv("SBATCH_GRES")

    script = tmp_path / "job.sh"
    words = shlex.join(harness.command("doctor", "--json", "--runs", tmp_path))
    script.write_text(f"#!/bin/sh\n{words} > {tmp_path}/found.json\n")
    flags = ["--gres=gpu:1", "--cpus-per-task=2", "--mem=8G", f"--output={tmp_path}/log"]
    job_id = cluster.sbatch(script, *flags, cwd=tmp_path, env=harness.environment)
    cluster.wait(job_id, ["FAILED"])
    assert cluster.show(job_id)["ExitCode"] == "1:0"
    found = {each["name"]: each for each in json.loads((tmp_path / "found.json").read_text())}
    assert found["devices"]["level"] == "red"
    assert "but TensorFlow sees no GPU: there is no NVIDIA driver here" in found["devices"]["found"]
    assert "run on a node with GPUs" in found["devices"]["remedy"]
    assert (tmp_path / "log").read_text() == ""


def test_the_checks_of_a_node_run_from_a_snapshot(
    cluster: SlurmCluster, harness: Harness, tmp_path: Path
) -> None:
    """`sbatch slurm/doctor.sh` runs `tests.gpu` of the snapshot with the script's arguments."""
    code = take_snapshot(PROJECT, harness.runs)
    env = {
        **harness.environment,
        "HARNESS_SNAPSHOT": str(code),
        "HARNESS_HOME": str(code),
        "HARNESS_VENV": sys.prefix,
        "HARNESS_RUNS": str(harness.runs),
    }
    log, words = tmp_path / "log", ["--devices", "banana"]
    script, output = code / "slurm/doctor.sh", f"--output={log}"
    job_id = cluster.sbatch(script, output, cwd=tmp_path, arguments=words, env=env)
    cluster.wait(job_id, ["FAILED"])
    assert cluster.show(job_id)["ExitCode"] == "2:0", log.read_text()
    assert "ERROR --devices banana: should be cpu" in log.read_text()
