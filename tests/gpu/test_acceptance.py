"""`python -m tests.gpu`: mistakes are red, and a check that could not run is never green."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from harness.doctor.doctor import examine
from harness.doctor.probe import Estimate
from harness.slurm.snapshot import take_snapshot
from harness.system import gpu
from tests import child
from tests.conftest import PROJECT, Harness
from tests.gpu import __main__ as acceptance
from tests.gpu.checks import check_devices, check_speed
from tests.gpu.full import check_killed_worker
from tests.gpu.runs import NotRun, Runs, SmallRun, judge, unless_not_run


def test_a_check_without_its_gpus_is_not_run(tmp_path: Path) -> None:
    """The line names the missing GPUs."""
    check = partial(check_devices, 4, Runs(tmp_path, "gpu", 2))
    (finding,) = examine("x", partial(unless_not_run, "x", check))
    assert (finding.level, finding.found) == ("not run", "not run: needs 4 GPUs, 2 here")


@pytest.mark.parametrize(
    ("difference", "level"),
    [(0.0, "green"), (5e-5, "green"), (5e-4, "yellow"), (0.01, "red"), (float("nan"), "red")],
)
def test_differences_of_losses_have_levels(tmp_path: Path, difference: float, level: str) -> None:
    """Rounding is green; mistakes and NaN are red."""
    assert judge(Runs(tmp_path, "cpu", 2), "x", difference).level == level


@pytest.mark.full
def test_files_are_compared_by_their_bytes(finished: tuple[Harness, Path], tmp_path: Path) -> None:
    """A copy has no difference; files with other weights, losses or predictions are named."""
    run = SmallRun(finished[1])
    copy = SmallRun(shutil.copytree(run.folder, tmp_path / "copy"))
    assert copy.different_files(run) == []
    assert copy.difference(run) == 0
    for name in ("model.keras", "predictions.npz"):
        (copy.folder / name).write_bytes((copy.folder / name).read_bytes() + b"!")
    lines = (copy.folder / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    lines[-1] = json.dumps(last | {"loss": last["loss"] + 0.5})
    (copy.folder / "metrics.jsonl").write_text("\n".join(lines))
    assert copy.different_files(run) == ["metrics.jsonl", "model.keras", "predictions.npz"]
    assert copy.difference(run) == pytest.approx(0.5)
    lines[-1] = json.dumps(last | {"val_loss": float("nan")})
    (copy.folder / "metrics.jsonl").write_text("\n".join(lines))
    assert np.isnan(copy.difference(run))


def test_it_needs_no_pytest_and_runs_from_a_snapshot(harness: Harness) -> None:
    """The command needs only the snapshot, in any working folder."""
    (harness.folder / "tests").mkdir()  # another project's package
    (harness.folder / "tests/__init__.py").touch()
    project = take_snapshot(PROJECT, harness.runs)
    code = f"""
import sys
sys.modules["pytest"] = None
from tests.gpu import __main__ as acceptance
assert acceptance.__file__.startswith({str(project)!r}), acceptance.__file__
sys.exit(acceptance.main(["--devices", "banana"]))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=harness.folder,
        env={**os.environ, **harness.environment, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert "--devices banana: should be cpu" in done.stderr


def test_a_gpu_slower_than_the_cpu_is_yellow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of a job has the speeds on GPU and CPU; a job that fails is red."""

    def probe(*words: str, **_: object) -> child.Ended:
        rates = (900.0, 100.0) if "gpu:1" in words else (200.0, 200.0)
        good = [Estimate("lstm", reviews_per_s=rate, gpu_gb=0.5) for rate in rates]
        found = [*good, *[Estimate("gru", error="it broke")] * 3]
        return child.Ended(1, 0.0, 0.0, json.dumps([asdict(each) for each in found]), "")

    monkeypatch.setattr(child, "run_module", probe)
    found = list(check_speed(Runs(tmp_path, "gpu", 1)))
    assert [each.level for each in found] == ["green", "yellow", "red", "red", "red"]
    assert found[1].found.startswith("gpu:1 100 reviews/s, 0.0 ms a step, 0.0 GB, 0.50 GB of the")
    assert "; cpu 200 reviews/s" in found[1].found
    assert "it broke" in found[2].found


def test_the_named_devices_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run refuses `--devices gpu:8` on a machine with two GPUs, so the first line is red."""
    ask = mock.Mock(return_value={"gpus": []})
    monkeypatch.setattr(acceptance, "ask_child", ask)
    monkeypatch.setattr(acceptance, "CHECKS", {})
    acceptance.accept("gpu:8", None, tmp_path, is_full=False)
    ask.assert_called_once_with("gpu:8")


def test_no_process_of_another_machine_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a login node, the id of the first worker's process belongs to another process."""
    monkeypatch.setenv("HARNESS_TRUSTED_NETWORK", "1")
    monkeypatch.setattr(Runs, "args", lambda *_, **__: ["sleep", "60"])
    run = tmp_path / "lstm/killed-worker"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/step-1.npz").touch()
    with subprocess.Popen(["sleep", "60"]) as other:
        (run / "state.json").write_text(json.dumps({"process": other.pid, "host": "elsewhere"}))
        with pytest.raises(NotRun, match="first node is this one"):
            list(check_killed_worker(Runs(tmp_path, "cpu", 2)))
        assert other.poll() is None
        other.kill()


def accepted(harness: Harness, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m tests.gpu` as a user does."""
    environment = {**harness.environment, "PYTHONPATH": str(PROJECT)}
    environment |= {"HARNESS_TRUSTED_NETWORK": "1", "HARNESS_RUNS": str(harness.runs)}
    return subprocess.run(
        [sys.executable, "-P", "-m", "tests.gpu", *words],
        cwd=harness.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3600,
    )


@pytest.mark.slow
def test_two_cpu_devices_are_accepted(harness: Harness) -> None:
    """No check is red, and the checks that need a GPU are not run."""
    done = accepted(harness, "--full", "--devices", "cpu:2")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = harness.runs.glob("acceptance-*.json")
    checks = json.loads(file.read_text())["checks"]
    assert {each["level"] for each in checks} == {"green", "not run"}
    assert [each["number"] for each in checks] == list(range(1, len(checks) + 1))
    named = {each["name"] for each in checks if each["found"] == "not run: needs a GPU"}
    assert {"card", "libraries", "gpu against cpu", "masks of a gpu"} <= named
    not_run = {each["name"] for each in checks if each["level"] == "not run"}
    assert {"killed worker, two nodes", "killed worker, NCCL"} <= not_run
    well = {each["name"] for each in checks} - not_run
    killed = "killed worker, two processes"
    assert {"broken driver", "dropout masks", "tf32", "two processes", killed} <= well


@pytest.mark.gpu
@pytest.mark.skipif(not gpu.has_driver(), reason="no NVIDIA driver is here")
def test_this_gpu_is_accepted(harness: Harness) -> None:
    """No check is red. If one is, the assertion's message has the lines of all checks."""
    harness.show_gpus()
    done = accepted(harness)
    assert done.returncode == 0, done.stdout
