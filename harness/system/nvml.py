"""What NVIDIA's driver says about GPUs and the processes on them, through its library NVML.

The answers are empty where the driver, or the package nvidia-ml-py, is missing.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from harness.system.cuda import visible_names
from harness.system.processes import title_of

MODES = {1: "exclusive (thread)", 2: "prohibited", 3: "exclusive"}  # 0 lets any process in


def find_nvml() -> Any:
    """The module `pynvml` of nvidia-ml-py, None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def open_gpu(nvml: Any, name: str) -> Any:
    """NVML's handle of a GPU that CUDA_VISIBLE_DEVICES names by its index or UUID.

    Raises:
        NVMLError: of `nvml`, if it knows no such GPU.
    """
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)  # GPU-... or MIG-...


def closed_gpus(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The visible GPUs that do not let any number of processes in, and the mode of each."""
    modes = {}
    with _visible(environment) as (nvml, handles):
        for name, handle in handles.items():
            with contextlib.suppress(nvml.NVMLError):  # a MIG instance has no mode
                mode = int(nvml.nvmlDeviceGetComputeMode(handle))
                if mode in MODES:
                    modes[name] = MODES[mode]
    return modes


def describe_memory(environment: Mapping[str, str] = os.environ) -> str:
    """How much memory is free on each visible GPU and which other processes hold some."""
    parts = []
    with _visible(environment) as (nvml, handles):
        for name, handle in handles.items():
            with contextlib.suppress(nvml.NVMLError):
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                free_gb, total_gb = memory.free / 1e9, memory.total / 1e9
                running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                others = [
                    f"{title_of(each.pid)} holds {(each.usedGpuMemory or 0) / 1e9:.1f} GB"
                    for each in running
                    if each.pid != os.getpid()
                ]
                text = f"GPU {name} has {free_gb:.1f} of {total_gb:.1f} GB free"
                parts.append(", ".join([text, *others]))
    return "; ".join(parts)


def free_gb(environment: Mapping[str, str] = os.environ) -> dict[str, float]:
    """The free memory of each visible GPU, in GB."""
    free = {}
    with _visible(environment) as (nvml, handles):
        for name, handle in handles.items():
            with contextlib.suppress(nvml.NVMLError):
                free[name] = nvml.nvmlDeviceGetMemoryInfo(handle).free / 1e9
    return free


def own_gb(environment: Mapping[str, str] = os.environ) -> float | None:
    """The memory that this process holds of its fullest GPU, in GB.

    None where the driver does not know: in a container with process ids of its own, and without
    NVML.
    """
    held = []
    with _visible(environment) as (nvml, handles):
        for handle in handles.values():
            with contextlib.suppress(nvml.NVMLError):
                running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
                held += [each.usedGpuMemory for each in running if each.pid == os.getpid()]
    return max((memory / 1e9 for memory in held if memory), default=None)


@contextlib.contextmanager
def _visible(environment: Mapping[str, str]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """NVML and its handles of the GPUs that this process may use, by name."""
    nvml = find_nvml()
    if nvml is None:
        yield _Missing, {}
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield nvml, {}
        return
    try:
        seen = environment.get("CUDA_VISIBLE_DEVICES")
        if seen is None:
            names = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
        else:
            names = visible_names(seen)
        handles = {}
        for name in names:
            with contextlib.suppress(nvml.NVMLError):
                handles[name] = open_gpu(nvml, name)
        yield nvml, handles
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


class _Missing:
    NVMLError = OSError
