"""The versions of CUDA's libraries, and the cache of compiled kernels."""

import os
import subprocess
from pathlib import Path

import pytest

from harness.system import gpu

LIBRARIES = {
    "libcudnn.so.9": "unsigned long cudnnGetVersion(void) { return 90300; }",
    "libcublas.so.12": """int cublasGetProperty(int part, int *value)
        { int parts[] = {12, 5, 3}; *value = parts[part]; return 0; }""",
    "libnccl.so.2": "int ncclGetVersion(int *version) { *version = 22105; return 0; }",
}


def test_libraries_report_their_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of a missing library is None."""
    monkeypatch.setattr(gpu, "library_folders", lambda: iter([tmp_path]))
    assert gpu.library_versions() == {"cudnn": None, "cublas": None, "nccl": None}
    for name, code in LIBRARIES.items():
        command = ["cc", "-shared", "-fPIC", "-x", "c", "-o", str(tmp_path / name), "-"]
        subprocess.run(command, input=code.encode(), check=True, timeout=60)
    assert gpu.library_versions() == {"cudnn": "9.3.0", "cublas": "12.5.3", "nccl": "2.21.5"}


def test_compiled_kernels_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept in a private folder of the user's cache, unless CUDA_CACHE_PATH is set."""
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
