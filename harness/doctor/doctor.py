"""Whether this site is set up: a list of checks, each with its result and remedy.

TensorFlow is imported in a child process, so that even a crash inside it is a finding.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from harness import PROJECT
from harness.data.sources import open_dataset
from harness.doctor.finding import Finding, examine
from harness.doctor.probe import ask_child
from harness.doctor.slurm_checks import check_slurm
from harness.slurm.environment import SlurmEnvironment, given_gpus, given_memory_gb
from harness.system.files import file_system
from harness.system.gpu import LAST_TRUSTED, Card, code_for, hidden_by
from harness.system.processes import (
    available_gb,
    installed_version,
    memory_limit_gb,
    nvidia_driver,
    total_memory_gb,
)

SET_UP = "bash slurm/common.sh --setup"
TENSORFLOW_S = 300  # a first import from a network disk takes minutes
SLOW_IMPORT_S = 10.0  # from a disk of its own it takes about 2
LITTLE_GB = 3.0  # training one of the jobs takes about half
WRITTEN_MB = 16  # to measure the speed of a disk by
SLOW_MB_PER_S = 10
LITTLE_DISK_GB, TOO_LITTLE_GB = 2.0, 0.1  # a run takes some 10 MB


def diagnose(data: Path | None, runs: Path, devices: str | None) -> Iterator[Finding]:
    """Run every check, in order; one that breaks does not end the others."""
    allocation = SlurmEnvironment.from_environment()
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": check_packages,
        "tensorflow": partial(check_tensorflow, allocation, devices),
        "memory": partial(check_memory, allocation),
        "slurm": partial(check_slurm, allocation),
        "data": partial(check_data, data),
        "runs": partial(check_runs, runs),
    }
    for name, check in checks.items():
        yield from examine(name, check)


# The environment


def check_packages() -> Iterator[Finding]:
    """Packages against the supported ranges."""
    if wrong := list(_wrong(_dependencies())):
        yield Finding("red", "packages", "; ".join(wrong), SET_UP)
        return
    ours = ", ".join(f"{name} {installed_version(name)}" for name in ("tensorflow", "keras"))
    ours = f"Python {platform.python_version()}, {ours}"
    yield Finding("green", "packages", f"{ours}, all in the supported ranges")


def _dependencies() -> list[str]:
    project = PROJECT / "pyproject.toml"
    if not project.is_file():
        return importlib.metadata.requires("harness") or []
    dependencies: list[str] = tomllib.loads(project.read_text())["project"]["dependencies"]
    return dependencies


def _wrong(requirements: list[str]) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = installed_version(requirement.name)
            if version is None:
                yield f"{requirement.name} is missing"
            elif not requirement.specifier.contains(version, prereleases=True):
                yield f"{requirement.name} {version}, not {requirement.specifier}"


# TensorFlow


def check_tensorflow(allocation: SlurmEnvironment | None, devices: str | None) -> Iterator[Finding]:
    """TensorFlow and the devices that it sees."""
    answer = ask_child(devices, TENSORFLOW_S)
    yield describe_import(answer["import_s"])
    yield describe_gpus(answer, allocation)
    yield from describe_cards(answer, nvidia_driver())
    yield from describe_libraries(answer["libraries"])
    if "refused" in answer:
        found, _, remedy = answer["refused"].rpartition("; ")
        yield Finding("red", "--devices", found, remedy)


def describe_import(import_s: float) -> Finding:
    """How long the environment takes to import; on a shared disk, many processes at once longer."""
    found = f"imports in {import_s:.1f} s from {sys.prefix} ({file_system(Path(sys.prefix))})"
    if import_s > SLOW_IMPORT_S and not is_busy():
        remedy = "slurm/site.sh: HARNESS_VENV on a faster disk, or a container (HARNESS_CONTAINER)"
        return Finding("yellow", "tensorflow", found, remedy)
    return Finding("green", "tensorflow", found)


def describe_gpus(answer: dict[str, Any], allocation: SlurmEnvironment | None) -> Finding:
    """The GPUs that TensorFlow sees, against those that a driver or Slurm promises."""
    gpus, driver = answer["gpus"], nvidia_driver()
    given = given_gpus(allocation) if allocation else None
    if gpus:
        shown = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
        if given and given != len(gpus):
            found = f"{shown}, but Slurm gave {given}"
            return Finding("yellow", "devices", found, _gpu_remedy(answer))
        return Finding("green", "devices", f"{shown}; {driver or 'driver unknown'}")
    if given:
        found = f"Slurm gave {given} GPU{'s' if given > 1 else ''}, TensorFlow sees none"
        return Finding("red", "devices", found, _gpu_remedy(answer))
    if driver and allocation is None:
        found = f"no GPU, but a driver is here: {driver}"
        return Finding("yellow", "devices", found, _gpu_remedy(answer))
    why = "this job was given none" if allocation else "no NVIDIA driver on this machine"
    return Finding("green", "devices", f"CPU only, no GPU: {why}")


def describe_cards(answer: dict[str, Any], driver: str | None) -> Iterator[Finding]:
    """Each kind of GPU against the code in TensorFlow's wheel."""
    pairs = zip(answer["gpus"], answer["capabilities"], strict=True)
    for card in dict.fromkeys(Card(name, tuple(capability)) for name, capability in pairs):
        yield judge_card(card, driver, answer["targets"])


def judge_card(card: Card, driver: str | None, targets: Sequence[str]) -> Finding:
    """Whether TensorFlow's build runs on a card.

    Args:
        driver: as /proc/driver/nvidia/version has it; None if unknown.
        targets: of the build, such as sm_80, machine code, or compute_90, PTX.
    """
    code, found = code_for(card.capability, targets), f"{card.title}, {driver or 'driver unknown'}"
    if not code:
        text = f"{found}: TensorFlow holds no code for it ({', '.join(targets)})"
        return Finding("red", "card", text, "use a newer card")
    warm = "harness doctor --probe on such a node"
    if card.capability > LAST_TRUSTED:
        return Finding("yellow", "card", f"{found}: XLA may abort on it", f"{warm} tries it")
    if code.startswith("compute_"):
        text = f"{found}: no machine code, PTX {code}: the driver compiles for minutes at first use"
        remedy = f"before an array, fill the driver's cache once: {warm}"
        return Finding("yellow", "card", text, remedy)
    return Finding("green", "card", f"{found}: machine code {code}")


def describe_libraries(answer: dict[str, Any] | None) -> Iterator[Finding]:
    """Whether all of CUDA's libraries are here, and whose; no finding without a driver."""
    if answer is None:
        return
    if answer["missing"]:
        found = f"cannot dlopen {', '.join(answer['missing'])}"
        yield Finding("red", "libraries", found, f"HARNESS_EXTRA=gpu {SET_UP} (6.6 GB)")
    elif answer["site"]:
        shown = ", ".join(f"{name} from {path}" for name, path in answer["site"].items())
        found = f"LD_LIBRARY_PATH puts these before the environment's own: {shown}"
        remedy = "unload the module that sets it: TensorFlow was tested with the environment's"
        yield Finding("yellow", "libraries", found, remedy)
    else:
        yield Finding("green", "libraries", "CUDA's are all here, the environment's own")


def _gpu_remedy(answer: dict[str, Any]) -> str:
    if hidden := hidden_by():
        return f"{hidden}: unset it"
    if nvidia_driver() is None:
        return "no NVIDIA driver on this node: ask your site, or run on another node"
    if not answer["cuda"]:
        return (
            "this TensorFlow is no CUDA build, as PyPI's for aarch64 (GH200) is none: install a "
            f"build of your site's, or HARNESS_EXTRA=gpu {SET_UP} on x86_64"
        )
    if not answer["cuda_packages"]:
        return f"the CUDA libraries are not installed: HARNESS_EXTRA=gpu {SET_UP} (6.6 GB)"
    return "the CUDA libraries are installed: compare nvidia-smi, or in a container add --nv"


# The machine


def check_memory(allocation: SlurmEnvironment | None) -> Iterator[Finding]:
    """The memory of the machine, and how much of it this process may use."""
    total_gb = total_memory_gb()
    found, usable_gb = f"{total_gb:,.1f} GB", total_gb
    limits = {
        "are free": available_gb(),
        "are this cgroup's": memory_limit_gb(),
        "are this job's": given_memory_gb(allocation),
    }
    for what, limit_gb in limits.items():
        if limit_gb is not None:
            found += f", {limit_gb:,.1f} GB {what}"
            usable_gb = min(usable_gb, limit_gb)
    if usable_gb < LITTLE_GB:
        remedy = "sbatch --mem=16G" if allocation else "close other programs"
        yield Finding("yellow", "memory", found, f"{remedy}: a run takes about 1.5 GB")
    else:
        yield Finding("green", "memory", found)


# The disks


def check_data(data: Path | None) -> Iterator[Finding]:
    """Where a run would take its reviews from, and whether every byte is correct; no download."""
    dataset = open_dataset(data, download=False)
    counts = f"{len(dataset.train):,} + {len(dataset.test):,} reviews"
    remedy = "harness data fetch, where there is a network"
    if dataset.is_sample:
        yield Finding("yellow", "data", f"only the packaged SAMPLE of {counts}", remedy)
        return
    where = f"{counts} in {dataset.folder}"
    if not dataset.official:
        yield Finding("yellow", "data", f"{where}: not the official IMDB reviews", remedy)
    else:
        yield Finding("green", "data", f"{where}: the official ones, every byte verified")


def check_runs(runs: Path) -> Iterator[Finding]:
    """Space and speed of the runs folder, or of the nearest one above; leaves nothing."""
    remedy = "choose another --runs or HARNESS_RUNS"
    where = str(runs)
    try:
        above = runs.absolute().parents
        folder = next(each for each in (runs.absolute(), *above) if os.path.lexists(each))
        where = str(folder) if folder == runs.absolute() else f"{runs} is not made yet; {folder}"
        with tempfile.TemporaryDirectory(prefix=".harness-doctor-", dir=folder) as name:
            mb_per_s = _write_speed(Path(name))
        free_gb = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        found = f"{where}: can't be written: {error.strerror or error}"
        yield Finding("red", "runs", found, remedy)
        return
    found = f"{where} ({file_system(folder)}): {free_gb:,.1f} GB free, {mb_per_s:,.0f} MB/s"
    if free_gb < TOO_LITTLE_GB:
        yield Finding("red", "runs", found, f"free some space, or {remedy}")
    elif free_gb < LITTLE_DISK_GB:
        yield Finding("yellow", "runs", found, f"free some space, or {remedy}")
    elif mb_per_s < SLOW_MB_PER_S and not is_busy():
        yield Finding("yellow", "runs", found, f"slow: {remedy}")
    else:
        yield Finding("green", "runs", found)


def is_busy() -> bool:
    """Whether more processes want to run than there are processors, so that times say little."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)


def _write_speed(folder: Path) -> float:
    content = os.urandom(WRITTEN_MB * 1_000_000)  # which no file system can compress
    began = time.perf_counter()
    with (folder / "speed").open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return WRITTEN_MB / max(time.perf_counter() - began, 1e-9)
