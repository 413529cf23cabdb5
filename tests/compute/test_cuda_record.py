"""The record of CUDA, with made-up cards and libraries."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from harness.compute.strategy import describe_cuda
from harness.system import gpu

LIBRARIES = {
    "libcudnn.so.9": "unsigned long cudnnGetVersion(void) { return 90300; }",
    "libcublas.so.12": """int cublasGetProperty(int part, int *value)
        { int parts[] = {12, 5, 3}; *value = parts[part]; return 0; }""",
    "libnccl.so.2": "int ncclGetVersion(int *version) { *version = 22105; return 0; }",
}


def test_versions_are_those_of_the_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each library is asked for its version; one that is not there has none."""
    monkeypatch.setattr(gpu, "library_folders", lambda: iter([tmp_path]))
    assert gpu.library_versions() == {"cudnn": None, "cublas": None, "nccl": None}
    for name, code in LIBRARIES.items():
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-o", str(tmp_path / name), "-"]
        subprocess.run(command, input=code.encode(), check=True, timeout=60)
    assert gpu.library_versions() == {"cudnn": "9.3.0", "cublas": "12.5.3", "nccl": "2.21.5"}


def test_kernels_that_the_driver_compiles_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a private folder of the user's cache, or where the user says."""
    monkeypatch.setattr(os, "environ", {"XDG_CACHE_HOME": str(tmp_path)})
    gpu.keep_compiled_kernels()
    folder = tmp_path / "harness" / "cuda"
    assert os.environ["CUDA_CACHE_PATH"] == str(folder)
    assert int(os.environ["CUDA_CACHE_MAXSIZE"]) > 4e9
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    for variables in ({}, {"CUDA_CACHE_PATH": "/mine"}):
        monkeypatch.setattr(os, "environ", {"XDG_CACHE_HOME": str(tmp_path), **variables})
        gpu.keep_compiled_kernels()
        assert os.environ.items() >= variables.items()
        assert "CUDA_CACHE_MAXSIZE" not in os.environ


def test_the_record_names_cards_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compute capability and the variables of NCCL and CUDA; nothing where the CPU trains."""
    assert describe_cuda({}) == {}
    details: Any = {"device_name": "NVIDIA A100", "compute_capability": (8, 0)}
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["a", "b"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    variables = {"NCCL_SOCKET_IFNAME": "ib0", "CUDA_VISIBLE_DEVICES": "0,1"}
    pipes = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)}
    record = describe_cuda({**variables, **pipes, "HOME": "/home/me"})
    assert record["compute_capabilities"] == ["8.0", "8.0"]
    assert record["variables"] == {**pipes, **variables}
