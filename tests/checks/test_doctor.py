"""`doctor`: every check says what it found and how to mend it, and none ends the others."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.checks import doctor, slurm_checks
from harness.checks.doctor import check_runs
from harness.checks.finding import Finding, examine
from harness.slurm.environment import SlurmEnvironment
from tests.conftest import PROJECT, Harness


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def by_name(text: str) -> dict[str, dict[str, str]]:
    return {each["name"]: each for each in json.loads(text)}


@pytest.mark.full
def test_a_machine_without_slurm_or_gpu_is_well(harness: Harness) -> None:
    """Nothing is red, what is yellow has a remedy, and nothing is left behind."""
    harness.environment["PATH"] = ""
    done = harness.run("doctor", "--json", "--devices", "cpu")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    found = by_name(done.stdout)
    assert [
        each for each in found.values() if each["level"] != "green" and not each["remedy"]
    ] == []
    assert "runs on this machine" in found["slurm"]["found"]
    assert (found["data"]["level"], found["data"]["remedy"][:18]) == (
        "yellow",
        "harness data fetch",
    )
    assert {path.name for path in harness.folder.iterdir()} <= {"keras"}  # Keras's own


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
    assert found["runs"]
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


# Disks


def test_a_runs_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """The nearest folder above is measured, and nothing is left in it."""
    runs = only(check_runs(tmp_path / "it's my" / "runs"))
    assert runs.level == "green"
    assert f"is not made yet; {tmp_path}" in runs.found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "proc"])
def test_a_runs_folder_that_can_not_be_is_red(tmp_path: Path, kind: str) -> None:
    """A file, a link to nothing and a folder that takes no file are told."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    place = Path("/proc/self") if kind == "proc" else tmp_path / kind
    finding = only(examine("runs", lambda: check_runs(place)))
    assert finding.level == "red"
    assert "--runs" in finding.remedy


def job(**variables: str) -> SlurmEnvironment:
    """A job that Slurm says these things of."""
    allocation = SlurmEnvironment.from_environment({"SLURM_JOB_ID": "7", **variables})
    assert allocation
    return allocation


# Machine


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


# Slurm


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
def test_where_gpus_are_and_what_to_write(
    monkeypatch: pytest.MonkeyPatch, lines: str, level: str, said: str
) -> None:
    """GPUs of the default partition are green, elsewhere or nowhere there is something to set."""
    for name in slurm_checks.DEFAULTS:
        monkeypatch.delenv(name, raising=False)
    finding = slurm_checks.describe_gpus(slurm_checks.parse_partitions(lines))
    assert finding.level == level
    assert said in f"{finding.found} {finding.remedy}"
