"""Reads `--devices`, and makes a strategy of `tf.distribute` for these devices.

The functions import TensorFlow late, because a command checks `--devices` before this slow import.
"""

import contextlib
import gc
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from harness.errors import InputError
from harness.job.keys import Job
from harness.slurm.environment import SlurmEnvironment, given_cpus
from harness.slurm.nodes import WorkerGroup
from harness.system import gpu
from harness.system.processes import ctrl_c_waits
from harness.system.stderr_filter import ask_for_messages, filtered_stderr

if TYPE_CHECKING:
    import tensorflow as tf


SITE_DEVICES = "HARNESS_DEVICES"
MAX_DEVICES = 64
UNUSED = ("sklearn", "matplotlib", "scipy", "pandas")  # see `quick_imports`
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# Prefixes of the environment variables that select NCCL's network and CUDA's kernels. A run's
# record contains these variables (`describe_numerics`).
RECORDED = ("NCCL_", "CUDA_", "CUBLAS_", "CUDNN_")

device_messages: list[str] = []  # messages that TensorFlow printed when it listed the GPUs

START_S = 120.0  # seconds that the workers may take to connect to each other
# If a worker sends no heartbeat for this many seconds, TensorFlow stops the other workers' steps.
HEARTBEAT_S = 30.0


@dataclass(frozen=True)
class Devices:
    """The devices that `--devices` requests: their kind, `gpu` or `cpu`, and their number."""

    kind: str
    count: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.count}"


def parse_devices(text: str, name: str = "--devices") -> Devices:
    """Read `gpu`, `gpu:2`, `cpu` or `cpu:2`; `cpu:2` means two virtual devices on the CPU.

    Args:
        text: the value to read.
        name: the option or variable that contains the text, for error messages.

    Raises:
        InputError: if the text names another kind of device, or a number outside 1 to 64.
    """
    found = re.fullmatch("(cpu|gpu)(:[0-9]{1,3})?", text.strip().lower())
    count = int((found[2] or ":1")[1:]) if found else 0
    if not found or not 1 <= count <= MAX_DEVICES:
        raise InputError(
            f"{name} {text[:40]}: should be cpu or gpu, optionally with a number of devices from 1 "
            f"to {MAX_DEVICES}, as in gpu:4"
        )
    return Devices(found[1], count)


def site_devices() -> str | None:
    """Return HARNESS_DEVICES, the devices that a command uses by default; None if it is unset.

    Raises:
        InputError: if `--devices` would not accept the value.
    """
    if text := os.environ.get(SITE_DEVICES):
        parse_devices(text, SITE_DEVICES)
    return text or None


def one_device_each(text: str | None, what: str) -> str | None:
    """Return the kind of each process's device, `gpu` or `cpu`; None if no devices are requested.

    Args:
        text: the value of `--devices`; without a value, HARNESS_DEVICES is used.
        what: "run" or "trial", for error messages.

    Raises:
        InputError: if several devices are requested.
    """
    name = "--devices" if text else SITE_DEVICES
    text = text or site_devices()
    if text is None:
        return None
    requested = parse_devices(text)
    if requested.count != 1:
        raise InputError(
            f"{name} {text}: a {what} uses one device; use --devices {requested.kind}, and set "
            f"the number of parallel {what}s with --workers"
        )
    return requested.kind


def set_variables() -> None:
    """Set environment variables for TensorFlow; call this before TensorFlow is imported."""
    ask_for_messages()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # Turn oneDNN off: its rounding depends on the CPU, and a run can be resumed on another node.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"


def reset_keras() -> None:
    """Undo the settings of the user's `keras.json`, which another machine may not have."""
    import keras

    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")


def import_tensorflow(
    allocation: SlurmEnvironment | None, threads: int | None = None, job: Job | None = None
) -> ModuleType:
    """Import and configure TensorFlow; hide its log messages.

    Args:
        allocation: the Slurm job; None outside of Slurm.
        threads: the number of threads, by default the number of this process's CPUs.
        job: the job, whose keys turn TF32 and deterministic operations on or off. Without a job,
            TF32 is off, and operations are deterministic.

    Raises:
        InputError: if the import fails.
    """
    tf32, deterministic = (job.train.tf32, job.train.deterministic) if job else (False, True)
    set_variables()
    # Number the GPUs as the driver does. By default CUDA puts the fastest GPU first.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if deterministic:
        # Without this variable, cuDNN's recurrent layers are not reproducible, because cuBLAS may
        # use a different workspace on each stream (cuDNN's manual, "Reproducibility").
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    if gpu.has_driver():
        gpu.keep_compiled_kernels()
        gpu.load_libraries()
    with filtered_stderr() as lines:
        try:
            with quick_imports(), ctrl_c_waits():
                import tensorflow as tf

                reset_keras()
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"TensorFlow can't be imported: {reason}; install it: bash slurm/common.sh --setup"
            ) from None

        gpus = tf.config.list_physical_devices("GPU")
    device_messages.extend(lines)
    # Processes can share a GPU, but by default TensorFlow takes all memory of a GPU.
    for each in gpus:
        tf.config.experimental.set_memory_growth(each, True)
    threads = threads or given_cpus(allocation)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.experimental.enable_tensor_float_32_execution(tf32)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    return tf  # type: ignore[no-any-return]


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Halve the time of `import keras` inside the `with` block.

    Keras and TensorFlow import scikit-learn, matplotlib, SciPy and pandas if they are installed,
    for functions that the harness does not use. In the `with` block, an import of scikit-learn,
    matplotlib, SciPy or pandas fails as if the package were not installed; after the block all four
    can be imported. The garbage collector is off in the block, because it would scan a million
    permanent objects repeatedly.
    """
    hidden = [name for name in UNUSED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type] # None raises ImportError
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        gc.freeze()
        if collects:
            gc.enable()


def make_strategy(
    requested: Devices | None, worker_group: WorkerGroup | None = None
) -> "tf.distribute.Strategy":
    """Make the strategy for the requested devices, by default for all GPUs of this process.

    Without GPUs the default is the CPU. If GPUs may be requested, the caller must first call
    `check_gpus`, which refuses a request for more GPUs than this process sees.

    With several workers, every node uses the requested devices. In a single process, the strategy
    for one device is TensorFlow's default, which allows XLA and cuDNN; the strategy for several
    devices is a MirroredStrategy. Call this function once per process, before any tensor exists.

    Raises:
        InputError: if several CPU devices per node are requested, or nodes have different devices.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    devices = requested or (Devices("gpu", len(gpus)) if gpus else Devices("cpu", 1))
    gpus = gpus[: devices.count] if devices.kind == "gpu" else []
    if worker_group and devices.kind == "cpu" and devices.count > 1:
        raise InputError(
            f"requested devices {devices}: should be one CPU device per node; use --devices cpu"
        )
    tf.config.set_visible_devices(gpus, "GPU")
    if worker_group:
        return _across_nodes(devices, worker_group)
    if devices.count == 1:
        return tf.distribute.get_strategy()
    if gpus:
        return tf.distribute.MirroredStrategy([f"gpu:{i}" for i in range(devices.count)])
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * devices.count
    )
    return tf.distribute.MirroredStrategy(
        [f"cpu:{i}" for i in range(devices.count)],
        # TensorFlow's default collective operations hang or fail with several CPU devices.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def check_equal_devices(devices: Devices, worker_group: WorkerGroup) -> None:
    """Check that all workers use the same kind and number of devices; else TensorFlow would hang.

    Raises:
        InputError: if two nodes use different devices.
    """
    everyone = [Devices(**each) for each in worker_group.gather(asdict(devices))]
    for node, other in zip(worker_group.nodes, everyone, strict=True):
        if other != everyone[0]:
            fewest = min(everyone, key=lambda each: (each.kind, each.count))
            raise InputError(
                f"{worker_group.nodes[0]} has {everyone[0]} and {node} has {other}: all nodes "
                "should use equally many devices; request them with --gpus-per-node, or use "
                f"--devices {fewest}"
            )


def _across_nodes(devices: Devices, worker_group: WorkerGroup) -> "tf.distribute.Strategy":
    import tensorflow as tf

    # TensorFlow's SlurmClusterResolver is not used, because it sorts n10 before n9, needs GPUs, and
    # uses the same port for all jobs.
    os.environ["TF_CONFIG"] = json.dumps(
        {
            "cluster": {"worker": worker_group.addresses},
            "task": {"type": "worker", "index": worker_group.rank},
        }
    )
    _expect_heartbeats(len(worker_group.addresses))
    # Limit the time: TensorFlow waits an hour for the other workers, even if one of them has died.
    with worker_group.limited(START_S):
        check_equal_devices(devices, worker_group)
        # CommunicationOptions(timeout_seconds=…) is not used: it needs a thread for each operation.
        return tf.distribute.MultiWorkerMirroredStrategy()


def _expect_heartbeats(num_workers: int) -> None:
    """Raise the time limit of TensorFlow's heartbeats, which detect a lost or stopped worker.

    TensorFlow's default limit of 10 s is too short for a busy node. No public API of TensorFlow
    changes the longest allowed time between two heartbeats.
    """
    from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
    from tensorflow.python.eager import context

    context.context().configure_coordination_service(
        "standalone",
        service_leader="/job:worker/replica:0/task:0",
        coordinated_jobs=[CoordinatedJob(name="worker", num_tasks=num_workers)],
        heartbeat_timeout_in_ms=int(1000 * HEARTBEAT_S),
    )


def spans_processes(strategy: "tf.distribute.Strategy") -> bool:
    """Whether the strategy has workers in several processes, which must stop at the same step."""
    import tensorflow as tf

    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def one_device() -> "tf.distribute.Strategy":
    """Return a strategy that uses only one device: the first GPU or, without GPUs, the CPU."""
    import tensorflow as tf

    return tf.distribute.get_strategy()


def num_own_gpus() -> int:
    """Count the GPUs that this process uses."""
    import tensorflow as tf

    return len(tf.config.get_visible_devices("GPU"))


def card_of(device: Any) -> gpu.Card:
    """Return the name and the compute capability of a GPU, one of TensorFlow's physical devices."""
    import tensorflow as tf

    details = tf.config.experimental.get_device_details(device)
    capability = details.get("compute_capability") or (0, 0)
    return gpu.Card(str(details.get("device_name", "GPU")), capability)


def describe_devices(
    strategy: "tf.distribute.Strategy", worker_group: WorkerGroup | None = None
) -> list[dict[str, str]]:
    """Return the name and kind of each device of the strategy, for the run's record.

    All nodes use equally many devices (`check_equal_devices`), and are assumed to have the same
    kind of GPU, so this node's devices describe all of them.
    """
    import tensorflow as tf

    nodes = worker_group.nodes if worker_group else [""]
    num_cpus = strategy.num_replicas_in_sync // len(nodes)
    devices = [
        {
            "device": each.name.removeprefix("/physical_device:").lower(),
            "name": card_of(each).name,
        }
        for each in tf.config.get_visible_devices("GPU")
    ] or [{"device": f"cpu:{i}"} for i in range(num_cpus)]
    return [
        {**device, "device": f"{node}/{device['device']}".lstrip("/")}
        for node in nodes
        for device in devices
    ]


def describe_numerics() -> dict[str, Any]:
    """Return the settings that rounding and reproducibility depend on, for the run's record.

    With a GPU, `cuda` describes the GPUs and CUDA's settings.
    """
    import tensorflow as tf
    from tensorflow.python.framework import config  # no public function reads the setting

    gpus, variables = tf.config.get_visible_devices("GPU"), sorted(os.environ.items())
    return {
        "tf32": bool(tf.config.experimental.tensor_float_32_execution_enabled()),
        "deterministic": bool(config.is_op_determinism_enabled()),
        "cublas_workspace": os.environ.get(CUBLAS_WORKSPACE),
        "cuda": {
            "compute_capabilities": [".".join(map(str, card_of(each).capability)) for each in gpus],
            "site_libraries": gpu.shadowing_libraries(),
            "mps": gpu.has_mps(),
            "variables": {name: value for name, value in variables if name.startswith(RECORDED)},
        }
        if gpus
        else {},
    }


def title_of_devices(devices: Sequence[Mapping[str, str]], threads: int) -> str:
    """Return the training devices as text: `2 × NVIDIA A100-SXM4-80GB`, `CPU, 4 threads`.

    Args:
        devices: the result of `describe_devices`.
        threads: the number of threads of an operation on a CPU.
    """
    names = Counter(each["name"] for each in devices if "name" in each)
    if names:
        return ", ".join(f"{count} × {name}" for name, count in names.items())
    virtual = f"{len(devices)} × " if len(devices) > 1 else ""
    return f"{virtual}CPU, {threads} thread{'s' if threads > 1 else ''}"
