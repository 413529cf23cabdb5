"""The functions that read NVIDIA's driver and libraries."""

import os
import subprocess
from pathlib import Path

import pytest

from harness.slurm.environment import visible_gpus
from harness.system import gpu
from harness.system.gpu import describe_memory, free_gb, hidden_by, others_use_gpus, own_gb
from tests.system.fake_nvml import OTHER, FakeNvml

LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
NEEDS_A_DRIVER = {"libcudnn_engines_runtime_compiled.so.9"}  # it links to the driver's libcuda.so.1
LEAST = 25  # the fewest libraries that the lock file installs


@pytest.mark.slow
def test_every_library_of_the_gpu_lock_loads() -> None:
    """Every library loads in a new process of an environment that was made from the lock.

    `pip install --require-hashes -r requirements-gpu.lock` makes such an environment (some 6 GB);
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


@pytest.mark.parametrize("text", ["", " -1", "-1,0", ",", "NoDevFiles"])
def test_gpus_are_hidden_as_cuda_hides_them(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The first invalid name hides all later GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    assert hidden_by() == f"CUDA_VISIBLE_DEVICES is {text!r}, which hides all GPUs"
    assert visible_gpus() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"3, MIG-8f2a,{text or '-1'},5")
    assert (hidden_by(), hidden_by({})) == ("", "")
    assert visible_gpus() == 2


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let NVML describe two GPUs."""
    monkeypatch.setattr(gpu, "find_nvml", lambda: FakeNvml(gpu0=0, gpu1=0))


@pytest.mark.usefixtures("two_gpus")
def test_memory_is_listed_with_the_processes_that_use_it() -> None:
    """The list leaves out this process, and a MIG instance, whose memory is unknown."""
    assert describe_memory({}) == (
        "GPU 0 has 1.5 of 80.0 GB free; GPU 1 has 1.5 of 80.0 GB free, "
        f"process {OTHER} uses 40.0 GB"
    )
    assert describe_memory({"CUDA_VISIBLE_DEVICES": "0"}) == "GPU 0 has 1.5 of 80.0 GB free"
    assert describe_memory({"CUDA_VISIBLE_DEVICES": "MIG-a"}) == ""
    assert others_use_gpus({})
    assert not others_use_gpus({"CUDA_VISIBLE_DEVICES": "0"})


@pytest.mark.usefixtures("two_gpus")
def test_memory_of_this_process_is_known() -> None:
    """The memory of other processes is left out; for a MIG instance the result is None."""
    assert own_gb({}) == 1.0
    assert own_gb({"CUDA_VISIBLE_DEVICES": "MIG-a"}) is None
    assert free_gb({}) == {"0": 1.5, "1": 1.5}
