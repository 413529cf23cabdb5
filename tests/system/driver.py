"""A stand-in for NVIDIA's driver library, whose cuInit returns the code in CUINIT."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#include <stdlib.h>
int cuInit(unsigned flags) { return atoi(getenv("CUINIT")); }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = 0; return 0; }
int cuGetErrorName(int error, const char **name) {
    *name = error == 802 ? "CUDA_ERROR_SYSTEM_NOT_READY" : "CUDA_ERROR_UNKNOWN";
    return 0;
}
int cuGetErrorString(int error, const char **text) { *text = "a chosen error"; return 0; }
"""


def make_driver(folder: Path, answer: int) -> dict[str, str]:
    """Compile the stand-in; returns the variables by which a process finds it."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    (folder / "driver.c").write_text(SOURCE)
    library = folder / "libcuda.so.1"
    words = [compiler, "-shared", "-fPIC", "-o", str(library), str(folder / "driver.c")]
    subprocess.run(words, check=True, timeout=60)
    others = os.environ.get("LD_LIBRARY_PATH")
    path = f"{folder}:{others}" if others else str(folder)
    return {"LD_LIBRARY_PATH": path, "CUINIT": str(answer)}


@pytest.fixture
def broken_driver(tmp_path: Path) -> dict[str, str]:
    """A driver that is not ready, as after a fault of the node."""
    return make_driver(tmp_path, 802)


@pytest.fixture
def whole_driver(tmp_path: Path) -> dict[str, str]:
    """A working driver without devices."""
    return make_driver(tmp_path, 0)
