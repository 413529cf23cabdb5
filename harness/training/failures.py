"""How a run that fails is recorded, and what its error says: the cause rather than a symptom."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import tensorflow as tf

from harness.errors import Interrupted, NodeFault, RunError, TakenOver
from harness.slurm.environment import report_node_fault
from harness.slurm.rendezvous import WorkerGroup
from harness.system.nvml import describe_memory
from harness.tracking.heartbeat import Heartbeat

# How TensorFlow ends an operation of all workers when one of them does not take part.
LOST_TO_TENSORFLOW = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)

MAX_QUOTED = 300  # characters of TensorFlow's own message

# How NCCL ends an operation when another process of it is gone.
LOST_TO_NCCL = re.compile("ncclRemoteError|remote process (has )?exited|ncclSystemError")

OUT_OF_MEMORY = re.compile(
    "CUDA_ERROR_OUT_OF_MEMORY|CU(DNN|BLAS)_STATUS_ALLOC_FAILED|[Oo]ut of memory", re.MULTILINE
)


@dataclass(frozen=True)
class DeviceError:
    """An error of CUDA's and what to do about it."""

    pattern: str  # of TensorFlow's message
    what: str
    remedy: str
    is_node_fault: bool = False  # the job goes back into the queue without the node


NEWER_DRIVER = "harness doctor says which one this card needs; ask your site, or use another node"
GPU_FAULT = "run harness resume on another node, and report this one to your site"
# The first that matches is told.
DEVICE_ERRORS = (
    DeviceError(
        "(?i)ECC_UNCORRECTABLE|uncorrectable ECC|NVLINK_UNCORRECTABLE|uncorrectable NVLink",
        "the GPU's memory or link is broken",
        GPU_FAULT,
        is_node_fault=True,
    ),
    DeviceError(
        r"(?i)\bXid\b|fallen off the bus|GPU is lost|DEVICE_LOST|HARDWARE_STACK_ERROR|"
        "SYSTEM_NOT_READY|system not yet initialized|CUDA_ERROR_NO_DEVICE",
        "the GPU is lost to its driver",
        GPU_FAULT,
        is_node_fault=True,
    ),
    DeviceError(
        "(?i)ILLEGAL_ADDRESS|illegal memory access|MISALIGNED_ADDRESS|misaligned address|"
        "ILLEGAL_INSTRUCTION|illegal instruction|LAUNCH_FAILED|unspecified launch failure",
        "the GPU ended a kernel by an illegal access",
        f"{GPU_FAULT}; where it comes again elsewhere, it is a fault of CUDA's or TensorFlow's",
        is_node_fault=True,
    ),
    DeviceError(
        "(?i)driver version is insufficient|INSUFFICIENT_DRIVER|SYSTEM_DRIVER_MISMATCH|"
        "UNSUPPORTED_PTX_VERSION|unsupported toolchain|forward compatibility was attempted",
        "the driver is too old for this CUDA",
        NEWER_DRIVER,
    ),
    DeviceError(
        "(?i)NO_BINARY_FOR_GPU|no kernel image is available|kernel image is invalid",
        "TensorFlow holds no code for this card",
        "harness doctor says which cards it serves; use another node, or --devices cpu",
    ),
    DeviceError(
        "(?i)busy or unavailable|DEVICE_UNAVAILABLE|device already in use",
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
        "CUDNN_STATUS|CUBLAS_STATUS|(?i:failed to create cu(dnn|blas))",
        "a library of CUDA's refused",
        "harness doctor --probe tries them; a GPU whose memory is full does this too: compare "
        "nvidia-smi",
    ),
    DeviceError(
        "(?i)determinis(m|tic)",
        "an operation has no deterministic kernel here",
        "set train.deterministic = false, which gives up same bytes",
    ),
)


def device_error(error: Exception) -> RunError | None:
    """What a device's error means, in one line with a remedy; None if it is of another kind."""
    text = str(error)
    if isinstance(error, tf.errors.ResourceExhaustedError) or OUT_OF_MEMORY.search(text):
        return RunError(_out_of_memory())
    for known in DEVICE_ERRORS:
        if match := re.search(known.pattern, text):
            start = text.rfind("\n", 0, match.start()) + 1
            line = text[start:].partition("\n")[0].strip()[:MAX_QUOTED]
            message = f"{known.what}: {line}; {known.remedy}"
            if known.is_node_fault:
                return NodeFault(message, will_requeue=report_node_fault(message))
            return RunError(message)
    return None


def _out_of_memory() -> str:
    memory = describe_memory() if tf.config.get_visible_devices("GPU") else ""
    shared = ", or fewer runs a GPU" if "holds" in memory else ""
    return (
        f"the device is out of memory{': ' if memory else ''}{memory}; lower train.batch_size or "
        f"data.maxlen, or use more devices{shared}"
    )


@contextlib.contextmanager
def explained_device_errors() -> Iterator[None]:
    """Raise what TensorFlow reports of a device as one line with a remedy.

    Raises:
        NodeFault: if the node is at fault; the job goes on elsewhere.
        RunError: for what else `DEVICE_ERRORS` knows.
    """
    try:
        yield
    except RunError:
        raise
    except (tf.errors.OpError, RuntimeError) as error:
        if explained := device_error(error):
            raise explained from error
        raise


@contextlib.contextmanager
def recorded_failures(
    heartbeat: Heartbeat, worker_group: WorkerGroup | None = None
) -> Iterator[None]:
    """Record in `state.json` how a run ended that was interrupted or failed."""
    try:
        with explained_device_errors(), explained_losses(worker_group):
            yield
    except Interrupted as reason:
        try:
            heartbeat.interrupted(reason)
        except RunError as refusal:
            _record(heartbeat, refusal)
            raise refusal from None
        raise
    except Exception as error:
        # A process that took the run over cuts its log and removes leftovers, so a failure here
        # is usually a consequence of the takeover.
        try:
            heartbeat.run.check_lease()
        except TakenOver:
            raise
        except RunError:  # the disk that can't be read is no better reason
            pass
        _record(heartbeat, error)
        raise


@contextlib.contextmanager
def explained_losses(worker_group: WorkerGroup | None) -> Iterator[None]:
    """Raise the reason why another worker ended in place of TensorFlow's error about it."""
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise
    except tf.errors.OpError as error:
        if worker_group is None:
            raise
        worker_group.explain()
        if isinstance(error, LOST_TO_TENSORFLOW) or LOST_TO_NCCL.search(str(error)):
            first_line = str(error).splitlines()[0]
            raise Interrupted(f"TensorFlow, which lost another worker: {first_line}") from None
        raise


def _record(heartbeat: Heartbeat, error: Exception) -> None:
    # A full disk or a lost lease refuses this record too; the error itself is what matters.
    with contextlib.suppress(RunError):
        heartbeat.beat("failed", error=f"{type(error).__name__}: {error}")
