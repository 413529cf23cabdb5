"""CUDA's libraries, which need no driver to be loaded, and why a GPU can't be used."""

import os
import subprocess
from pathlib import Path

import pytest

from harness.slurm.environment import visible_gpus
from harness.system.cuda import hidden_by

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
