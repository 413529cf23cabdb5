"""The checks of `harness doctor`.

A child process imports TensorFlow, so that a crash of TensorFlow becomes a finding too.
"""

import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from harness import PROJECT
from harness.data.sources import open_dataset
from harness.doctor.finding import Finding, examine
from harness.doctor.probe import START_S, ask_child
from harness.doctor.slurm_checks import check_slurm
from harness.slurm.environment import SlurmEnvironment
from harness.system.gpu import (
    CUDNN_DROPS,
    FIRST_OF_CUDNN,
    IN_A_CONTAINER,
    LAST_TRUSTED,
    NVML,
    Card,
    code_for,
)
from harness.system.processes import installed_version, nvidia_driver

SET_UP = "bash slurm/common.sh --setup"
# A finding is yellow if an import takes longer than SLOW_IMPORT_S, or if less disk space than
# LITTLE_DISK_GB is free.
SLOW_IMPORT_S = 10.0  # an import from a local disk takes about 2 s
LITTLE_DISK_GB = 2.0  # a run takes some 10 MB of disk space


def diagnose(data: Path | None, runs: Path, devices: str | None) -> Iterator[Finding]:
    """Run the checks in order; after an error in one check, run the next checks too."""
    allocation = SlurmEnvironment.from_environment()
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": check_packages,
        "tensorflow": partial(check_tensorflow, devices),
        "slurm": partial(check_slurm, allocation),
        "data": partial(check_data, data),
        "runs": partial(check_runs, runs),
    }
    for name, check in checks.items():
        yield from examine(name, check)


# The environment


def check_packages() -> Iterator[Finding]:
    """Check that the packages' versions are in the supported ranges."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    if wrong := list(_wrong(project["dependencies"])):
        yield Finding("red", "packages", "; ".join(wrong), SET_UP)
        return
    ours = ", ".join(f"{name} {installed_version(name)}" for name in ("tensorflow", "keras"))
    ours = f"Python {platform.python_version()}, {ours}"
    yield Finding("green", "packages", f"{ours}, all in the supported ranges")


def _wrong(requirements: list[str]) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = installed_version(requirement.name)
            if version is None:
                yield f"{requirement.name} is missing"
            elif not requirement.specifier.contains(version, prereleases=True):
                yield f"{requirement.name} {version}, not {requirement.specifier}"


# TensorFlow


def check_tensorflow(devices: str | None) -> Iterator[Finding]:
    """Check TensorFlow, its libraries, and the devices that it sees."""
    answer = ask_child(devices, START_S)
    yield describe_import(answer["import_s"])
    yield describe_gpus(answer)
    yield from describe_cards(answer, nvidia_driver())
    yield from describe_libraries(answer["libraries"])


def describe_import(import_s: float) -> Finding:
    """Report how long TensorFlow's import took; if it was slow, advise a faster disk.

    If more processes run than the machine has CPUs, give no advice, because the load may have
    slowed the import.
    """
    found = f"imports in {import_s:.1f} s from {sys.prefix}"
    if import_s > SLOW_IMPORT_S and os.getloadavg()[0] <= (os.cpu_count() or 1):
        remedy = (
            "in slurm/site.sh, set HARNESS_VENV to an environment on a faster disk, or "
            "HARNESS_CONTAINER to the command that runs Python in a container"
        )
        return Finding("yellow", "tensorflow", found, remedy)
    return Finding("green", "tensorflow", found)


def describe_gpus(answer: dict[str, Any]) -> Finding:
    """Report the GPUs that TensorFlow sees, or the reason why a run could not use GPUs."""
    if problem := answer["refused"] or answer["warning"]:
        # In `problem`, the first semicolon separates the reason from the remedies. The last remedy
        # is usually to train on the CPU.
        found, _, remedy = problem.partition("; ")
        return Finding("red" if answer["refused"] else "yellow", "devices", found, remedy)
    gpus = answer["gpus"]
    shown = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    found = f"{shown}; {nvidia_driver() or 'driver unknown'}" if gpus else "no GPU, only the CPU"
    return Finding("green", "devices", found)


def describe_cards(answer: dict[str, Any], driver: str | None) -> Iterator[Finding]:
    """Judge for each kind of GPU whether TensorFlow and cuDNN contain code for it."""
    pairs = zip(answer["gpus"], answer["capabilities"], strict=True)
    for card in dict.fromkeys(Card(name, tuple(capability)) for name, capability in pairs):
        yield judge_card(card, driver, answer)


def judge_card(card: Card, driver: str | None, build: Mapping[str, Any]) -> Finding:
    """Judge whether TensorFlow and cuDNN run on a GPU card.

    Args:
        driver: the line that states the driver's version; None if unknown.
        build: the answer of `devices_seen`: `targets`, the kinds of code in TensorFlow (`sm_80` is
            machine code, `compute_90` is PTX), and the versions of CUDA and cuDNN.
    """
    targets, cudnn, by_driver = build["targets"], build["cudnn"], build["driver_cuda"]
    code, found = code_for(card.capability, targets), f"{card.title}, {driver or 'driver unknown'}"
    if not code:
        text = f"{found}: TensorFlow has no code for it, only for {', '.join(targets)}"
        return Finding("red", "card", text, "use a newer card")
    if card.capability < FIRST_OF_CUDNN and Version(cudnn or "0") >= Version(CUDNN_DROPS):
        remedy = f"{sys.executable} -m pip install 'nvidia-cudnn-cu12<{CUDNN_DROPS}'"
        text = f"{found}: cuDNN {cudnn} has no code for it"
        return Finding("red", "card", text, f"{remedy}, or use a newer card")
    is_ptx = code.startswith("compute_")
    if is_ptx and by_driver and Version(by_driver) < Version(build["cuda"]):
        text = (
            f"{found}: TensorFlow has only PTX code of CUDA {build['cuda']} for this GPU, and the "
            f"driver compiles code up to CUDA {by_driver}"
        )
        return Finding("red", "card", text, "use another card, or ask your site for a newer driver")
    warm = "run harness doctor --probe on a node with this GPU"
    if card.capability > LAST_TRUSTED:
        return Finding("yellow", "card", f"{found}: XLA may abort on it", f"try the GPU: {warm}")
    if is_ptx:
        text = (
            f"{found}: TensorFlow has only PTX code ({code}) for this GPU; the driver compiles the "
            "code at the first use, which takes minutes"
        )
        remedy = (
            f"before you submit a job array, fill the driver's cache of compiled code once: {warm}"
        )
        return Finding("yellow", "card", text, remedy)
    return Finding("green", "card", f"{found}: machine code {code}")


def describe_libraries(answer: dict[str, Any] | None) -> Iterator[Finding]:
    """If the machine has an NVIDIA driver, report whether CUDA's libraries load, and from where."""
    if answer is None:
        return
    if answer["missing"]:
        found = f"cannot dlopen {', '.join(answer['missing'])}"
        remedy = f"HARNESS_EXTRA=gpu {SET_UP} (6.6 GB)"
        if NVML in answer["missing"]:
            found += f"; {NVML} is a library of the driver"
            remedy = f"{IN_A_CONTAINER}; elsewhere, ask your administrators to install {NVML}"
        yield Finding("red", "libraries", found, remedy)
    elif answer["site"]:
        shown = ", ".join(f"{name} from {path}" for name, path in answer["site"].items())
        found = (
            "because of LD_LIBRARY_PATH, these libraries load instead of those in the Python "
            f"environment: {shown}"
        )
        remedy = (
            "unload the environment module that sets LD_LIBRARY_PATH: harness is tested only with "
            "the CUDA libraries in its lock file"
        )
        yield Finding("yellow", "libraries", found, remedy)
    else:
        yield Finding(
            "green",
            "libraries",
            "all CUDA libraries load; none replaces a library in the Python environment",
        )


# The disks


def check_data(data: Path | None) -> Iterator[Finding]:
    """Check which reviews are on this machine, and that they are intact; download nothing."""
    dataset = open_dataset(data, download=False)
    counts = f"{len(dataset.train):,} + {len(dataset.test):,} reviews"
    here = f"move {dataset.folder} away, or leave out --data and unset HARNESS_DATA; then "
    remedy = "on a machine with internet access, run harness data fetch"
    remedy = f"{here if dataset.folder else ''}{remedy}"
    if dataset.is_sample:
        yield Finding("yellow", "data", f"only the packaged SAMPLE of {counts}", remedy)
        return
    where = f"{counts} in {dataset.folder}"
    if not dataset.official:
        yield Finding("yellow", "data", f"{where}: not the official IMDB reviews", remedy)
    else:
        yield Finding("green", "data", f"{where}: the official IMDB reviews, every byte verified")


def check_runs(runs: Path) -> Iterator[Finding]:
    """Check that the folder of runs, or its nearest existing parent, is writable and has space."""
    remedy = "choose another folder with --runs or HARNESS_RUNS"
    try:
        above = runs.absolute().parents
        folder = next(each for each in (runs.absolute(), *above) if os.path.lexists(each))
        with tempfile.NamedTemporaryFile(prefix=".harness-doctor-", dir=folder) as file:
            file.write(b"some bytes")
        free_gb = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        found = f"{runs}: can't be written: {error.strerror or error}"
        yield Finding("red", "runs", found, remedy)
        return
    found = f"{folder}: {free_gb:,.1f} GB free"
    if free_gb < LITTLE_DISK_GB:
        yield Finding("yellow", "runs", found, f"free some space, or {remedy}")
    else:
        yield Finding("green", "runs", found)
