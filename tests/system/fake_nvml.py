"""A stand-in for NVML, NVIDIA's library that describes GPUs."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

OTHER = 7  # the id of another process, which uses memory of GPU 1


class FakeNvml:
    """The calls of NVML that the harness uses; a handle is the name of a GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, driver: bool = True, **use: int | None) -> None:
        """Define GPUs by name and use; the use is in per cent, or None if NVML can't report it."""
        self.driver, self.use = driver, use

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return sum(name.startswith("gpu") for name in self.use)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return self.nvmlDeviceGetHandleByUUID(f"gpu{index}")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid.replace("-", "_") not in self.use:
            raise self.NVMLError("Not Found")
        return uuid.replace("-", "_")

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        if self.use[handle] is None:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=self.use[handle])

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(used=2.5e9, free=1.5e9, total=80e9)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        held = {os.getpid(): 1e9} | ({OTHER: 40e9} if handle == "gpu1" else {})
        return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in held.items()]


def let_nvml_answer(
    monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None, seen: str | None = None
) -> None:
    """Replace NVML, and set CUDA_VISIBLE_DEVICES to `seen`."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # None makes the import fail
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
