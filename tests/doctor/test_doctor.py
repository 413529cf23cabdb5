"""`harness doctor`: checks yield findings with remedies, and a failed check stops no other."""

import importlib.metadata
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.doctor import doctor
from harness.doctor.doctor import (
    Finding,
    check_cpus,
    check_runs,
    describe_import,
    describe_kernels,
    examine,
    judge_card,
)
from harness.errors import InputError, RunError
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.script import read_header
from harness.system.gpu import Card
from tests.conftest import PROJECT, Harness

TARGETS = ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"]  # build info of TensorFlow 2.21
WHEEL = {"targets": TARGETS, "cuda": "12.5", "driver_cuda": "12.5", "cudnn": "9.28.0"}
REPORT = "if the check fails again, report this error"


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def by_name(text: str) -> dict[str, dict[str, str]]:
    return {each["name"]: each for each in json.loads(text)}


@pytest.mark.full
def test_a_machine_without_slurm_or_gpu_is_not_red(harness: Harness) -> None:
    """Yellow findings have remedies, and no file is left."""
    harness.environment["PATH"] = ""
    done = harness.run("doctor", "--json", "--devices", "cpu")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    found = by_name(done.stdout)
    assert all(each["level"] == "green" or each["remedy"] for each in found.values())
    assert "to train on this machine, run: " in found["slurm"]["found"]
    assert found["data"]["level"] == "yellow"
    assert found["data"]["remedy"].endswith("run harness data fetch")
    assert {path.name for path in harness.folder.iterdir()} <= {"keras"}  # made by Keras


@pytest.mark.full
def test_a_tensorflow_that_dies_is_a_finding(harness: Harness, tmp_path: Path) -> None:
    """On an unsupported processor TensorFlow dies of SIGILL; the other checks still run."""
    package = tmp_path / "broken" / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    harness.environment["PYTHONPATH"] = f"{PROJECT}{os.pathsep}{package.parent}"
    done = harness.run("doctor", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    found = by_name(done.stdout)
    assert found["tensorflow"]["level"] == "red"
    assert "died of SIGILL" in found["tensorflow"]["found"]
    assert "import tensorflow" in found["tensorflow"]["remedy"]
    assert found["runs"]
    plain = harness.run("doctor")
    assert plain.returncode == 1
    assert "red    tensorflow " in plain.stdout
    assert plain.stdout.count("\n") == len(found) + 1  # a line per finding, and the counts
    assert plain.stdout.endswith(" 1 red\n")


def test_wrong_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Requirements of other systems don't count; `--setup` changes no environment of the user."""
    wrong = ["numpy<1", "no-such-package", "no-such-package; sys_platform == 'win32'"]
    (tmp_path / "pyproject.toml").write_text(f"[project]\ndependencies = {wrong}\n")
    monkeypatch.setattr(doctor, "PROJECT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/my venv/bin/python")
    finding, version = only(doctor.check_packages()), importlib.metadata.version("numpy")
    assert finding.found == f"numpy {version}, not <1; no-such-package is missing"
    assert finding.remedy == f"'/my venv/bin/python' -m pip install -e {tmp_path}"
    (tmp_path / "setup.log").touch()
    assert only(doctor.check_packages()).remedy == "bash slurm/common.sh --setup"


def test_a_missing_runs_folder_is_not_made(tmp_path: Path) -> None:
    """The nearest existing folder above it is checked, and no file is left in it."""
    runs, clock = check_runs(tmp_path / "it's my" / "runs")
    assert (runs.level, clock.level) == ("green", "green")
    assert re.fullmatch(rf"{tmp_path}: [0-9.,]+ GB free, writes [0-9,]+ MB/s", runs.found)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("load", "level"), [(0.0, "yellow"), (1000.0, "green")])
def test_a_slow_disk_and_a_wrong_clock_are_yellow(
    load: float, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A slow write or import says nothing about the disk while processes wait for CPUs."""
    clock_s = iter([1000.0, 1002.0]).__next__  # before the write of 16 MB, and after it
    monkeypatch.setattr(time, "time", clock_s)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    assert [describe_import(each).level for each in (60.0, 0.1)] == [level, "green"]
    runs, clock = check_runs(tmp_path)
    assert "writes 8 MB/s" in runs.found
    assert (runs.level, clock.level) == (level, "yellow")
    assert clock.found.endswith("s ahead")


def test_the_kernels_of_each_job() -> None:
    """The kernels are those that a run on this kind of device chooses."""
    found = {kind: describe_kernels(kind).found for kind in ("cpu", "gpu")}
    assert re.match("rnn, gru: XLA, .*; lstm, bilstm, stacked_lstm: BlockLSTM, ", found["cpu"])
    assert found["gpu"].startswith("rnn, lstm, gru, bilstm, stacked_lstm: cuDNN, ")


def test_the_cpus_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """One CPU of many is yellow in a Slurm job."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    allocation = SlurmEnvironment.from_environment(
        {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "1"}
    )
    finding = only(check_cpus(allocation))
    assert finding.level == "yellow"
    assert finding.found == "this process may use 1 of the machine's 64 CPUs"


def test_a_runs_folder_that_can_not_be_written_is_red(tmp_path: Path) -> None:
    """The runs folder is a file or a broken link."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for runs in tmp_path.iterdir():
        finding = only(check_runs(runs))
        assert (finding.level, "--runs" in finding.remedy) == ("red", True), runs


@pytest.mark.parametrize(
    ("refused", "warning", "gpus", "level", "found"),
    [
        ("Slurm gave 2 GPUs, but why; do x; do y", "", [], "red", "Slurm gave 2 GPUs, but why"),
        ("", "training on the CPU; do x; do y", [], "yellow", "training on the CPU"),
        ("", "", ["A100", "A100"], "green", "2 x A100; "),
        ("", "", [], "green", "no GPU"),
    ],
)
def test_the_devices_of_a_run(
    refused: str, warning: str, gpus: list[str], level: str, found: str
) -> None:
    """A refusal of the run is red, and a warning is yellow. The finding contains all remedies."""
    finding = doctor.describe_gpus({"refused": refused, "warning": warning, "gpus": gpus})
    assert (finding.level, finding.found[: len(found)]) == (level, found)
    assert finding.remedy == ("" if level == "green" else "do x; do y")


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        (["libcudnn.so.9"], "HARNESS_EXTRA=gpu"),
        (["libnvidia-ml.so.1", "libcudnn.so.9"], "in a container add --nv"),
    ],
)
def test_the_remedy_for_missing_libraries(missing: list[str], remedy: str) -> None:
    """Installing packages adds CUDA's libraries, but no library of the driver."""
    finding = only(doctor.describe_libraries({"missing": missing, "site": {}}))
    assert (finding.level, finding.remedy[: len(remedy)]) == ("red", remedy)


@pytest.mark.parametrize(
    ("lines", "level", "said"),
    [
        ("cpu*|up|(null)", "yellow", "export SBATCH_GRES=none"),
        ("cpu*|up|(null)\nbig|up|gpu:a100:4", "yellow", "PARTITION=big"),
        ("all*|up|gpu:a100:4(S:0-1)", "green", "--gres=gpu:1 or --gres=gpu:a100:1"),
        ("all*|down|gpu:4", "yellow", "export SBATCH_GRES=none"),
        ("CLUSTER: a\ncpu|up|(null)\n\nCLUSTER: b\nb*|up|gpu", "green", "=gpu:1"),
    ],
)
def test_the_partitions_with_gpus_are_named(
    monkeypatch: pytest.MonkeyPatch, lines: str, level: str, said: str
) -> None:
    """GPUs in the default partition are green; otherwise the remedy is a variable to export."""
    for name in ("SBATCH_GRES", "SBATCH_PARTITION"):
        monkeypatch.delenv(name, raising=False)
    finding = doctor.describe_partitions(lines)
    assert finding.level == level
    assert said in f"{finding.found} {finding.remedy}"


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("OFF", None),
        ("GANG", None),
        ("GANG,SUSPEND", "pauses and continues"),
        ("REQUEUE", "has 30 s to save; Slurm requeues it"),
        ("CANCEL", "has 30 s to save; its job script requeues it"),
    ],
)
def test_what_preemption_means_for_a_run(mode: str, said: str | None) -> None:
    """A partition with preemption has a line; with GANG alone, jobs take turns."""
    text = f"a line\nPartitionName=long MaxTime=1:00 PreemptMode={mode} GraceTime=5\n"
    settings = {"PreemptType": "preempt/qos", "KillWait": "30 sec"}
    found = [each.found for each in doctor.describe_preemption(text, settings)]
    assert found == ([f"long: {mode}, grace time 5 s: a preempted run {said}"] if said else [])
    assert not list(doctor.describe_preemption(text, {}))
    short = settings | {"PreemptParameters": "send_user_signal", "JobRequeue": "0"}
    levels = [each.level for each in doctor.describe_preemption(text, short)]
    assert levels[-1:] == ["green"]
    assert ("yellow" in levels) == (mode in ("REQUEUE", "CANCEL"))


@pytest.mark.parametrize(
    ("always", "line"),
    [
        ("--mem-per-gpu=8G", r"`sed -E '/^#SBATCH --(mem)\b/d' slurm/lstm.sh | sbatch {}`"),
        ("--ntasks=1", "`sbatch {} slurm/lstm.sh`"),
    ],
)
def test_the_printed_command_requests_what_was_checked(
    monkeypatch: pytest.MonkeyPatch, always: str, line: str
) -> None:
    """The command deletes the script's options that the site replaces, such as --mem.

    It deletes no other option, even if an option and its value are two words.
    """
    header = [*read_header(PROJECT, "lstm"), "-p", "gpu"]
    monkeypatch.setattr(doctor, "read_header", lambda *_: header)
    monkeypatch.setattr(doctor, "has_client", lambda _: True)
    monkeypatch.setattr(doctor, "ask", lambda *_, **__: "slurm 24.11")
    monkeypatch.setattr(doctor, "would_start", lambda *_, **__: "now")
    monkeypatch.setenv("HARNESS_SBATCH_ALWAYS", always)
    found = {each.name: each.found for each in doctor.check_slurm(None)}["sbatch"]
    assert line.format(always) in found


def test_the_remedy_for_settings_that_the_shell_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The remedy is the whole command."""
    lacks, command = "slurm/site.sh sets HARNESS_RUNS, which this shell lacks", "source '/a: b'"
    monkeypatch.setattr(doctor, "PROJECT", tmp_path)
    monkeypatch.setattr(doctor, "SITE", "site.sh")
    monkeypatch.setattr(doctor, "not_sourced", lambda: f"{lacks}; run: {command}")
    (tmp_path / "site.sh").touch()
    finding = doctor.check_site_file()
    assert (finding.found, finding.remedy) == (lacks, command)


@pytest.mark.parametrize(
    ("name", "capability", "build", "level", "said"),
    [
        ("T4", (7, 5), {}, "green", "machine code sm_70"),
        ("A100", (8, 0), {"driver_cuda": "12.0"}, "green", "machine code sm_80"),
        ("H100", (9, 0), {}, "yellow", "only PTX code (compute_90) for this GPU; the driver"),
        ("H100", (9, 0), {"driver_cuda": "13.0"}, "yellow", "only PTX code"),
        ("H100", (9, 0), {"driver_cuda": "12.4"}, "red", "only PTX code up to CUDA 12.4"),
        ("B200", (10, 0), {}, "yellow", "XLA may abort on it"),
        ("K80", (3, 7), {}, "red", "TensorFlow has no code for it"),
        ("P100", (6, 0), {"cudnn": "9.11.0"}, "red", "cuDNN 9.11.0 has no code for it"),
        ("V100", (7, 0), {"cudnn": "9.10.2"}, "green", "machine code sm_70"),
        ("V100", (7, 0), {"cudnn": None}, "green", "machine code sm_70"),
    ],
)
def test_cards_are_judged_by_the_build(
    name: str, capability: tuple[int, int], build: dict[str, str | None], level: str, said: str
) -> None:
    """A red card can't be used. A yellow card needs a compilation at first use, or may abort."""
    finding = judge_card(Card(f"NVIDIA {name}", capability), "555.42", WHEEL | build)
    assert finding.level == level
    assert said in finding.found
    assert f"NVIDIA {name}" in finding.found
    assert bool(finding.remedy) == (level != "green")


def test_each_kind_of_card_is_judged_once() -> None:
    """Four A100 cards lead to one finding."""
    answer = {
        "gpus": ["NVIDIA A100"] * 4 + ["NVIDIA H100"],
        "capabilities": [[8, 0]] * 4 + [[9, 0]],
        **WHEEL,
    }
    findings = list(doctor.describe_cards(answer, "Kernel Module  550.54.15"))
    assert [each.level for each in findings] == ["green", "yellow"]
    assert list(doctor.describe_cards(answer | {"targets": []}, None)) == []  # a build for ROCm


@pytest.mark.parametrize(
    ("error", "found", "remedy"),
    [
        (InputError("--data x: is no folder; name one"), "--data x: is no folder", "name one"),
        (RunError("a; b; do c"), "a; b", "do c"),
        (RunError("it is full"), "it is full", ""),
        (OSError(5, "broken"), "the check failed: OSError: [Errno 5] broken", REPORT),
    ],
)
def test_a_check_that_breaks_is_red(error: Exception, found: str, remedy: str) -> None:
    """Earlier findings stay; the end of the error's message becomes the remedy."""
    earlier = Finding("green", "disk", "is there")

    def check() -> Iterator[Finding]:
        yield earlier
        raise error

    assert [*examine("disk", check)] == [earlier, Finding("red", "disk", found, remedy)]
