"""Checks that a run gets the GPUs it expects, and that each GPU computes correctly.

Without these checks, a run could train on the CPU or on a broken GPU unnoticed. A broken GPU can
compute wrong numbers, or run no kernels, without an error. Each GPU and the CPU compute an
elementwise operation, a matrix product, an XLA kernel, and the outputs and gradients of cuDNN's
recurrent layers; the check compares their results.
"""

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from harness.compute.device_errors import check_results
from harness.compute.execution_plan import ExecutionPlan
from harness.compute.network import fresh_names
from harness.compute.recurrent import use_cudnn_rnn
from harness.compute.strategy import (
    Devices,
    card_of,
    device_messages,
    make_strategy,
)
from harness.errors import InputError, NodeFault
from harness.job.keys import Job
from harness.slurm.environment import SlurmEnvironment, given_gpus, listed_gpus, report_node_fault
from harness.slurm.nodes import WorkerGroup
from harness.system import gpu, watchdog
from harness.system.console import Console
from harness.system.gpu import Card, code_for, kernel_cache

SWITCH = "HARNESS_CHECK_DEVICES"  # 0 turns the check off, for tests that replace CUDA with a stub
TOLERANCE = 1e-3  # largest accepted relative difference; float32 without TF32 stays below 1e-5
FIRST_BYTES = 1 << 20  # bytes that `take_memory` allocates on each GPU
SHAPE = (4, 6, 8)  # shape of the layers' input: examples, words, channels
LAYERS: dict[str, type[keras.layers.RNN]] = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "rnn": keras.layers.SimpleRNN,
}

INSTALL = "HARNESS_EXTRA=gpu bash slurm/common.sh --setup"
ASK = "check the GPUs with nvidia-smi, and report the node to your cluster's administrators"
# The message that TensorFlow writes to standard error if the driver can't be initialized.
CU_INIT = re.compile(r"cuInit:? .*?(CUDA_ERROR_\w+|UNKNOWN ERROR \(\d+\))")
OTHER_DRIVER = re.compile(r"SYSTEM_DRIVER_MISMATCH|COMPAT_NOT_SUPPORTED|\(80[34]\)")
DRIVER_LIBRARY_MISSING = 303  # CUDA_ERROR_SHARED_OBJECT_INIT_FAILED; TensorFlow prints only 303

Compute = Callable[[], list[tf.Tensor]]


def checked_strategy(
    requested: Devices | None,
    allocation: SlurmEnvironment | None,
    console: Console,
    worker_group: WorkerGroup | None = None,
) -> tf.distribute.Strategy:
    """Make the strategy for the requested devices, and check its GPUs.

    Raises:
        InputError: see `check_gpus` and `make_strategy`.
        NodeFault: if a GPU is missing or computes wrong results.
        RunError: if a GPU's kernels can't be loaded.
    """
    check_gpus(requested, allocation, console.warning)
    strategy = make_strategy(requested, worker_group)
    cards = dict.fromkeys(map(card_of, tf.config.get_visible_devices("GPU")))
    if not all(map(has_machine_code, cards)):
        watchdog.current.first_use = watchdog.FIRST_USE
    for card in cards:
        if line := first_use(card):
            console.info(line)
    check_devices(console.warning)
    check_results()
    return strategy


def check_gpus(
    requested: Devices | None,
    allocation: SlurmEnvironment | None,
    warn: Callable[[str], object],
) -> None:
    """Raise an error with a remedy if TensorFlow sees fewer GPUs than expected.

    The expected number of GPUs comes from `requested`, else from CUDA_VISIBLE_DEVICES, else from
    Slurm. If CUDA_VISIBLE_DEVICES hides all GPUs although Slurm gave GPUs, an error is raised.
    An error is also raised if CUDA_VISIBLE_DEVICES is unset and TensorFlow sees more GPUs than
    Slurm gave. If no GPU is expected and TensorFlow sees no GPU, the run trains on the CPU. A
    warning before training on the CPU says why TensorFlow sees no GPU. There is no warning if the
    CPU was requested, if CUDA_VISIBLE_DEVICES hides all GPUs, or if the node lacks NVIDIA's driver.

    Args:
        requested: the devices that `--devices`, HARNESS_DEVICES or the run's record requests, or
            None.
        allocation: the Slurm job; None outside of Slurm.
        warn: a function that receives the text of a warning.

    Raises:
        InputError: if the installation, the command or CUDA_VISIBLE_DEVICES is at fault.
        NodeFault: if the node is at fault; the job script then requeues the job without the node.
    """
    if requested and requested.kind == "cpu":
        return
    given = given_gpus(allocation) if allocation else None
    listed = listed_gpus(allocation) if allocation else ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    expected = given or 0
    source = f"Slurm gave {expected} GPU{'s' if expected > 1 else ''}"
    if requested:
        expected, source = requested.count, f"requested devices {requested}"
    elif names := gpu.visible_names(visible):
        expected, source = len(names), f"CUDA_VISIBLE_DEVICES={visible}"
    num_seen = len(tf.config.list_physical_devices("GPU"))
    if given and num_seen > given and "CUDA_VISIBLE_DEVICES" not in os.environ:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES is unset: Slurm gave {given} of the {num_seen} GPUs that this "
            "process sees, and other jobs may use the rest; don't unset the variable that Slurm set"
        )
    if num_seen >= max(1, expected):
        return
    if not expected and (gpu.hidden_by() or not gpu.has_driver()):
        return  # no GPU is expected, so the run trains on the CPU
    why, remedy, is_node_fault = _find_reason(num_seen, expected, given, listed)
    reason = f"TensorFlow sees {num_seen or 'no GPU'}: {why}; {remedy}"
    if not expected:
        warn(
            f"training on the CPU, although a GPU driver exists: {reason}. To train on the CPU "
            "without this warning, use --devices cpu"
        )
        return
    text = f"{source}, but {reason}; or train on the CPU with --devices cpu"
    if is_node_fault:
        raise NodeFault(text, will_requeue=report_node_fault(text))
    raise InputError(text)


def _find_reason(
    num_seen: int,
    expected: int,
    given: int | None,
    listed: Sequence[str],
) -> tuple[str, str, bool]:
    """Find the reason why TensorFlow sees fewer than `expected` GPUs.

    Args:
        num_seen: the number of GPUs that TensorFlow sees.
        expected: the number of GPUs that the command, CUDA_VISIBLE_DEVICES or Slurm names.
        given: the number of GPUs that Slurm allocated; None outside of Slurm, or if Slurm's
            variables do not contain the number.
        listed: the indices of the job's GPUs, as Slurm lists them. If the names in
            CUDA_VISIBLE_DEVICES differ from `listed`, the user has chosen them, and the function
            checks whether the driver knows them.

    Returns:
        A tuple of the reason, a remedy, and whether the node is at fault. The node is at fault if
        neither the installation nor the request is the reason.
    """
    if hidden := gpu.hidden_by():
        return hidden, "unset it", False
    if not tf.sysconfig.get_build_info().get("is_cuda_build"):
        remedy = f"on x86_64: {INSTALL}; on aarch64: install your site's CUDA build of TensorFlow"
        return "this TensorFlow is not a CUDA build", remedy, False
    if not gpu.has_driver():
        why = "there is no NVIDIA driver here: cannot dlopen libcuda.so.1"
        return why, f"run on a node with GPUs; {gpu.IN_A_CONTAINER}", False
    names = gpu.visible_names(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    of_job = names if gpu.names_of_job is None else gpu.names_of_job
    # In a cgroup, Slurm numbers the job's GPUs from 0.
    is_by_slurm = of_job in ([], [*listed], [str(i) for i in range(given or 0)])
    if not is_by_slurm and (unknown := gpu.unknown_names(names)):
        why = f"CUDA_VISIBLE_DEVICES names {', '.join(unknown)}, which the driver does not know"
        return why, "choose GPUs that nvidia-smi -L lists, or unset the variable", False
    if len({*names}) < len(names):
        return "CUDA_VISIBLE_DEVICES names a GPU twice", "name each GPU once", False
    found = CU_INIT.search("\n".join(device_messages))
    if found and f"({DRIVER_LIBRARY_MISSING})" in found[1]:
        why = "cuInit failed: the driver's library libcuda.so.1 can't be loaded"
        return why, gpu.IN_A_CONTAINER, False
    # If the driver itself is broken, NVML does not answer either.
    if found and OTHER_DRIVER.search(found[1]) and gpu.num_cards():
        why = f"cuInit failed: {found[1]}: libcuda.so.1 does not fit the node's driver"
        return why, "remove CUDA's compat folder from LD_LIBRARY_PATH or the container", False
    if found:
        return f"cuInit failed: {found[1]}", ASK, True
    missing = gpu.load_libraries()
    if gpu.NVML in missing:
        why = f"cannot dlopen {gpu.NVML}, a library of the driver"
        remedy = "outside of containers, ask your cluster's administrators to install the library"
        return why, f"{gpu.IN_A_CONTAINER}; {remedy}", False
    if missing:
        return f"cannot dlopen {', '.join(missing)}", f"install them: {INSTALL}", False
    if num_seen and sum(name.startswith("MIG-") for name in names) > 1:
        why = "CUDA_VISIBLE_DEVICES names several MIG instances, but a process sees only one"
        return why, "use --devices gpu:1, or start a run on each MIG instance with --seeds", False
    available = gpu.num_cards() if given is None else given
    if available is not None and num_seen >= available:
        why = f"{'this machine has' if given is None else 'Slurm gave'} {available}"
        request = f"request {available}: --devices gpu:{available}"
        return why, request if available else "request GPUs", False
    if names and num_seen >= len(names):
        why = f"CUDA_VISIBLE_DEVICES={','.join(names)} allows only {len(names)}"
        return why, f"request {num_seen}: --devices gpu:{num_seen}, or unset the variable", False
    return f"the driver shows {num_seen} of {expected} GPUs", ASK, True


def first_use(card: Card) -> str:
    """Return a message if the driver still has to compile the kernels for a card; else ""."""
    folder = kernel_cache()
    if has_machine_code(card) or (folder and any(folder.glob("*"))):
        return ""
    return (
        f"{card.title}: TensorFlow has no machine code for it, so the driver compiles the kernels "
        "at first use; this start takes minutes longer"
    )


def has_machine_code(card: Card) -> bool:
    """Whether TensorFlow includes machine code for a card; if not, the driver compiles kernels."""
    targets = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", ())
    # Without targets, this TensorFlow is not a CUDA build, so the driver compiles nothing.
    return not targets or code_for(card.capability, targets).startswith("sm_")


def is_switched_off() -> bool:
    """Whether HARNESS_CHECK_DEVICES=0 turns the check off."""
    return os.environ.get(SWITCH) == "0"


def check_devices(warn: Callable[[str], object]) -> None:
    """Raise an error if the results of a visible GPU differ from the CPU's.

    Raises:
        NodeFault: if a GPU computes wrong results; the job script then requeues the job without the
            node.
        RunError: if a GPU's kernels can't be loaded.
    """
    gpus = tf.config.get_visible_devices("GPU")
    take_memory(gpus)
    if gpus and is_switched_off():
        warn(f"{SWITCH}=0: the results of the GPUs are not checked")
        return
    for index, device in enumerate(gpus):
        if problem := find_difference(f"GPU:{index}", ("lstm", "gru")):
            # If a kernel could not be loaded, for example because the driver is too old,
            # `check_results` raises an error that names this cause.
            check_results()
            text = (
                f"GPU {index} ({card_of(device).name}) computes wrong results: {problem}; use "
                "another node, and report this node to your site"
            )
            raise NodeFault(text, will_requeue=report_node_fault(text))


def checked_plan(plan: ExecutionPlan, job: Job) -> ExecutionPlan:
    """Return the plan; leave out cuDNN if its results for a plain RNN differ from the CPU's.

    A difference is no error: without cuDNN, a loop of TensorFlow operations computes the plain RNN.
    """
    has_plain_rnn = job.model.recurrent and (job.model.architecture == "rnn" or job.model.is_own)
    if plan.way != "cudnn" or not has_plain_rnn or is_switched_off():
        return plan
    num_gpus = len(tf.config.get_visible_devices("GPU"))
    differs = any(find_difference(f"GPU:{index}", ("rnn",)) for index in range(num_gpus))
    return replace(plan, way="keras") if differs else plan


def take_memory(gpus: Sequence[Any]) -> None:
    """Allocate FIRST_BYTES on each GPU, as the process's first request for the GPU's memory.

    On a full GPU, TensorFlow's allocator (BFCAllocator::Extend) repeats a process's first request
    in a loop, each time for 10 % less memory, rounded up to a multiple of 256 bytes. A request for
    2,304 bytes would be repeated for ever, because 10 % less is rounded up to 2,304 bytes again. So
    this function makes a large first request.

    Raises:
        tf.errors.ResourceExhaustedError: if a GPU is full.
    """
    for index in range(len(gpus)):
        with tf.device(f"GPU:{index}"):
            # tf.zeros is not used, because it would first request a single byte.
            tf.constant(np.zeros(FIRST_BYTES, np.uint8))


@functools.cache
def find_difference(device: str, layers: tuple[str, ...]) -> str:
    """Describe the first computation whose results differ between GPU and CPU; "" if all agree.

    Args:
        device: TensorFlow's name of the GPU, such as `GPU:0`.
        layers: the recurrent layers to compare, as keys of LAYERS.
    """
    tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        for name, on_gpu, on_cpu in _computations(layers):
            with tf.device(device):
                results = on_gpu()
            with tf.device("CPU:0"):
                expected = on_cpu()
            difference = max(map(_difference, results, expected))
            if not difference <= TOLERANCE:
                return f"{name} differs from the CPU's result, relative error {difference:.1g}"
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
    return ""


def _computations(layers: Iterable[str]) -> Iterator[tuple[str, Compute, Compute]]:
    """Yield each computation: its name, a function for the GPU, and a function for the CPU."""
    numbers = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    square = np.random.default_rng(2).normal(size=(64, 64)).astype(np.float32)

    def formula(x: tf.Tensor) -> tf.Tensor:
        return tf.tanh(x) * 3 + x

    def elementwise() -> list[tf.Tensor]:
        return [formula(tf.constant(numbers))]

    def product() -> list[tf.Tensor]:
        return [tf.matmul(tf.constant(square), tf.constant(square))]

    def by_xla() -> list[tf.Tensor]:
        return [tf.function(formula, jit_compile=True, autograph=False)(tf.constant(numbers))]

    yield "an elementwise operation", elementwise, elementwise
    yield "a matrix product", product, product
    yield "an XLA kernel", by_xla, elementwise
    for name in layers:
        compute = functools.partial(_recurrent, name, numbers)
        yield f"cuDNN's {name}", functools.partial(compute, True), functools.partial(compute, False)


def _recurrent(name: str, numbers: np.ndarray, use_cudnn: bool) -> list[tf.Tensor]:
    """Compute a layer's outputs, and the gradients with respect to its input and weights."""
    random = np.random.default_rng(3)
    # Without `fresh_names`, this layer would change Keras's automatic names of later layers.
    with fresh_names():
        layer = LAYERS[name](5, return_sequences=True, dtype="float32")
        layer.build(SHAPE)
    if name != "rnn":
        layer.use_cudnn = use_cudnn
    elif use_cudnn:
        use_cudnn_rnn(layer)
    layer.set_weights([random.normal(size=each.shape) / 3 for each in layer.weights])
    x = tf.constant(numbers)
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x)
        loss = tf.reduce_sum(outputs * outputs)
    weights = [each.value for each in layer.trainable_variables]
    return [outputs, *tape.gradient(loss, [x, *weights])]


def _difference(results: tf.Tensor, expected: tf.Tensor) -> float:
    """Return the largest difference, divided by the largest expected number; `inf` replaces NaN."""
    a, b = results.numpy().astype(np.float64), expected.numpy().astype(np.float64)
    difference = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
    return difference if np.isfinite(difference) else np.inf
