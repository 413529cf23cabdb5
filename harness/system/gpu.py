"""Asks NVIDIA's driver, NVML and the CUDA libraries about this machine's GPUs, without TensorFlow.

Every function can be called on a machine without a GPU, a driver or the package nvidia-ml-py. A
function whose library or driver is missing returns an empty value, such as None or an empty text.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.system.files import cache_folder, others_can_write

# TensorFlow 2.21 opens these libraries by name (dso_loader) and registers no GPU if one is missing.
# Each library comes after the libraries that it needs.
LIBRARIES = (
    "libcudart.so.12",
    "libcublasLt.so.12",
    "libcublas.so.12",
    "libcufft.so.11",
    "libcusparse.so.12",
    "libcusolver.so.11",
    "libcudnn.so.9",
)
NCCL = "libnccl.so.2"  # needed only for several GPUs
NVML = "libnvidia-ml.so.1"  # part of the driver
IN_A_CONTAINER = "in a container add --nv (Apptainer) or --gpus all (Docker)"
CACHE_BYTES = 4 * 2**30 - 1  # size of the cache of compiled kernels; CUDA allows 4 GiB at most

# TensorFlow 2.21 is built for cards up to this compute capability. On later cards XLA may abort the
# process (TensorFlow issues 111958 and 101746).
LAST_TRUSTED = (9, 0)
CUDNN_DROPS = "9.11"  # from this version on, cuDNN has no code for cards below FIRST_OF_CUDNN
FIRST_OF_CUDNN = (7, 5)

Version = tuple[int, ...]

# The names in CUDA_VISIBLE_DEVICES before `take_own_gpu` replaced them by the GPU of a slot.
names_of_job: list[str] | None = None


@dataclass(frozen=True)
class Card:
    """The name of a GPU and its compute capability, such as (8, 0) for an A100."""

    name: str
    capability: Version

    @property
    def title(self) -> str:
        """The name and the capability as text, such as `NVIDIA A100 (8.0)`."""
        return f"{self.name} ({'.'.join(map(str, self.capability))})"


def has_driver() -> bool:
    """Whether this machine has the kernel module or the library of NVIDIA's driver."""
    return Path("/proc/driver/nvidia").exists() or _open("libcuda.so.1") is not None


def library_folders() -> Iterator[Path]:
    """Yield the library folders of NVIDIA's PyPI packages, which lie beside TensorFlow's folder."""
    spec = importlib.util.find_spec("tensorflow")
    for folder in (spec and spec.submodule_search_locations) or ():
        yield from sorted(Path(folder).parent.glob("nvidia/*/lib"))


def load_libraries() -> list[str]:
    """Load NVML and the CUDA libraries; return the names of the libraries that can't be loaded.

    Call this function before TensorFlow looks for devices. If a CUDA library is missing, TensorFlow
    registers no GPU. If a CUDA library is already loaded, TensorFlow 2.21 uses the loaded library.
    If a CUDA library is not loaded yet, TensorFlow searches for it in LD_LIBRARY_PATH, TensorFlow's
    RUNPATH and the system's folders. TensorFlow's RUNPATH does not contain `nvidia/cusolver/lib`.
    """
    return [name for name in (NVML, *LIBRARIES) if _load(name) is None]


def shadowing_libraries() -> dict[str, str]:
    """Return the libraries that were loaded instead of the environment's copies, with their paths.

    A site's environment modules may set LD_LIBRARY_PATH, which has priority over TensorFlow's
    RUNPATH, so TensorFlow may load the site's libraries.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return {}
    shadowing = {}
    for name in (*LIBRARIES, NCCL):
        own = [folder / name for folder in library_folders() if (folder / name).exists()]
        loaded = re.search(rf" (/.*/{re.escape(name)}[.0-9]*)$", maps, re.MULTILINE)
        if own and loaded and not any(Path(loaded[1]).resolve() == each.resolve() for each in own):
            shadowing[name] = loaded[1]
    return shadowing


def num_cards() -> int | None:
    """Return the number of this machine's GPUs; None if the driver does not answer."""
    library, num = _open(NVML), ctypes.c_uint()
    if library is None or library.nvmlInit_v2() != 0:
        return None
    return num.value if library.nvmlDeviceGetCount_v2(ctypes.byref(num)) == 0 else None


def driver_cuda() -> str | None:
    """Return the latest CUDA version whose code the driver compiles; None without a driver."""
    driver, version = _open("libcuda.so.1"), ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def library_versions() -> dict[str, str | None]:
    """Return the versions of cuDNN, cuBLAS and NCCL. The version of a missing library is None.

    If TensorFlow has loaded a library, this function asks the loaded file for the version.
    """
    value, found = ctypes.c_int(), dict[str, str | None].fromkeys(("cudnn", "cublas", "nccl"))
    if cudnn := _load("libcudnn.so.9"):
        cudnn.cudnnGetVersion.restype = ctypes.c_size_t
        found["cudnn"] = _dotted(int(cudnn.cudnnGetVersion()))
    if cublas := _load("libcublas.so.12"):
        parts = []
        for part in range(3):  # MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL of library_types.h
            cublas.cublasGetProperty(part, ctypes.byref(value))
            parts.append(str(value.value))
        found["cublas"] = ".".join(parts)
    if (nccl := _load(NCCL)) and nccl.ncclGetVersion(ctypes.byref(value)) == 0:
        found["nccl"] = _dotted(value.value)
    return found


def has_mps() -> bool:
    """Whether NVIDIA's MPS, through which several processes share a GPU, serves this process."""
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps"  # noqa: S108 - NVIDIA's
    return os.path.exists(f"{folder}/control")  # noqa: PTH110 - `Path.exists` may raise an error


def _dotted(number: int) -> str:
    """Format a version number: 91002 becomes `9.10.2`."""
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"


def code_for(capability: Version, targets: Sequence[str]) -> str:
    """Return the item of `targets` that a card runs; return "" if the card can run none of them.

    Machine code, such as `sm_80`, runs on cards with the same major version and the same or a
    later minor version. PTX, such as `compute_90`, runs on cards with this or any later
    capability, because the driver compiles PTX for the card.
    """
    earlier = [(_capability(each), each) for each in targets if _capability(each) <= capability]
    same = [each for each in earlier if each[1].startswith("sm_") and each[0][0] == capability[0]]
    ptx = [each for each in earlier if each[1].startswith("compute_")]
    return max(same or ptx, default=((), ""))[1]


def _capability(target: str) -> Version:
    digits = "".join(filter(str.isdigit, target))
    return int(digits[:-1]), int(digits[-1])


def lasting_error(num_gpus: int) -> str:
    """Return the error with which all CUDA calls fail, such as CUDA_ERROR_ECC_UNCORRECTABLE.

    TensorFlow and the CUDA libraries may replace CUDA's error by their own. This function
    allocates memory on each GPU, and so gets CUDA's error again if the error persists. If all
    allocations succeed, the result is empty.

    Args:
        num_gpus: how many of the visible GPUs this process uses, beginning with the first.
    """
    driver = _open("libcuda.so.1")
    if driver is None:
        return ""
    context, memory, name = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_char_p()
    for gpu in range(num_gpus):
        code = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), gpu)
        if not code:
            driver.cuCtxPushCurrent_v2(context)
            code = driver.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(1 << 20))
            if not code:
                driver.cuMemFree_v2(memory)
            driver.cuCtxPopCurrent_v2(ctypes.byref(context))
            driver.cuDevicePrimaryCtxRelease_v2(gpu)
        if code:
            driver.cuGetErrorName(code, ctypes.byref(name))
            return (name.value or b"").decode()
    return ""


def keep_compiled_kernels() -> None:
    """Make CUDA use a cache that is large enough for all of TensorFlow's compiled kernels.

    TensorFlow has no machine code for cards after sm_89, so the driver compiles each kernel at its
    first use. CUDA's default cache may be too small, or on a disk that is wiped after the job.
    """
    if "CUDA_CACHE_PATH" in os.environ or (folder := kernel_cache()) is None:
        return
    os.environ["CUDA_CACHE_PATH"] = str(folder)
    os.environ.setdefault("CUDA_CACHE_MAXSIZE", str(CACHE_BYTES))


def kernel_cache() -> Path | None:
    """Return the folder of CUDA's kernel cache; None if the cache is off or the folder is not safe.

    If CUDA_CACHE_PATH names a folder, the function returns this folder without a check.
    Without CUDA_CACHE_PATH, the function returns a subfolder of `cache_folder()`, if other users
    can't replace the code in this subfolder.
    """
    if os.environ.get("CUDA_CACHE_DISABLE") == "1":
        return None
    if named := os.environ.get("CUDA_CACHE_PATH"):
        return Path(named)
    folder = cache_folder() / "cuda"
    with contextlib.suppress(OSError):
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        if others_can_write(folder.parent.stat()):
            folder.parent.chmod(0o700)  # fails if the folder belongs to another user
        status = folder.lstat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o077:
            return folder
    return None


def unknown_names(names: Sequence[str]) -> list[str]:
    """Return the names in CUDA_VISIBLE_DEVICES that the driver does not know.

    The list is empty if the driver shows no GPU at all, or does not answer.
    """
    if not (num := num_cards()):
        return []
    library, handle = ctypes.CDLL(NVML), ctypes.c_void_p()
    return [
        name
        for name in names
        if (
            int(name) >= num
            if name.isdigit()
            else library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)) != 0
        )
    ]


def hidden_by() -> str:
    """Return a message if CUDA_VISIBLE_DEVICES hides all GPUs; else an empty string."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None or visible_names(text):
        return ""
    return f"CUDA_VISIBLE_DEVICES is {text!r}, which hides all GPUs"


def visible_names(text: str) -> list[str]:
    """Split a value of CUDA_VISIBLE_DEVICES into indices, UUIDs and MIG instances.

    The first invalid name and all names after it are ignored, because CUDA ignores them too.
    """
    names = []
    for name in (part.strip() for part in text.split(",")):
        if not name or name.startswith("-") or name == "NoDevFiles":
            break
        names.append(name)
    return names


def _load(name: str) -> ctypes.CDLL | None:
    """Load a library from LD_LIBRARY_PATH, NVIDIA's packages or default folders, if possible."""
    site = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    folders = (*(Path(each) for each in site if each), *library_folders())
    paths = (*(str(folder / name) for folder in folders), name)
    return next((library for library in map(_open, paths) if library), None)


def _open(path: str) -> ctypes.CDLL | None:
    with contextlib.suppress(OSError):
        return ctypes.CDLL(path)
    return None


@dataclass(frozen=True)
class Memory:
    """The memory of a GPU in GB."""

    free_gb: float
    total_gb: float
    own_gb: float  # used by this process; 0 if NVML does not report it
    others_gb: dict[int, float]  # used by other processes, by process id

    def __str__(self) -> str:
        others = [f"process {pid} uses {gb:.1f} GB" for pid, gb in self.others_gb.items()]
        return ", ".join([f"has {self.free_gb:.1f} of {self.total_gb:.1f} GB free", *others])


def memory_of_gpus() -> dict[str, Memory]:
    """Return the memory of each visible GPU that NVML knows; the keys are indices or UUIDs."""
    found = dict[str, Memory]()
    nvml, gpus = open_gpus()
    for name, gpu in gpus.items():
        with contextlib.suppress(nvml.NVMLError):
            memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
            running = nvml.nvmlDeviceGetComputeRunningProcesses(gpu)
            used_gb = {each.pid: (each.usedGpuMemory or 0) / 1e9 for each in running}
            own_gb = used_gb.pop(os.getpid(), 0.0)
            found[name] = Memory(memory.free / 1e9, memory.total / 1e9, own_gb, used_gb)
    return found


def open_gpus() -> tuple[Any, dict[str, Any]]:
    """Return `pynvml`, and a dictionary with NVML's handle of each visible GPU, in CUDA's order.

    The dictionary's keys are the GPUs' names in CUDA_VISIBLE_DEVICES, which are indices or UUIDs;
    if CUDA_VISIBLE_DEVICES is not set, the keys are the indices of all GPUs. If NVML does not know
    a name, such as an abbreviated UUID, this name and all later names are left out.
    Without the package nvidia-ml-py, the function returns None and an empty dictionary. NVML stays
    open until this process ends.
    """
    try:
        import pynvml as nvml
    except ImportError:
        return None, {}
    gpus = dict[str, Any]()
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = map(str, range(nvml.nvmlDeviceGetCount())) if seen is None else visible_names(seen)
        for name in names:
            gpus[name] = (
                nvml.nvmlDeviceGetHandleByIndex(int(name))
                if name.isdigit()
                else nvml.nvmlDeviceGetHandleByUUID(name)  # GPU-... or MIG-...
            )
    return nvml, gpus
