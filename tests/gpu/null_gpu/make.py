"""Make an environment whose GPU computes nothing: python -m tests.gpu.null_gpu.make OUT.

OUT uses the packages of the running Python, and has a copy of TensorFlow that is made of hard
links. The C files beside this module are compiled to CUDA libraries, which lie beside the copy.
TensorFlow's wheel is unchanged: it lists GPUs, places operations, compiles, copies, launches
kernels and handles errors as on a real GPU. A launched kernel does nothing, so no number that comes
from a device means anything.

The program needs gcc and grep. A CUDA function that no C file defines becomes a stub that
counts its calls and returns 0.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

SOURCES = Path(__file__).parent
DRIVER = "driver"  # folder in OUT for LD_LIBRARY_PATH
TOOLKIT = "cuda"  # folder in OUT for XLA_FLAGS=--xla_gpu_cuda_data_dir
# TensorFlow compiles some kernels with the machine's CUDA toolkit, or else with that of NVIDIA's
# package. This toolkit has no functions for kernels, and its assembler writes no code.
PTXAS = """#!/bin/sh
case $1 in
    --version) echo "Cuda compilation tools, release 12.9, V12.9.86" ;;
    *) echo none >"$3" ;; # ptxas SOURCE -o TARGET
esac
"""
FLAGS = ("-O1", "-w", "-shared", "-fPIC")
# For each library: name of its C file, name of the library, NVIDIA's package that contains it
# (empty: the driver), and a pattern for the start of its functions' names.
LIBRARIES = (
    ("cuda", "libcuda.so.1", "", "cu[A-Z]"),
    ("nvml", "libnvidia-ml.so.1", "", "nvml"),
    ("cudart", "libcudart.so.12", "cuda_runtime", "(__)?cuda"),
    ("cublas", "libcublas.so.12", "cublas", "cublas([A-KM-Z]|Lo)"),
    ("cublasLt", "libcublasLt.so.12", "cublas", "cublasLt"),
    ("cufft", "libcufft.so.11", "cufft", "cufft"),
    ("cusolver", "libcusolver.so.11", "cusolver", "cusolver"),
    ("cusparse", "libcusparse.so.12", "cusparse", "cusparse"),
    ("cudnn", "libcudnn.so.9", "cudnn", "cudnn"),
    ("nccl", "libnccl.so.2", "nccl", "nccl"),
)
FUNCTION = re.compile(
    r"^(?:int |size_t |unsigned |const char \*|void \*\*|(?:GIVES|MAKES_HANDLE|COPIES)\()(\w+)",
    re.MULTILINE,
)
HANDLE = re.compile("(cu(blas|blasLt|dnn|solverDn|sparse)Create|cuGraphAdd).*")  # make handles


def make(out: Path) -> None:
    """Make an environment with the packages of the running Python, and add the libraries."""
    venv.create(out, clear=True, symlinks=True)
    packages = Path(sysconfig.get_path("purelib"))
    (folder,) = out.glob("lib/python3*/site-packages")
    (folder / "others.pth").write_text(f"import site; site.addsitedir({str(packages)!r})\n")
    shutil.copytree(
        packages / "tensorflow",
        folder / "tensorflow",
        symlinks=True,
        ignore=shutil.ignore_patterns("include"),  # C++ headers, two thirds of the files
        copy_function=os.link,
    )
    for path, content in (("bin/ptxas", PTXAS), ("nvvm/libdevice/libdevice.10.bc", "")):
        (out / TOOLKIT / path).parent.mkdir(parents=True)
        (out / TOOLKIT / path).write_text(content)
    (out / TOOLKIT / "bin/ptxas").chmod(0o755)
    driver = out / DRIVER
    driver.mkdir()
    names = functions_of(folder / "tensorflow")
    compile_library([SOURCES / "null.c"], driver / "libnull.so")
    for name, library, package, begins in LIBRARIES:
        target = folder / "nvidia" / package / "lib" if package else driver
        target.mkdir(parents=True, exist_ok=True)
        own = [each for each in names if re.match(begins, each)]
        compile_library([write_source(name, own, driver)], target / library, driver, name)
    (folder / "nvidia/cuda_nvcc").symlink_to(out / TOOLKIT)


def functions_of(tensorflow: Path) -> list[str]:
    """Return the CUDA functions that TensorFlow links or looks up by name.

    The names are strings in TensorFlow's libraries, each between two zero bytes.
    """
    begins = "|".join(begins for *_, begins in LIBRARIES)
    search = ["grep", "--text", "--null-data", "--no-filename", "--extended-regexp"]
    files = [tensorflow / f"libtensorflow_{name}.so.2" for name in ("cc", "framework")]
    pattern = f"^({begins})[A-Za-z0-9_]{{2,80}}$"
    done = subprocess.run([*search, pattern, *files], capture_output=True, text=True, check=True)
    return sorted(set(done.stdout.split("\0")) - {""})


def write_source(name: str, functions: list[str], folder: Path) -> Path:
    """Write the C source of a library: its C file, and stubs of its other functions."""
    written = SOURCES / f"{name}.c"
    by_hand = written.read_text() if written.exists() else '#include "null.h"\n'
    defined = set(FUNCTION.findall(by_hand))
    lines = [
        f"MAKES_HANDLE({each})"
        if HANDLE.fullmatch(each)
        else f"int {each}() {{ CALL(); return 0; }}"
        for each in functions
        if each not in defined
    ]
    path = folder / f"{name}.c"
    path.write_text(by_hand + "\n".join(lines) + "\n")
    return path


def compile_library(
    sources: list[Path], target: Path, links: Path | None = None, name: str = "null"
) -> None:
    """Compile a shared library. If `links` is a folder, the library loads libnull.so from it."""
    linked = [f"-L{links}", f"-Wl,-rpath,{links}", "-lnull"] if links else ["-lpthread"]
    named = [f'-DLIBRARY="{name}"'] if links else []
    command: list[str | Path] = [
        "gcc",
        *FLAGS,
        f"-I{SOURCES}",
        f"-Wl,-soname,{target.name}",
        *named,
        "-o",
        target,
    ]
    subprocess.run([*command, *sources, *linked], check=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
