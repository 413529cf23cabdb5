"""Where a run came from: code, packages, machine, data. What a stranger needs to repeat it."""

import importlib.metadata
import platform
import socket
import subprocess
import time
from pathlib import Path

from harness.cluster import Allocation, given_cpus
from harness.imdb import Dataset
from harness.run import Run

PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "tensorboard", "keras-tuner")
PROJECT = Path(__file__).resolve().parent.parent


def write_provenance(
    run: Run,
    dataset: Dataset,
    allocation: Allocation | None,
    devices: list[dict[str, str]],
    devices_asked: str | None,
) -> None:
    """Record the first start of a run whole, and each later one in a line of `starts`.

    Before anything is trained: a run that goes on takes devices and data from here.
    """
    record = run.read_json("provenance.json") or {
        **code_version(PROJECT),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "driver": nvidia_driver(),
        "devices_asked": devices_asked,
        "kernels": {},  # known when the graph is traced
        "slurm": allocation.variables if allocation else {},
        "dataset": {
            "checksum": dataset.checksum,
            "official": dataset.official,
            "is_sample": dataset.is_sample,
            "folder": str(dataset.folder.absolute()) if dataset.folder else None,
        },
        "starts": [],
    }
    record.setdefault("starts", []).append(
        {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "host": socket.gethostname(),
            "slurm_job": allocation.job_id if allocation else None,
            "devices": devices,
            "cpus": given_cpus(allocation),
        }
    )
    run.write_json("provenance.json", record)


def record_kernels(run: Run, kernels: dict[str, str]) -> None:
    """Add the kernel that each recurrent layer takes."""
    run.write_json("provenance.json", {**run.read_json("provenance.json"), "kernels": kernels})


def code_version(project: Path) -> dict[str, str | None]:
    """The commit and what differs from it, `None` where the code is in no git checkout."""
    return {
        "commit": _git(project, "rev-parse", "HEAD"),
        "uncommitted_diff": _git(project, "diff", "HEAD"),
        "untracked_files": _git(project, "ls-files", "--others", "--exclude-standard"),
    }


def _git(project: Path, *words: str) -> str | None:
    if not (project / ".git").exists():
        return None  # else git would tell of a checkout further up
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, no shell
            ["git", "-C", str(project), *words],  # noqa: S607
            capture_output=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a nightly build has another name
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def nvidia_driver() -> str | None:
    """What the NVIDIA driver says of its version; None where there is no driver."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
