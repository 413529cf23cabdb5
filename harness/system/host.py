"""What of this machine a process may use: the limits of its cgroup, the memory that is free."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path


def cgroup_limits(name: str) -> Iterator[list[str]]:
    """The words of a control file of this process's cgroup (v2) and of each one above it."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    here = Path("/sys/fs/cgroup") / path.lstrip("/")
    for folder in (here, *here.parents):
        if (folder / name).is_file():
            yield (folder / name).read_text().split()


def cpu_quota() -> float | None:
    """The least number of CPUs that a cgroup above this process allows, None for no limit."""
    try:
        limits = [int(words[0]) / int(words[1]) for words in cgroup_limits("cpu.max")
                  if words[0] != "max"]  # fmt: skip
    except OSError:  # no cgroups on this system
        return None
    return min(limits, default=None)


def memory_limit_gb() -> float | None:
    """The least memory that a cgroup above this process allows, None for no limit."""
    try:
        limits = [int(words[0]) for words in cgroup_limits("memory.max") if words[0] != "max"]
    except OSError:
        return None
    return min(limits) / 1e9 if limits else None


def available_gb() -> float | None:
    """The memory that is free or can be freed, None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemAvailable: +(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 / 1e9 if match else None


def gpu_name() -> str | None:
    """The first GPU as its driver names it, None without one."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        if match:
            return match[1].strip()
    return None


def total_memory_gb() -> float:
    """The memory of the machine, in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


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
