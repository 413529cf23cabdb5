"""NVIDIA's driver and libraries as they are read here."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.slurm.environment import visible_gpus
from harness.system import gpu
from harness.system.gpu import describe_memory, free_gb, hidden_by, own_gb

LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
NEEDS_A_DRIVER = {"libcudnn_engines_runtime_compiled.so.9"}  # it links libcuda.so.1 itself
LEAST = 25  # libraries in the lock


@pytest.mark.slow
def test_every_library_of_the_gpu_lock_loads() -> None:
    """Each in a process of its own, by the Python of an environment made from the lock.

    `pip install --require-hashes -r requirements-gpu.lock` makes one (some 6 GB);
    HARNESS_GPU_ENV names its folder.
    """
    if "HARNESS_GPU_ENV" not in os.environ:
        pytest.skip("HARNESS_GPU_ENV names no environment made from requirements-gpu.lock")
    environment = Path(os.environ["HARNESS_GPU_ENV"])
    libraries = sorted(environment.glob("lib/python3*/site-packages/nvidia/*/lib/lib*.so.*"))
    failures = {}
    for library in libraries:
        args = [str(environment / "bin" / "python"), "-c", LOAD, str(library)]
        done = subprocess.run(args, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            failures[library.name] = done.stderr.strip().splitlines()[-1]
    assert len(libraries) >= LEAST
    missing = {name: line for name, line in failures.items() if "libcuda.so.1" in line}
    assert failures == missing, "a library lacks more than the driver"
    assert failures.keys() <= NEEDS_A_DRIVER


@pytest.mark.parametrize("text", ["", "-1", " -1", "-1,0", ",", "NoDevFiles"])
def test_gpus_are_hidden_as_cuda_hides_them(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What stands after the first name that is none is hidden too, and no GPU is counted."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    assert hidden_by() == f"CUDA_VISIBLE_DEVICES is {text!r}, which hides all GPUs"
    assert visible_gpus() == 0


def test_gpus_that_are_named_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are those of an environment that says nothing."""
    assert hidden_by({}) == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, MIG-8f2a,-1,5")
    assert hidden_by() == ""
    assert visible_gpus() == 2


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
        monkeypatch.setattr(gpu, "find_nvml", lambda: FakeNvml(process.pid))
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
