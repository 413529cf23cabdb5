"""Explains GPU errors from TensorFlow's messages: the cause, a remedy, and who is at fault.

If the training process dies, its parent process (the guard) explains the death with this module.
The guard must not import TensorFlow, so this module imports TensorFlow only inside
`explained_device_errors`, which the guard does not call.
"""

import contextlib
import logging
import re
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.errors import NodeFault, RunError
from harness.slurm.environment import report_node_fault
from harness.system import stderr_filter
from harness.system.console import log
from harness.system.gpu import lasting_error, memory_of_gpus

MAX_QUOTED = 300  # largest number of characters that a message quotes from TensorFlow
LATEST = 40  # number of latest messages in which `_telling` looks for the cause of a failure

# 4004 is CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED, which TensorFlow 2.21 can't name.
OUT_OF_MEMORY = re.compile(
    r"CUDA_ERROR_OUT_OF_MEMORY|CU(DNN|BLAS)_STATUS_ALLOC_FAILED|unknown cudnn status: 4004\b"
    r"|[Oo]ut of memory|the resource allocation failed"  # "the resource …" is from cuBLAS
    r"|Dst tensor is not initialized"  # the GPU had no memory for a copied tensor
)
# If TensorFlow can't load or launch a kernel, only this message reports the failure. The operation
# reports success but leaves its output unchanged (tf_gpu_runtime_wrappers.cc).
UNWRITTEN = re.compile(r"tf_gpu_runtime_wrappers\.cc:\d+\] .*failed with")
CHECK_FAILED = re.compile(r"Check failed: .* is OK \((.*)\)$")
# Where an operation was made; the names of files, functions and nodes explain no error.
PLACES = re.compile(r'^ *(File ".*", line \d|Detected at node ).*|\[\[\{\{node .*', re.MULTILINE)
ARGUMENTS = re.compile(r"'(\w+)\(.*\)'")  # a function call; `_shortened` removes its arguments


class DeviceError(NamedTuple):
    """An error of CUDA and its remedy."""

    pattern: str  # a regular expression for TensorFlow's message
    what: str  # what has happened, for the message
    remedy: str


LIBRARY_REFUSED = "a CUDA library refused"
ANOTHER_NODE = (
    "use another node, and report this node to your site; if the error recurs on the other node, "
    "CUDA or TensorFlow is at fault"
)
# `explained` uses the first pattern that matches. The tests in tests/gpu provoke these errors.
# After a fault of the node, the job script requeues the job without the node.
NODE_FAULTS = (
    DeviceError(
        "(?i)ECC_UNCORRECTABLE|uncorrectable ECC", "the GPU's memory is broken", ANOTHER_NODE
    ),
    DeviceError(
        "(?i)SYSTEM_NOT_READY|system not yet initialized|CUDA_ERROR_NO_DEVICE",
        "the driver has lost the GPU",
        ANOTHER_NODE,
    ),
    DeviceError(
        "(?i)NVLINK_UNCORRECTABLE|uncorrectable NVLink|HARDWARE_STACK_ERROR|hardware stack error|"
        "CUDA_ERROR_CONTAINED|access of peer GPU memory over nvlink",
        "the GPU's hardware failed",
        ANOTHER_NODE,
    ),
    DeviceError(
        "(?i)ILLEGAL_ADDRESS|illegal memory access|LAUNCH_FAILED|unspecified launch failure|"
        "ILLEGAL_INSTRUCTION|illegal instruction was|MISALIGNED_ADDRESS|misaligned address|"
        "Unexpected Event status",  # TensorFlow's message lacks CUDA's error code
        "a kernel failed on the GPU",
        ANOTHER_NODE,
    ),
)
OTHER_ERRORS = (
    DeviceError(
        "(?i)driver version is insufficient|INSUFFICIENT_DRIVER|UNSUPPORTED_PTX_VERSION|"
        "unsupported toolchain",
        "the driver is too old for this CUDA",
        "run harness doctor to see which driver this card needs; ask your site for this driver, or "
        "use another node",
    ),
    DeviceError(
        "(?i)NO_BINARY_FOR_GPU|no kernel image is available",
        "TensorFlow has no code for this card",
        "run harness doctor to see which cards TensorFlow supports; use another node, or --devices "
        "cpu",
    ),
    DeviceError(
        "(?i)busy or unavailable|DEVICE_UNAVAILABLE",
        "the GPU accepts no more processes",
        "the GPU is in exclusive compute mode, and another process is already using this GPU: "
        "start one run per GPU, use NVIDIA's MPS, or ask your site to run nvidia-smi -c DEFAULT",
    ),
    DeviceError(
        "(?i)NCCL",
        "the GPUs can't communicate (NCCL)",
        "set the network in slurm/site.sh (export NCCL_SOCKET_IFNAME=ib0), find the reason with "
        "NCCL_DEBUG=INFO, or use one GPU",
    ),
    DeviceError(
        "CUDNN_STATUS|CUBLAS_STATUS|unknown cudnn status|DNN library initialization failed|"
        "Failed to call DoRnn|Failed to call ThenRnn|(?i:failed to create cu(dnn|blas))|"
        # cublasGetStatusString returns these texts, which contain no error code.
        "the (library was not initialized|function failed to launch on the GPU)|"
        "an internal operation failed|the functionality requested is not supported",
        LIBRARY_REFUSED,
        "test the libraries with harness doctor --probe; also look at nvidia-smi, because the "
        "GPU's memory may be full",
    ),
    DeviceError(
        "(?i)determinis(m|tic)",
        "an operation has no deterministic kernel here",
        "set train.deterministic = false; then the results of a run can't be reproduced exactly",
    ),
    DeviceError(
        UNWRITTEN.pattern,
        "the GPU could not run a kernel, and TensorFlow continued without the kernel's result",
        "check the driver with nvidia-smi and the versions with harness doctor",
    ),
    DeviceError(
        r"CUDA_ERROR_\w+",
        "a call of CUDA failed",
        "check the GPU with nvidia-smi and the versions with harness doctor, or use another node",
    ),
)


def explained(
    texts: Sequence[str], lasting: str = "", *, sees_memory: bool = True
) -> RunError | None:
    """Return an error that explains TensorFlow's messages; None if no message is known.

    Args:
        texts: one-line messages, the most informative first.
        lasting: the error that CUDA still reports after the failure, from `gpu.lasting_error`.
        sees_memory: whether to ask the driver how full the GPU's memory is. Pass False if the
            process that printed the messages has ended, because the driver has then freed the
            memory of that process.
    """
    is_broken = any(re.search(each.pattern, lasting) for each in NODE_FAULTS)
    text = "\n".join([lasting, *texts] if is_broken else texts)
    if OUT_OF_MEMORY.search(text) and not is_broken:
        return _out_of_memory(sees_memory=sees_memory)
    for known in (*NODE_FAULTS, *OTHER_ERRORS):
        if not (match := re.search(known.pattern, text)):
            continue
        if known.what == LIBRARY_REFUSED and OUT_OF_MEMORY.search(lasting):
            return _out_of_memory(sees_memory=sees_memory)
        start = text.rfind("\n", 0, match.start()) + 1
        line = _shortened(text[start:].partition("\n")[0])
        message = f"{known.what}: {line}; {known.remedy}"
        if known in NODE_FAULTS:
            return NodeFault(message, will_requeue=report_node_fault(message))
        return RunError(message)
    return None


def _shortened(line: str) -> str:
    """Remove source location and call arguments from a message; cut it to MAX_QUOTED characters."""
    line = stderr_filter.BEGIN.sub("", line).partition(" *** Check failure")[0]
    if failed := CHECK_FAILED.search(line):
        line = failed[1]
    return " ".join(ARGUMENTS.sub(r"\1", line).split())[:MAX_QUOTED]


def _out_of_memory(*, sees_memory: bool) -> RunError:
    """Return the error for a device whose memory is full.

    If `sees_memory` is true, the message lists the processes that use the memory of the GPUs.
    """
    gpus = memory_of_gpus() if sees_memory else {}
    memory = "; ".join(f"GPU {name} {each}" for name, each in gpus.items())
    return RunError(
        f"the device is out of memory{': ' if memory else ''}{memory}; lower train.batch_size or "
        "data.maxlen, use more devices, or start fewer runs per GPU"
    )


def _telling(found: Sequence[str]) -> list[str]:
    """Return the messages of TensorFlow that can explain a failure, the latest first."""
    begins = [(stderr_filter.BEGIN.match(line), line) for line in found[-LATEST:]]
    lines = [
        line
        for begin, line in begins
        if UNWRITTEN.search(line) or (begin["level"] in "EF" if begin else "what():" in line)
    ]
    return lines[::-1]


def check_results() -> None:
    """Print TensorFlow's new messages; if a message says that a kernel did not run, raise an error.

    Call this function after results have arrived from a GPU, and before the results are used.

    Raises:
        NodeFault: if a broken GPU is the reason why a kernel did not run.
        RunError: if a kernel did not run, and the GPU is not broken.
    """
    if not stderr_filter.captured:
        return
    found = stderr_filter.captured.read()
    if error := explained([line for line in found if UNWRITTEN.search(line)]):
        raise error
    stderr_filter.captured.show(found)


def tell_death(number: signal.Signals, text: str, process: int, *, go_on: str = "") -> None:
    """Log which signal killed a process that could use GPUs, and the process's last error message.

    Args:
        text: what the process wrote to standard error.
        go_on: the end of the logged message, which says how to continue.

    Raises:
        NodeFault, RunError: if the text explains the death.
    """
    lines = _telling(stderr_filter.messages(text))
    if error := explained(lines, sees_memory=False):
        raise error
    stderr_filter.show_last(text)
    last = f": {_shortened(lines[0])}" if lines else ""
    log(
        logging.ERROR,
        f"TensorFlow's process died of {number.name}{last}; if this happens again, report this "
        f"line to the maintainers of harness, with the lines above{go_on}",
    )


@contextlib.contextmanager
def explained_device_errors() -> Iterator[None]:
    """Replace TensorFlow's errors about a device with a one-line error that contains a remedy.

    The function also reads standard error, where TensorFlow may have written more details than in
    its error.

    Raises:
        NodeFault: if the node is broken, so the job should continue on another node.
        RunError: for any other known error of a device.
    """
    import tensorflow as tf

    try:
        yield
    except RunError:
        raise
    except (tf.errors.OpError, RuntimeError) as error:
        captured = stderr_filter.captured
        found = captured.read() if captured else []
        num_gpus = len(tf.config.get_visible_devices("GPU"))
        texts = [*_telling(found), PLACES.sub("", str(error))]
        if isinstance(error, tf.errors.ResourceExhaustedError):
            texts.append("out of memory")
        if known := explained(texts, lasting_error(num_gpus), sees_memory=num_gpus > 0):
            raise known from error
        if captured:
            captured.show(found)
        raise
