"""GPUs as the driver describes them, by a stand-in for NVML."""

import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness.system import nvml
from harness.system.nvml import describe_memory, free_gb, own_gb


class FakeNvml:
    """Two GPUs: another process holds memory of the second."""

    class NVMLError(Exception):
        pass

    def __init__(self, other: int) -> None:
        self.other = other

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        raise self.NVMLError

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(free=1.5e9, total=80e9)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        pids = [(os.getpid(), 1_000_000_000), (self.other, 40_000_000_000)][: handle + 1]
        return [SimpleNamespace(pid=pid, usedGpuMemory=memory) for pid, memory in pids]


@pytest.fixture
def neighbour(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Another process of ours on the second GPU."""
    code = "import sys; sys.stdin.read()"
    words = [sys.executable, "-c", code, "train", "--run-id", "b-seed2"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(nvml, "find_nvml", lambda: FakeNvml(process.pid))
        yield process.pid


def test_memory_is_told_with_those_that_hold_it(neighbour: int) -> None:
    """By its number, this process not at all; a MIG instance has no answer."""
    assert describe_memory({}) == (
        "GPU 0 has 1.5 of 80.0 GB free; GPU 1 has 1.5 of 80.0 GB free, "
        f"process {neighbour} holds 40.0 GB"
    )
    assert describe_memory({"CUDA_VISIBLE_DEVICES": "0"}) == "GPU 0 has 1.5 of 80.0 GB free"
    assert describe_memory({"CUDA_VISIBLE_DEVICES": "MIG-a"}) == ""


@pytest.mark.usefixtures("neighbour")
def test_memory_of_this_process_is_told() -> None:
    """Not its neighbour's; of a MIG instance, of which the driver says nothing, it is unknown."""
    assert own_gb({}) == 1.0
    assert own_gb({"CUDA_VISIBLE_DEVICES": "MIG-a"}) is None
    assert free_gb({}) == {"0": 1.5, "1": 1.5}
