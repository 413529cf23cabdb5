"""What this machine is, and how much of it a process may use."""

import importlib.metadata
import platform
import re
from pathlib import Path


def cgroup_limits(name: str) -> list[list[str]]:
    """The fields of a control file of this process's cgroup (v2) and of each one above it."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::")), "/")
        here = Path("/sys/fs/cgroup") / path.lstrip("/")
        files = [folder / name for folder in (here, *here.parents)]
        return [file.read_text().split() for file in files if file.is_file()]
    except OSError:  # no cgroups on this system
        return []


def memory_limit_gb() -> float | None:
    """The least memory that a cgroup above this process allows, None for no limit."""
    limits = [int(limit) for (limit,) in cgroup_limits("memory.max") if limit != "max"]
    return min(limits) / 1e9 if limits else None


def memory_peak_gb() -> float | None:
    """The most memory that this process's cgroup has used, None where that is not known."""
    peaks = [int(peak) for (peak,) in cgroup_limits("memory.peak")]
    return peaks[0] / 1e9 if peaks else None


def available_gb() -> float:
    """The memory that is free or can be freed."""
    import psutil

    return float(psutil.virtual_memory().available / 1e9)


def gpu_name() -> str | None:
    """The first GPU by its driver's name, None without one."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1].strip()
    return None


def total_memory_gb() -> float:
    """The memory of the machine."""
    import psutil

    return float(psutil.virtual_memory().total / 1e9)


def installed_version(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a nightly build has another name
        return None


def processor() -> str:
    """The name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """A field of the first processor from /proc/cpuinfo, empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def nvidia_driver() -> str | None:
    """The NVIDIA driver's description of its version, None where there is no driver."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
