"""Where a run came from: code, packages, machine, data. What a stranger needs to repeat it."""

import importlib.metadata
import platform
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import PROJECT
from harness.checkout import code_version
from harness.cluster import Allocation, given_cpus
from harness.dataset import Dataset
from harness.run import Run

PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "tensorboard", "keras-tuner")


def write_provenance(
    run: Run,
    dataset: Dataset,
    allocation: Allocation | None,
    devices: list[dict[str, str]],
    devices_asked: str | None,
    plan: Mapping[str, Any],
) -> None:
    """Record the first start of a run whole, and each later one in a line of `starts`.

    Before anything is trained: a run that goes on takes devices and data from here.
    """
    record = run.read_json("provenance.json") or {
        **code_version(PROJECT, run.folder.absolute().parent.parent),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "driver": nvidia_driver(),
        "devices_asked": devices_asked,
        "plan": dict(plan),
        "kernels": {},  # known when the graph is traced
        "slurm": allocation.variables if allocation else {},
        "dataset": {
            "checksum": dataset.checksum,
            "official": dataset.official,
            "is_sample": dataset.is_sample,
            "is_own": dataset.is_own,
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


def installed_version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a nightly build has another name
        return None


def processor() -> str:
    """The name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_features() -> str:
    """What the processor can do, in the words of Linux; empty elsewhere."""
    return _cpuinfo("flags") or _cpuinfo("Features")


def _cpuinfo(field: str) -> str:
    """A field of the first processor as Linux tells it, empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def nvidia_driver() -> str | None:
    """What the NVIDIA driver says of its version; None where there is no driver."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
