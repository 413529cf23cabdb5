"""`doctor`: every check says what it found and how to mend it, and none ends the others."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.checks import doctor, slurm_checks
from harness.checks.finding import Finding, examine
from harness.checks.probe_child import expected_kernel, reason
from harness.checks.storage_checks import check_data, check_runs, check_scratch
from harness.errors import InputError
from harness.job_file import load_job
from harness.slurm.environment import SlurmEnvironment
from tests.conftest import JOBS, PROJECT, Harness

RECURRENT = ("rnn", "lstm", "gru", "bilstm", "stacked_lstm")


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def by_name(text: str) -> dict[str, dict[str, str]]:
    return {each["name"]: each for each in json.loads(text)}


@pytest.mark.full
def test_a_machine_without_slurm_or_gpu_is_well(harness: Harness) -> None:
    """Nothing is red, what is yellow has a remedy, kernels are told, and nothing is left behind."""
    harness.environment["PATH"] = ""
    done = harness.run("doctor", "--json", "--devices", "cpu")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    found = by_name(done.stdout)
    assert [
        each for each in found.values() if each["level"] != "green" and not each["remedy"]
    ] == []
    for name in RECURRENT:
        kernel, why = found[f"kernel {name}"]["found"].split(": ", 1)
        assert kernel == "xla"
        assert why.startswith("train.xla = auto compiles it")
    assert found["kernel lstm"]["found"].endswith("by the rules a GPU takes cudnn")
    assert "runs on this machine" in found["slurm"]["found"]
    assert (found["data"]["level"], found["data"]["remedy"][:18]) == (
        "yellow",
        "harness data fetch",
    )
    assert "scratch" not in found
    assert {path.name for path in harness.folder.iterdir()} <= {"keras"}  # Keras's own


KERNELS = """
import json, sys
from harness.checks import probe_child
from harness.job_file import load_job
told = {name: each.get("kernel") for name, each in probe_child._kernels("cpu")["kernels"].items()}
builds = "harness.compute.train_step" in sys.modules
from harness.compute.execution_plan import choose
from harness.compute.strategy import one_device
same = []
for name in ("rnn", "bilstm"):
    for keys in (["train.xla=on"], ["train.xla=off"], ["train.xla=off", "train.block_lstm=true"]):
        small = ["data.vocab_size=100", "data.maxlen=8", *keys]
        job = load_job(probe_child.JOBS / f"{name}.toml", small)
        plan = choose(job, "cpu", 1)
        traced = probe_child._traced(job, one_device(), plan)
        same.append((name, keys, probe_child.kernel_on_cpu(plan), traced))
print(json.dumps([told, builds, same]))
"""


@pytest.mark.full
def test_kernels_of_a_cpu_are_known_without_a_network(harness: Harness) -> None:
    """To build and trace all five takes most of a minute where others compute; the plan says it."""
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], env=harness.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told, builds, same = json.loads(done.stdout)
    assert told == dict.fromkeys(RECURRENT, "xla")
    assert not builds
    assert {kernel for _, _, kernel, _ in same} == {"xla", "loop", "block"}
    for name, keys, kernel, traced in same:
        assert kernel == traced, (name, keys)


@pytest.mark.full
def test_a_tensorflow_that_dies_is_a_finding(harness: Harness, tmp_path: Path) -> None:
    """On a processor that TensorFlow is not made for, it dies of SIGILL: the rest still stands."""
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
    assert found["ports"]
    plain = harness.run("doctor")
    assert plain.returncode == 1
    assert "red    tensorflow " in plain.stdout
    assert plain.stdout.count("\n") == len(found) + 1  # a line each, and their counts
    assert plain.stdout.endswith(" 1 red\n")


@pytest.mark.full
def test_an_environment_that_lacks_a_package_is_one_line(harness: Harness, tmp_path: Path) -> None:
    """It says how to repair it, whichever of the packages is missing or broken."""
    for name in ("psutil", "tomli_w", "packaging"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name}')\n")
        harness.environment["PYTHONPATH"] = f"{PROJECT}{os.pathsep}{tmp_path}"
        done = harness.run("doctor")
        assert done.returncode == 1
        assert done.stderr == f"harness: no {name}; repair it by: bash slurm/common.sh --setup\n"
        (tmp_path / f"{name}.py").unlink()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices", "tpu"], "--devices tpu"),
        (["--porbe"], "--probe"),
    ],
)
def test_bad_words_are_refused(harness: Harness, words: list[str], said: str) -> None:
    """A wrong option ends with code 2 and one line, before anything is checked."""
    done = harness.run_here("doctor", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_a_check_that_breaks_is_red_and_does_not_end_the_others() -> None:
    """What was found before stays; the error is told, and an own message is split at its remedy."""

    def breaks() -> Iterator[Finding]:
        yield Finding("green", "first", "well")
        raise KeyError("x")

    def refuses() -> Iterator[Finding]:
        yield from ()
        raise InputError("--data no: is no folder; harness data fetch gets the data")

    first, broken = examine("both", breaks)
    assert first == Finding("green", "first", "well")
    assert (broken.level, broken.found) == ("red", "the check broke: KeyError: 'x'")
    assert only(examine("data", refuses)) == Finding(
        "red", "data", "--data no: is no folder", "harness data fetch gets the data"
    )


# Disks


def test_a_runs_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """The nearest folder above is measured, and nothing is left in it."""
    runs, clock = check_runs(tmp_path / "it's my" / "runs")
    assert runs.level == "green"
    assert f"is not made yet; {tmp_path}" in runs.found
    assert clock.level == "green"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "long", "proc"])
def test_a_runs_folder_that_can_not_be_is_red(tmp_path: Path, kind: str) -> None:
    """A file, a link to nothing, a name too long and a folder that takes no file are told."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    place = {"proc": Path("/proc/self"), "long": tmp_path / ("x" * 300)}.get(kind, tmp_path / kind)
    finding = only(examine("runs", lambda: check_runs(place)))
    assert finding.level == "red"
    assert "--runs" in finding.remedy


def test_a_broken_dataset_is_red(tmp_path: Path) -> None:
    """A copy that lost a file is named with its remedy."""
    (tmp_path / "dataset.json").write_text("{")
    finding = only(examine("data", lambda: check_data(tmp_path)))
    assert finding.level == "red"
    assert "is broken" in finding.found
    assert "harness data fetch" in finding.remedy


def test_scratch_is_checked_in_a_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a job nothing is said; in one a site's folder that is gone is red, a home is not."""
    assert list(check_scratch(None)) == []
    assert only(check_scratch(job(SLURM_TMPDIR=str(tmp_path)))).found.startswith(f"{tmp_path} (")
    assert only(check_scratch(job(SLURM_TMPDIR=str(tmp_path / "gone")))).level == "red"
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    assert only(check_scratch(job(SLURM_TMPDIR=str(tmp_path)))).level != "red"


def job(**variables: str) -> SlurmEnvironment:
    """A job that Slurm says these things of."""
    allocation = SlurmEnvironment.from_environment({"SLURM_JOB_ID": "7", **variables})
    assert allocation
    return allocation


# Machine


def test_busy_ports_are_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no port of the range can be had, several nodes could not find each other."""
    assert only(doctor.check_ports()).level != "red"
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        port = busy.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", range(port, port + 1))
        monkeypatch.setattr(doctor, "TRIED_PORTS", 1)
        assert only(doctor.check_ports()).level == "red"


def test_a_missing_package_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is missing and one out of its range are named, with the remedy."""
    assert only(doctor.check_packages()).level != "red"
    monkeypatch.setattr(doctor, "_dependencies", lambda: ["no-such-package>=1", "keras<2"])
    finding = only(doctor.check_packages())
    assert finding.level == "red"
    assert "no-such-package is missing; keras 3" in finding.found
    assert finding.remedy == "bash slurm/common.sh --setup"


def test_cpus_that_nobody_limits_are_told() -> None:
    """In a job without a number of CPUs, or with one alone, more should be asked for."""
    one = only(doctor.check_cpus(job(SLURM_CPUS_PER_TASK="1")))
    assert one.found.startswith("1 of ")
    assert "--cpus-per-task" in one.remedy


def test_a_quota_names_cpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared node these need not begin with CPU 0, and taskset refuses others."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {11, 8, 10, 9})
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 2.5)
    finding = only(doctor.check_cpus(None))
    assert finding.found.endswith("but the cgroup's cpu.max allows 2.5 of them")
    assert finding.remedy.startswith("taskset --cpu-list 8,9 before")


@pytest.mark.parametrize(
    ("variables", "gpus", "level"),
    [
        ({"SLURM_GPUS_ON_NODE": "2"}, [], "red"),
        ({"SLURM_GPUS_ON_NODE": "2"}, ["A100"], "yellow"),
        ({"SLURM_GPUS_ON_NODE": "2"}, ["A100", "A100"], "green"),
        ({"SLURM_JOB_GPUS": "0,1"}, [], "red"),
        ({}, [], "green"),
    ],
)
def test_gpus_seen_are_those_given(variables: dict[str, str], gpus: list[str], level: str) -> None:
    """GPUs that Slurm gave and TensorFlow does not see are red, fewer than given yellow."""
    finding = doctor.describe_gpus({"gpus": gpus, "cuda_packages": False}, job(**variables))
    assert finding.level == level
    assert bool(finding.remedy) == (level != "green")


# Kernels on a GPU, by the rules: what the graph holds there, only a GPU can show


@pytest.mark.parametrize(
    ("name", "overrides", "kernel", "why"),
    [
        ("rnn", [], "cudnn", "cuDNN takes the layer"),
        ("rnn", ["train.xla=on"], "xla", "train.xla = on compiles it, so cuDNN is left out"),
        ("lstm", [], "cudnn", "cuDNN takes the layer"),
        ("lstm", ["train.xla=on"], "xla", "cuDNN is left out"),
        ("gru", ["model.reset_after=false"], "xla", "cuDNN has only the GRU"),
        ("gru", ["model.reset_after=false", "train.xla=off"], "loop", "model.reset_after = true"),
        ("gru", ["model.reset_after=true"], "cudnn", "cuDNN takes the layer"),
        ("bilstm", [], "cudnn", "cuDNN takes the layer"),
        ("stacked_lstm", [], "cudnn", "cuDNN takes the layer"),
    ],
)
def test_the_kernel_of_a_gpu_and_why(
    name: str, overrides: list[str], kernel: str, why: str
) -> None:
    """Each job's kernel has its reason, and one that is slower than it should be is yellow."""
    loaded = load_job(JOBS / f"{name}.toml", overrides)
    assert expected_kernel(loaded) == kernel
    assert why in reason(loaded, kernel, "gpu")
    told = {"kernel": kernel, "on_gpu": kernel, "device": "gpu", "why": "because"}
    assert doctor.describe_kernel(name, told).level == "green"
    slower = doctor.describe_kernel(name, {**told, "kernel": "none"})
    assert (slower.level, slower.remedy[: len(kernel)]) == ("yellow", kernel)


# Slurm


@pytest.mark.parametrize(
    ("gres", "types"),
    [
        ("(null)", set()),
        ("gpu:2", {""}),
        ("gpu:2(S:0-1)", {""}),
        ("gpu", {""}),
        ("gpu:a100:4(S:0,1),nvme:1", {"a100"}),
        ("gpu:a100:2(IDX:0-1),gpu:v100:1,shard:8", {"a100", "v100"}),
        ("craynetwork:4,license:gpu", set()),
    ],
)
def test_gpu_types_are_read_from_gres(gres: str, types: set[str]) -> None:
    """Types stand between name and number; other resources are none of ours."""
    assert slurm_checks.gpu_types(gres) == types


@pytest.mark.parametrize(
    ("lines", "level", "said"),
    [
        ("cpu*|up|1:00:00|n/a|(null)", "yellow", "export SBATCH_GRES=none"),
        ("cpu*|up|1:00:00|n/a|(null)\nbig|up|1:00|n/a|gpu:a100:4", "yellow", "PARTITION=big"),
        ("all*|up|1:00:00|n/a|gpu:a100:4(S:0-1)", "green", "--gres=gpu:1 or --gres=gpu:a100:1"),
        ("all*|down|1:00:00|n/a|gpu:4", "yellow", "export SBATCH_GRES=none"),
        ("CLUSTER: a\ncpu|up|1:00|n/a|(null)\n\nCLUSTER: b\nb*|up|1:00|n/a|gpu", "green", "=gpu:1"),
    ],
)
def test_where_gpus_are_and_what_to_write(
    monkeypatch: pytest.MonkeyPatch, lines: str, level: str, said: str
) -> None:
    """GPUs of the default partition are green, elsewhere or nowhere there is something to set."""
    for name in slurm_checks.DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    finding = slurm_checks.describe_gpus(slurm_checks.parse_partitions(lines))
    assert finding.level == level
    assert said in f"{finding.found} {finding.remedy}"


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("GANG,SUSPEND", ": a run stands still and goes on"),
        ("SUSPEND", ": a run stands still and goes on"),
        ("GANG,REQUEUE", ": a run has 30 s to save, and is requeued by Slurm"),
        ("GANG,CANCEL", ": a run has 30 s to save, and is requeued by itself"),
        ("GANG", None),
        ("OFF", None),
    ],
)
def test_what_a_partitions_way_of_preemption_means(mode: str, said: str | None) -> None:
    """Slurm names GANG first, by which jobs take turns; by it alone none makes room."""
    lines = f"a line beside\nPartitionName=long MaxTime=1:00 PreemptMode={mode} GraceTime=0\n"
    partitions = slurm_checks.parse_preemption(lines)
    findings = slurm_checks.describe_preemption(partitions, {"PreemptType": "preempt/qos"})
    found = [finding.found for finding in findings]
    assert found == ([f"long: {mode}, no grace time{said}"] if said else [])


def test_programs_without_a_cluster_are_yellow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Slurm's programs that know no cluster are told with their own words."""
    client = tmp_path / "sinfo"
    client.write_text("#!/bin/sh\necho 'fatal: no configuration' >&2; exit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = only(slurm_checks.check_slurm(None))
    assert finding.level == "yellow"
    assert "fatal: no configuration" in finding.found


# The probe
