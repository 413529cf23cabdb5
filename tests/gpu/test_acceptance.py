"""`python -m tests.gpu`: what is wrong is red, what could not run is never green."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from harness.doctor.finding import Finding, examine
from harness.slurm.snapshot import take_snapshot
from harness.system import gpu
from tests.conftest import PROJECT, Harness
from tests.gpu.full import check_killed_worker
from tests.gpu.runs import NotRun, Runs, SmallRun, judge, unless_not_run


def test_what_needs_a_gpu_is_not_run(tmp_path: Path) -> None:
    """The line says what is missing; virtual CPUs are as many as are requested."""
    runs = Runs(tmp_path, "cpu", 2)

    def check() -> Iterator[Finding]:
        runs.need_gpu()
        yield Finding("green", "x", "it ran")

    (finding,) = examine("x", partial(unless_not_run, "x", check))
    assert (finding.level, finding.found) == ("not run", "not run: needs a GPU")
    assert runs.devices(4) == "cpu:4"
    with pytest.raises(NotRun, match="4 GPUs, 2 here"):
        Runs(tmp_path, "gpu", 2).devices(4)


@pytest.mark.parametrize(
    ("difference", "level"),
    [(0.0, "green"), (5e-5, "green"), (5e-4, "yellow"), (0.01, "red"), (float("nan"), "red")],
)
def test_losses_are_judged(tmp_path: Path, difference: float, level: str) -> None:
    """Rounding is green, a mistake red, and what is not a number too."""
    assert judge(Runs(tmp_path, "cpu", 2), "x", difference).level == level


@pytest.mark.full
def test_files_are_compared_by_their_bytes(finished: tuple[Harness, Path], tmp_path: Path) -> None:
    """A copy differs in nothing; another weight, loss or prediction is named."""
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


def test_it_needs_no_pytest_and_runs_from_a_snapshot(harness: Harness) -> None:
    """With the files of a snapshot alone; its child finds their module, from any folder."""
    (harness.folder / "tests").mkdir()  # of another project
    (harness.folder / "tests/__init__.py").touch()
    project = take_snapshot(PROJECT, harness.runs)
    code = f"""
import sys
sys.modules["pytest"] = None
from tests.gpu import __main__ as acceptance
from tests import asked_child
assert acceptance.__file__.startswith({str(project)!r}), acceptance.__file__
asked_child.ask(acceptance.CHECKS["libraries"].__globals__["CHILD"], {{"do": "libraries"}})
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
    assert "--devices banana: unknown device" in done.stderr


def test_no_process_is_killed_for_one_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chief may be on a node while this is the login node, where its number is another's."""
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


@pytest.mark.slow
def test_a_worker_that_is_lost_ends_the_other(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real processes train one model on this machine, and the first is killed."""
    for name, value in (harness.environment | {"HARNESS_TRUSTED_NETWORK": "1"}).items():
        monkeypatch.setenv(name, value)
    killed, *others = check_killed_worker(Runs(tmp_path, "cpu", 2))
    assert (killed.level, killed.name) == ("green", "killed worker, two processes"), killed.found
    assert [(each.level, each.name) for each in others] == [
        ("not run", "killed worker, two nodes"),
        ("not run", "killed worker, NCCL"),
    ]


def accepted(harness: Harness, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the checks as a user does."""
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
    """Nothing is red, and each line that needs a GPU says that it was not run."""
    done = accepted(harness, "--full", "--devices", "cpu:2")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = harness.runs.glob("acceptance-*.json")
    checks = json.loads(file.read_text())["checks"]
    assert {each["level"] for each in checks} == {"green", "not run"}
    assert [each["number"] for each in checks] == list(range(1, len(checks) + 1))
    named = {each["name"] for each in checks if each["found"] == "not run: needs a GPU"}
    assert {"card", "modes", "gpu against cpu", "tf32", "masks of a gpu"} <= named
    well = {each["name"] for each in checks if each["level"] == "green"}
    assert {"two processes", "killed worker, two processes"} <= well


@pytest.mark.gpu
@pytest.mark.skipif(not gpu.has_driver(), reason="no NVIDIA driver is here")
def test_this_gpu_is_accepted(harness: Harness) -> None:
    """The checks of this node have no red line; the lines are in the assertion's message."""
    harness.show_gpus()
    done = accepted(harness)
    assert done.returncode == 0, done.stdout
