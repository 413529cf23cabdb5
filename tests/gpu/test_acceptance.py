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

from harness.checks import child
from harness.checks.child import Ended
from harness.checks.finding import Finding, examine
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import allocate_slots
from harness.slurm.snapshot import take_snapshot
from harness.system import cuda
from tests.conftest import PROJECT, Harness
from tests.gpu import __main__ as acceptance
from tests.gpu import full
from tests.gpu.full import Workers, check_killed_worker, check_sharing
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


@pytest.mark.parametrize(
    ("named", "used"),
    [(None, "gpu:4"), ("gpu:1", "gpu:1"), ("gpu:2", "gpu:2"), ("gpu:9", "gpu:4"), ("cpu", "cpu:2")],
)
def test_it_uses_no_more_gpus_than_are_named(
    monkeypatch: pytest.MonkeyPatch, named: str | None, used: str
) -> None:
    """The others may be another's."""
    monkeypatch.setattr(acceptance, "ask_child", lambda *_: {"gpus": [{}] * 4})
    monkeypatch.setattr(acceptance, "CHECKS", {})
    monkeypatch.setattr(acceptance, "check_gpus", lambda *_: iter([]))
    assert acceptance.accept(named, None, is_full=False)["devices"] == used


def test_a_report_that_can_not_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before minutes of checks; if the disk fails after them, the report is printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_HERE", "1")
    Path("file").touch()
    for words, said in (
        (("--out", "file/a.json"), "file/a.json: can't be written (File exists); give another"),
        (("--out", "."), "--out .: is a folder; name a file"),
        (("--runs", "file"), "can't be written (File exists); give another --out"),
    ):
        assert acceptance.main(words) == 2
        assert said in capsys.readouterr().err
    report: dict[str, object] = {"host": "n1", "checks": []}

    def accept(*_: object, **__: object) -> dict[str, object]:
        Path("out.json").mkdir()
        return report

    monkeypatch.setattr(acceptance, "accept", accept)
    assert acceptance.main(["--out", "out.json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == report
    assert "out.json: " in printed.err


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


def test_two_workers_need_devices_and_a_trusted_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says which of them is missing; each worker on a GPU would have one of its own."""
    monkeypatch.setenv("HARNESS_TRUSTED_NETWORK", "0")
    with pytest.raises(NotRun, match="HARNESS_TRUSTED_NETWORK=1"):
        Workers.start(Runs(tmp_path, "cpu", 2), "two-workers")
    with pytest.raises(NotRun, match=r"two GPUs, or a Slurm job on two nodes: sbatch --nodes=2"):
        Workers.start(Runs(tmp_path, "gpu", 1), "two-workers")
    monkeypatch.setenv("HARNESS_TRUSTED_NETWORK", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, GPU-b")
    monkeypatch.setattr(Runs, "args", lambda *_, **__: ["/bin/sh", "-c", PRINTED])
    with Workers.start(Runs(tmp_path, "gpu", 2), "two-workers") as workers:
        assert workers.wait(60)
        assert workers.codes == [0, 0]
        assert workers.last_lines() == "0 of 2 GPU-a; 1 of 2 GPU-b"


def test_two_workers_of_a_larger_job_ask_for_their_own_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are two, beside the four names that the job script has exported."""
    monkeypatch.setenv("HARNESS_TRUSTED_NETWORK", "1")
    monkeypatch.setenv("HARNESS_NODES", "n1 n2 n3 n4")
    monkeypatch.setattr(full, "_srun_args", lambda _: [])
    monkeypatch.setattr(Runs, "args", lambda *_, **__: ["/bin/sh", "-c", 'echo "<$HARNESS_NODES>"'])
    job = SlurmEnvironment.from_environment({"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "4"})
    with Workers.start(Runs(tmp_path, "cpu", 1, allocation=job), "two-workers") as workers:
        assert workers.wait(60)
        assert (workers.where, workers.last_lines()) == ("two nodes", "<>")


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


def test_runs_that_share_a_gpu_share_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that are here, inside a Slurm job and outside: otherwise they would be dealt out."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    asked: list[dict[str, str]] = []

    def run(*_: object, timeout_s: float, **variables: str) -> Ended:
        asked.append(variables)
        return Ended(0, timeout_s, 0.0, 0.0, "", "")

    monkeypatch.setattr(child, "run_module", run)
    (finding,) = check_sharing(Runs(tmp_path, "gpu", 2))
    assert (finding.level, len(asked)) == ("green", 4)
    in_job = {"SLURM_JOB_ID": "1", "SLURM_GPUS_ON_NODE": "2", **asked[-1]}
    for name, value in asked[-1].items():
        monkeypatch.setenv(name, value)
    for allocation in (None, SlurmEnvironment.from_environment(in_job)):
        slots = allocate_slots(allocation, 8, workers_per_gpu=8)
        assert {slot.gpu for slot in slots} == {0}
    assert asked[-1]["CUDA_VISIBLE_DEVICES"] == "GPU-a"


PRINTED = 'echo "$SLURM_PROCID of $SLURM_STEP_NUM_TASKS $CUDA_VISIBLE_DEVICES"'


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
@pytest.mark.skipif(not cuda.has_driver(), reason="no NVIDIA driver is here")
def test_this_gpu_is_accepted(harness: Harness) -> None:
    """The checks of this node have no red line; the lines are in the assertion's message."""
    harness.show_gpus()
    done = accepted(harness)
    assert done.returncode == 0, done.stdout
