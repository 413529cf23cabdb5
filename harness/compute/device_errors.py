"""What an error of a GPU means, from TensorFlow's texts: one line with a remedy, and whose fault.

TensorFlow is not imported: the guard of a process that died knows its messages alone.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import NodeFault, RunError
from harness.slurm.environment import report_node_fault
from harness.system import stderr_filter
from harness.system.gpu import describe_memory, free_gb

MAX_QUOTED = 300  # characters of TensorFlow's own message
LATEST = 40  # messages before a death, among which its reason is looked for
LITTLE_GB = 0.5  # of a GPU, which cuDNN's and cuBLAS's own memory does not fit in

# 4004 is CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, which this TensorFlow can't name.
OUT_OF_MEMORY = re.compile(
    r"CUDA_ERROR_OUT_OF_MEMORY|CU(DNN|BLAS)_STATUS_ALLOC_FAILED|unknown cudnn status: 4004\b"
    r"|[Oo]ut of memory|the resource allocation failed"  # cuBLAS's words
    r"|Dst tensor is not initialized"  # the copy to a tensor without memory
)
FREE_BYTES = re.compile(r"Memory usage: (\d+) bytes free")  # where cuDNN can't start
# A kernel that could not be loaded or launched: the operation leaves its output as it was, and
# succeeds (tf_gpu_runtime_wrappers.cc). Nothing else tells of it.
UNWRITTEN = re.compile(r"tf_gpu_runtime_wrappers\.cc:\d+\] .*failed with")
CHECK_FAILED = re.compile(r"Check failed: .* is OK \((.*)\)$")
ARGUMENTS = re.compile(r"'(\w+)\(.*\)'")  # of a call, which nobody wants to read


@dataclass(frozen=True)
class DeviceError:
    """An error of CUDA's and what to do about it."""

    pattern: str  # of TensorFlow's message
    what: str
    remedy: str
    is_node_fault: bool = False  # the job goes back into the queue without the node


LIBRARY_REFUSED = "a library of CUDA's refused"
GPU_FAULT = "run harness resume on another node, and report this one to your site"
# The first that matches is told. tests/gpu provokes them.
DEVICE_ERRORS = (
    DeviceError(
        "(?i)ECC_UNCORRECTABLE|uncorrectable ECC",
        "the GPU's memory is broken",
        GPU_FAULT,
        is_node_fault=True,
    ),
    DeviceError(
        "(?i)SYSTEM_NOT_READY|system not yet initialized|CUDA_ERROR_NO_DEVICE",
        "the GPU is lost to its driver",
        GPU_FAULT,
        is_node_fault=True,
    ),
    DeviceError(
        "(?i)ILLEGAL_ADDRESS|illegal memory access|LAUNCH_FAILED|unspecified launch failure|"
        "Unexpected Event status",  # for which TensorFlow keeps CUDA's own code to itself
        "the GPU ended a kernel by a fault",
        f"{GPU_FAULT}; where it comes again elsewhere, it is a fault of CUDA's or TensorFlow's",
        is_node_fault=True,
    ),
    DeviceError(
        "(?i)driver version is insufficient|INSUFFICIENT_DRIVER|UNSUPPORTED_PTX_VERSION|"
        "unsupported toolchain",
        "the driver is too old for this CUDA",
        "harness doctor says which one this card needs; ask your site, or use another node",
    ),
    DeviceError(
        "(?i)NO_BINARY_FOR_GPU|no kernel image is available",
        "TensorFlow holds no code for this card",
        "harness doctor says which cards it serves; use another node, or --devices cpu",
    ),
    DeviceError(
        "(?i)busy or unavailable|DEVICE_UNAVAILABLE",
        "the GPU lets no further process in",
        "it is in an exclusive compute mode and another process has it: use one run a GPU, start "
        "NVIDIA's MPS, or ask your site for: nvidia-smi -c DEFAULT",
    ),
    DeviceError(
        r"(?i)\bMIG\b|invalid device ordinal|CUDA_ERROR_INVALID_DEVICE",
        "CUDA does not know the GPU, or the MIG instance, that it was given",
        "compare CUDA_VISIBLE_DEVICES with nvidia-smi -L; a process can use one MIG instance only",
    ),
    DeviceError(
        "(?i)NCCL",
        "the GPUs can't talk to each other (NCCL)",
        "name the network in slurm/site.sh (export NCCL_SOCKET_IFNAME=ib0), see why by "
        "NCCL_DEBUG=INFO, or use one GPU",
    ),
    DeviceError(
        "CUDNN_STATUS|CUBLAS_STATUS|unknown cudnn status|DNN library initialization failed|"
        "Failed to call DoRnn|Failed to call ThenRnn|(?i:failed to create cu(dnn|blas))|"
        # What cublasGetStatusString says; TensorFlow passes on nothing else.
        "the (library was not initialized|function failed to launch on the GPU)|"
        "an internal operation failed|the functionality requested is not supported",
        LIBRARY_REFUSED,
        "harness doctor --probe tries them; a GPU whose memory is full does this too: compare "
        "nvidia-smi",
    ),
    DeviceError(
        "(?i)determinis(m|tic)",
        "an operation has no deterministic kernel here",
        "set train.deterministic = false, which gives up same bytes",
    ),
    DeviceError(
        UNWRITTEN.pattern,
        "the GPU could not run a kernel, and TensorFlow went on without its result",
        "compare nvidia-smi and the versions that harness doctor names",
    ),
)


def is_node_fault(text: str) -> bool:
    """Whether a text names a fault of a GPU, for which another node is better."""
    return any(re.search(each.pattern, text) for each in DEVICE_ERRORS if each.is_node_fault)


def explained(
    texts: Sequence[str], lasting: str = "", *, sees_memory: bool = True
) -> RunError | None:
    """What texts of TensorFlow's mean, in one line with a remedy; None if no rule knows them.

    Args:
        texts: each in one line, the ones that say most first.
        lasting: what CUDA answers since then, by `gpu.lasting_error`.
        sees_memory: whether the GPU still holds what it held when they were written.
    """
    text = "\n".join([lasting, *texts] if is_node_fault(lasting) else texts)
    if OUT_OF_MEMORY.search(text) and not is_node_fault(lasting):
        return out_of_memory(sees_memory=sees_memory)
    for known in DEVICE_ERRORS:
        if not (match := re.search(known.pattern, text)):
            continue
        if known.what == LIBRARY_REFUSED and (
            OUT_OF_MEMORY.search(lasting) or _has_little_memory(text, sees_memory)
        ):
            return out_of_memory(sees_memory=sees_memory)
        message = f"{known.what}: {_quoted(text, match)}; {known.remedy}"
        if known.is_node_fault:
            return NodeFault(message, will_requeue=report_node_fault(message))
        return RunError(message)
    return None


def _quoted(text: str, match: re.Match[str]) -> str:
    """The line of a match."""
    start = text.rfind("\n", 0, match.start()) + 1
    return _told(text[start:].partition("\n")[0])


def _told(line: str) -> str:
    """What a message tells, without where it comes from and what a call was given."""
    line = stderr_filter.BEGIN.sub("", line).partition(" *** Check failure")[0]
    if failed := CHECK_FAILED.search(line):
        line = failed[1]
    return " ".join(ARGUMENTS.sub(r"\1", line).split())[:MAX_QUOTED]


def _has_little_memory(text: str, sees_memory: bool) -> bool:
    """Whether a library had no room for itself, which it does not say."""
    free = [int(found) / 1e9 for found in FREE_BYTES.findall(text)]
    if not free and sees_memory:
        free = list(free_gb().values())
    return min(free, default=LITTLE_GB) < LITTLE_GB


def out_of_memory(*, sees_memory: bool = True) -> RunError:
    """A device has no memory left: how much of it others hold, and what to do.

    Args:
        sees_memory: whether to ask the driver, which knows of GPUs alone.
    """
    memory = describe_memory() if sees_memory else ""
    shared = ", or fewer runs a GPU" if "holds" in memory else ""
    return RunError(
        f"the device is out of memory{': ' if memory else ''}{memory}; lower train.batch_size or "
        f"data.maxlen, or use more devices{shared}"
    )


def telling(found: Sequence[str]) -> list[str]:
    """Those of TensorFlow's messages that may say why something failed, the latest first."""
    begins = [(stderr_filter.BEGIN.match(line), line) for line in found[-LATEST:]]
    told = [
        line
        for begin, line in begins
        if UNWRITTEN.search(line) or (begin["level"] in "EF" if begin else "what():" in line)
    ]
    return told[::-1]


def check_results() -> None:
    """Show what TensorFlow has written, and refuse results that it left out.

    Call it when results have arrived from a GPU, before anything is kept of them.

    Raises:
        NodeFault, RunError: if a kernel was not run, whose operation succeeded all the same.
    """
    if not stderr_filter.captured:
        return
    found = stderr_filter.captured.read()
    if error := explained([line for line in found if UNWRITTEN.search(line)]):
        raise error
    stderr_filter.captured.show(found)


def of_death(text: str) -> RunError | None:
    """Why a process died of a fault, from all its messages; None if they do not say."""
    return explained(telling(stderr_filter.messages(text)), sees_memory=False)


def died_of(number: signal.Signals, text: str) -> str:
    """That a process died, and with which last words, where `of_death` knows no more."""
    told = telling(stderr_filter.messages(text))
    words = _told(told[0]) if told else ""
    return (
        f"TensorFlow's process died of {number.name}{': ' if words else ''}{words}; where it comes "
        "again, report it with the lines above"
    )
