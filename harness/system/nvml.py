"""What NVIDIA's driver says about GPUs and the processes on them, through its library NVML.

The answers are empty where the driver, or the package nvidia-ml-py, is missing.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from harness.system.cuda import visible_names

T = TypeVar("T")


def find_nvml() -> Any:
    """The module `pynvml` of nvidia-ml-py, None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def describe_memory(environment: Mapping[str, str] = os.environ) -> str:
    """How much memory is free on each visible GPU and which other processes hold some."""

    def describe(nvml: Any, gpu: Any) -> str:
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
        running = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        others = [
            f"process {each.pid} holds {(each.usedGpuMemory or 0) / 1e9:.1f} GB"
            for each in running
            if each.pid != os.getpid()
        ]
        free = f"has {memory.free / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
        return ", ".join([free, *others])

    texts = _ask_each(environment, describe)
    return "; ".join(f"GPU {name} {text}" for name, text in texts.items())


def free_gb(environment: Mapping[str, str] = os.environ) -> dict[str, float]:
    """The free memory of each visible GPU, in GB."""
    return _ask_each(environment, lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).free / 1e9)


def own_gb(environment: Mapping[str, str] = os.environ) -> float | None:
    """The memory that this process holds of its fullest GPU, in GB.

    None where the driver does not know: in a container with process ids of its own, and without
    NVML.
    """
    processes = _ask_each(
        environment, lambda nvml, gpu: nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
    )
    own = [each for gpu in processes.values() for each in gpu if each.pid == os.getpid()]
    return max((each.usedGpuMemory / 1e9 for each in own if each.usedGpuMemory), default=None)


def _ask_each(environment: Mapping[str, str], ask: Callable[[Any, Any], T]) -> dict[str, T]:
    """The answers by name of the GPUs that this process may use; one without an answer is left out.

    Args:
        ask: is given NVML and its handle of a GPU.
    """
    answers = dict[str, T]()
    with open_gpus(environment) as (nvml, gpus):
        for name, gpu in gpus.items():
            with contextlib.suppress(nvml.NVMLError):
                answers[name] = ask(nvml, gpu)
    return answers


@contextlib.contextmanager
def open_gpus(
    environment: Mapping[str, str] = os.environ,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """NVML and its handles of the GPUs that this process may use, by index or UUID, in their order.

    There are none where NVML is missing, and none of a GPU that it does not know.
    """
    nvml, gpus = find_nvml(), dict[str, Any]()
    if nvml is None:
        yield nvml, gpus
        return
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        seen = environment.get("CUDA_VISIBLE_DEVICES")
        if seen is None:
            names = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
        else:
            names = visible_names(seen)
        for name in names:
            with contextlib.suppress(nvml.NVMLError):
                gpus[name] = (
                    nvml.nvmlDeviceGetHandleByIndex(int(name))
                    if name.isdigit()
                    else nvml.nvmlDeviceGetHandleByUUID(name)  # GPU-... or MIG-...
                )
    try:
        yield nvml, gpus
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
