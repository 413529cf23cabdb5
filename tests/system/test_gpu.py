"""The functions that query NVIDIA's driver and load its libraries."""

import os
import subprocess
from pathlib import Path

import pytest

from harness.slurm.environment import visible_gpus
from harness.system import gpu
from harness.system.gpu import Memory, hidden_by, memory_of_gpus
from tests.system.fake_nvml import OTHER, FakeNvml, let_nvml_answer

GPU_ENV = os.environ.get("HARNESS_GPU_ENV", "")
LOAD = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
NEEDS_A_DRIVER = {"libcudnn_engines_runtime_compiled.so.9"}  # it links to the driver's libcuda.so.1
LEAST = 25  # the fewest libraries that the lock file installs


@pytest.mark.slow
@pytest.mark.skipif(not GPU_ENV, reason="HARNESS_GPU_ENV names no environment from the GPU lock")
def test_every_library_of_the_gpu_lock_loads() -> None:
    """Every library loads in a new process of an environment that was made from the lock.

    `pip install --require-hashes -r requirements-gpu.lock` makes such an environment (some 6 GB);
    HARNESS_GPU_ENV names its folder.
    """
    libraries = sorted(Path(GPU_ENV).glob("lib/python3*/site-packages/nvidia/*/lib/lib*.so.*"))
    failures = {}
    for library in libraries:
        args = [f"{GPU_ENV}/bin/python", "-c", LOAD, str(library)]
        done = subprocess.run(args, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            failures[library.name] = done.stderr.strip().splitlines()[-1]
    assert len(libraries) >= LEAST
    assert failures.keys() <= NEEDS_A_DRIVER
    assert all("libcuda.so.1" in line for line in failures.values())


def test_mps_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon of MPS makes the pipe `control` in the folder that the environment names."""
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not gpu.has_mps()
    os.mkfifo(tmp_path / "control")
    assert gpu.has_mps()


@pytest.mark.parametrize("text", ["", " -1", "-1,0", ",", "NoDevFiles"])
def test_gpus_are_hidden_as_cuda_hides_them(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The first invalid name hides all later GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    assert hidden_by() == f"CUDA_VISIBLE_DEVICES is {text!r}, which hides all GPUs"
    assert visible_gpus() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"3, MIG-8f2a,{text or '-1'},5")
    assert hidden_by() == ""
    assert visible_gpus() == 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert hidden_by() == ""


@pytest.mark.parametrize(
    ("seen", "names"), [(None, ["0", "1"]), ("0", ["0"]), ("MIG-a", []), ("1, 0", ["1", "0"])]
)
def test_memory_of_visible_gpus(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, names: list[str]
) -> None:
    """NVML reports the memory of other processes by id, but not the memory of a MIG instance."""
    let_nvml_answer(monkeypatch, FakeNvml(gpu0=0, gpu1=0), seen)
    known = {"0": Memory(1.5, 80.0, 1.0, {}), "1": Memory(1.5, 80.0, 1.0, {OTHER: 40.0})}
    assert list(memory_of_gpus().items()) == [(name, known[name]) for name in names]


def test_compiled_kernels_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private folder of the user's cache keeps the kernels, unless CUDA_CACHE_PATH is set."""
    monkeypatch.setattr(os, "environ", {"XDG_CACHE_HOME": str(tmp_path)})
    gpu.keep_compiled_kernels()
    folder = tmp_path / "harness" / "cuda"
    assert os.environ["CUDA_CACHE_PATH"] == str(folder)
    assert int(os.environ["CUDA_CACHE_MAXSIZE"]) > 4e9
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.parent.chmod(0o777)  # other code made it with a lax umask
    del os.environ["CUDA_CACHE_PATH"]
    assert gpu.kernel_cache() == folder
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    for variables in ({}, {"CUDA_CACHE_PATH": "/mine"}):
        monkeypatch.setattr(os, "environ", {"XDG_CACHE_HOME": str(tmp_path), **variables})
        gpu.keep_compiled_kernels()
        assert os.environ.items() >= variables.items()
        assert "CUDA_CACHE_MAXSIZE" not in os.environ
