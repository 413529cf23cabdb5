"""`harness doctor` on a login node of a real Slurm cluster, and in a job there."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from harness.doctor.doctor import check_slurm
from harness.slurm.snapshot import take_snapshot
from tests.conftest import PROJECT, Harness
from tests.slurm.cluster import SlurmCluster


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
