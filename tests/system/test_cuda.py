"""CUDA's libraries, which need no driver to be loaded, and why a GPU can't be used."""

import os
import subprocess
from pathlib import Path

import pytest

from harness.slurm.environment import visible_gpus
from harness.system import cuda
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


NOT_READY = "E0000 failed call to cuInit: INTERNAL: CUDA error: CUDA_ERROR_SYSTEM_NOT_READY: later"
NO_LIBRARY = "E0000 failed call to cuInit: INTERNAL: CUDA error: UNKNOWN ERROR (303)"


@pytest.mark.parametrize(
    ("lines", "visible", "seen", "missing", "reason", "fault"),
    [
        (NOT_READY, "0", 0, [], "cuInit failed: CUDA_ERROR_SYSTEM_NOT_READY", "node"),
        (NO_LIBRARY, "0", 0, [], "libcuda.so.1 can't be loaded", "installation"),
        ("", "0", 0, ["libcudnn.so.9"], "cannot dlopen libcudnn.so.9", "installation"),
        ("", "0,1", 1, [], "the driver shows 1 of 2", "node"),
        ("", None, 1, [], "the driver shows 1 of 2", "node"),
    ],
    ids=["broken", "no-libcuda", "no-cudnn", "fewer", "fewer-by-slurm"],
)
def test_why_a_gpu_can_not_be_used(
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
    visible: str | None,
    seen: int,
    missing: list[str],
    reason: str,
    fault: str,
) -> None:
    """One reason and one remedy; only what another node may have sends a job to another node."""
    monkeypatch.setattr(cuda, "has_driver", lambda: True)
    monkeypatch.setattr(cuda, "has_nvml", lambda: True)
    monkeypatch.setattr(cuda, "missing_libraries", lambda: missing)
    problem = cuda.find_problem(
        lines,
        {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible},
        is_cuda_build=True,
        num_seen=seen,
        promised=2,
    )
    assert reason in problem.reason
    assert problem.fault == fault
    assert problem.remedy


def test_a_tensorflow_without_cuda_is_named() -> None:
    """A wheel for the CPU alone can be installed by mistake."""
    problem = cuda.find_problem("", {}, is_cuda_build=False, num_seen=0, promised=1)
    assert (problem.fault, "no CUDA build" in problem.reason) == ("installation", True)
