"""CUDA on this machine, without TensorFlow: the driver, the libraries, and what is wrong with them.

Loading a library needs no GPU and no driver, so everything here answers on any machine.
"""

import contextlib
import ctypes
import os
import re
import site
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.files.paths import private_cache

# What TensorFlow 2.21 opens by name before it registers a GPU (its dso_loader): it registers none
# where one of them is missing.
LIBRARIES = (
    "libcudart.so.12",
    "libcublas.so.12",
    "libcublasLt.so.12",
    "libcufft.so.11",
    "libcusolver.so.11",
    "libcusparse.so.12",
    "libcudnn.so.9",
)
NCCL = "libnccl.so.2"  # for several GPUs alone
INSTALL = "HARNESS_EXTRA=gpu bash slurm/common.sh --setup"
ASK = "compare nvidia-smi, and ask your site"
CACHE_BYTES = 4 * 2**30 - 1  # the largest cache that CUDA takes is 4 GiB

DRIVER_LIBRARY_MISSING = 303  # CUDA_ERROR_SHARED_OBJECT_INIT_FAILED, without a name in TensorFlow


@dataclass(frozen=True)
class Problem:
    """Why a GPU that should be here can't be used."""

    reason: str
    remedy: str
    fault: Literal["installation", "node"]  # another node helps with a fault of the node alone


def has_driver() -> bool:
    """Whether an NVIDIA driver is here: its kernel module, or its library."""
    return Path("/proc/driver/nvidia").exists() or _open("libcuda.so.1") is not None


def library_folders() -> Iterator[Path]:
    """Where the packages of NVIDIA on PyPI put their libraries."""
    for folder in site.getsitepackages():
        yield from sorted(Path(folder).glob("nvidia/*/lib"))


def missing_libraries() -> list[str]:
    """Those of the CUDA libraries that can't be loaded here."""
    return [name for name in LIBRARIES if _load(name) is None]


def library_versions() -> dict[str, str | None]:
    """The versions of cuDNN, cuBLAS and NCCL as the libraries report them, None without one.

    Of the libraries that TensorFlow has loaded, where it has loaded them.
    """
    return {"cudnn": _cudnn_version(), "cublas": _cublas_version(), "nccl": _nccl_version()}


def _cudnn_version() -> str | None:
    library = _load("libcudnn.so.9")
    if library is None:
        return None
    library.cudnnGetVersion.restype = ctypes.c_size_t
    number = int(library.cudnnGetVersion())
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def _cublas_version() -> str | None:
    library = _load("libcublas.so.12")
    if library is None:
        return None
    value, parts = ctypes.c_int(), []
    for part in range(3):  # MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL of library_types.h
        library.cublasGetProperty(part, ctypes.byref(value))
        parts.append(str(value.value))
    return ".".join(parts)


def _nccl_version() -> str | None:
    library = _load(NCCL)
    value = ctypes.c_int()
    if library is None or library.ncclGetVersion(ctypes.byref(value)) != 0:
        return None
    number = value.value  # 22105 is 2.21.5
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def keep_compiled_kernels() -> None:
    """Name CUDA a cache for kernels that the driver compiles, with room for all of TensorFlow's.

    For cards after sm_89 TensorFlow holds no machine code: all is compiled at its first use. CUDA's
    own cache may be too small for that, or on a disk of the node's that is emptied.
    """
    if "CUDA_CACHE_PATH" in os.environ or (folder := kernel_cache(os.environ)) is None:
        return
    os.environ["CUDA_CACHE_PATH"] = str(folder)
    os.environ.setdefault("CUDA_CACHE_MAXSIZE", str(CACHE_BYTES))


def kernel_cache(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of kernels that the driver compiled; None where nothing is kept."""
    if environment.get("CUDA_CACHE_DISABLE") == "1":
        return None
    named = environment.get("CUDA_CACHE_PATH")
    return Path(named) if named else private_cache("cuda")


def has_mps(environment: Mapping[str, str]) -> bool:
    """Whether NVIDIA's MPS serves this process: its daemon listens in the folder of its pipes."""
    folder = environment.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps"  # noqa: S108 - NVIDIA's
    return (Path(folder) / "control").exists()


def find_problem(
    lines: str, environment: Mapping[str, str], *, is_cuda_build: bool, num_seen: int, promised: int
) -> Problem:
    """Why TensorFlow sees fewer GPUs than promised.

    Args:
        lines: what TensorFlow wrote on standard error when it was asked for its GPUs.
        environment: its CUDA_VISIBLE_DEVICES may hide GPUs.
        is_cuda_build: whether this TensorFlow was built for CUDA.
        num_seen: the GPUs that TensorFlow sees.
        promised: the GPUs that it should see.
    """
    if hidden := hidden_by(environment):
        return Problem(hidden, "unset it", "installation")
    if not is_cuda_build:
        return Problem(
            "this TensorFlow is no CUDA build", f"install one that is: {INSTALL}", "installation"
        )
    if not has_driver():
        return Problem(
            "there is no NVIDIA driver here: cannot dlopen libcuda.so.1",
            "run on a node with GPUs; in a container add --nv (Apptainer) or --gpus all (Docker)",
            "installation",
        )
    found = re.search(r"cuInit:? .*?(CUDA_ERROR_\w+|UNKNOWN ERROR \(\d+\))", lines)
    if found and f"({DRIVER_LIBRARY_MISSING})" in found[1]:
        return Problem(
            "cuInit failed: the driver's library libcuda.so.1 can't be loaded",
            "in a container add --nv (Apptainer) or --gpus all (Docker)",
            "installation",
        )
    if found:
        return Problem(f"cuInit failed: {found[1]}", ASK, "node")
    if missing := missing_libraries():
        return Problem(
            f"cannot dlopen {', '.join(missing)}", f"install them: {INSTALL}", "installation"
        )
    visible = visible_names(environment.get("CUDA_VISIBLE_DEVICES", ""))
    named = [name for name in visible if not name.isdigit()]
    if named and not num_seen:
        return Problem(
            f"CUDA_VISIBLE_DEVICES names {', '.join(named)}, and the driver knows no such device",
            "compare nvidia-smi -L",
            "node",
        )
    return Problem(f"the driver shows {num_seen} of {promised}", ASK, "node")


def hidden_by(environment: Mapping[str, str] = os.environ) -> str:
    """How CUDA_VISIBLE_DEVICES hides all GPUs from a process; empty if it is unset or names one."""
    text = environment.get("CUDA_VISIBLE_DEVICES")
    if text is None or visible_names(text):
        return ""
    return f"CUDA_VISIBLE_DEVICES is {text!r}, which hides all GPUs"


def visible_names(text: str) -> list[str]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names: indices, UUIDs or MIG instances.

    As CUDA reads it: what stands after the first invalid index is ignored.
    """
    names = []
    for name in (part.strip() for part in text.split(",")):
        if not name or name.startswith("-") or name == "NoDevFiles":
            break
        names.append(name)
    return names


def _load(name: str) -> ctypes.CDLL | None:
    paths = (name, *(str(folder / name) for folder in library_folders()))
    return next((library for library in map(_open, paths) if library), None)


def _open(path: str) -> ctypes.CDLL | None:
    with contextlib.suppress(OSError):
        return ctypes.CDLL(path)
    return None
