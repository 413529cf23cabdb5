"""A stand-in for NVIDIA's driver library; it reports that the driver is not ready."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
int cuInit(unsigned flags) { return 802; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuGetErrorName(int error, const char **name) {
    *name = "CUDA_ERROR_SYSTEM_NOT_READY";
    return 0;
}
int cuGetErrorString(int error, const char **text) { *text = "not ready"; return 0; }
"""


@pytest.fixture
def broken_driver(tmp_path: Path) -> dict[str, str]:
    """The environment variables with which a process loads this library."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    words = [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(tmp_path / "libcuda.so.1"), "-"]
    subprocess.run(words, input=SOURCE.encode(), check=True, timeout=60)
    others = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": f"{tmp_path}:{others}" if others else str(tmp_path)}
