"""Compares each GPU's results with the CPU's before a run trains on it.

A broken GPU may compute wrong numbers, or run no kernels, without an error. The check compares an
elementwise operation, a matrix product, an XLA kernel, and the outputs and gradients of cuDNN's
recurrent layers.
"""

import functools
import os
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
from harness.compute.strategy import Devices, card_of, devices_in_use, make_strategy
from harness.errors import NodeFault
from harness.job.keys import Job
from harness.slurm.environment import report_node_fault
from harness.slurm.nodes import WorkerGroup
from harness.system.console import Console
from harness.system.gpu import Card, code_for, kernel_cache
from harness.system.watchdog import FIRST_USE

SWITCH = "HARNESS_CHECK_DEVICES"  # 0 turns the check off, for tests that replace CUDA with a stub
TOLERANCE = 1e-3  # largest accepted relative difference; float32 stays below 1e-5 without TF32
FIRST_BYTES = 1 << 20  # bytes that `take_memory` allocates on each GPU
SHAPE = (4, 6, 8)  # rows, words, channels
LAYERS: dict[str, type[keras.layers.RNN]] = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "rnn": keras.layers.SimpleRNN,
}

Compute = Callable[[], list[tf.Tensor]]


def checked_strategy(
    requested: Devices | None, worker_group: WorkerGroup | None, console: Console
) -> tf.distribute.Strategy:
    """Make the strategy for the requested devices, and check its GPUs.

    Raises:
        InputError: see `make_strategy`.
        NodeFault: if a GPU computes wrong results.
        RunError: if a GPU's kernels can't be loaded.
    """
    gpus = devices_in_use(requested)[1]
    for card in dict.fromkeys(map(card_of, gpus)):
        if line := first_use(card):
            console.info(line)
    strategy = make_strategy(requested, worker_group)
    check_devices(console.warning)
    return strategy


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
    return code_for(card.capability, targets).startswith("sm_")


def first_use_factor(gpus: Sequence[Any]) -> float:
    """Return the factor that multiplies the time limit of the first step on these GPUs."""
    return 1.0 if all(has_machine_code(card_of(gpu)) for gpu in gpus) else FIRST_USE


def is_switched_off() -> bool:
    """Whether HARNESS_CHECK_DEVICES=0 turns the check off."""
    return os.environ.get(SWITCH) == "0"


def check_devices(warn: Callable[[str], object]) -> None:
    """Raise an error if the results of a visible GPU differ from the CPU's.

    Raises:
        NodeFault: if a GPU computes wrong results; the job is then requeued without the node.
        RunError: if the GPU's kernels can't be loaded.
    """
    gpus = tf.config.get_visible_devices("GPU")
    take_memory(gpus)
    if gpus and is_switched_off():
        warn(f"{SWITCH}=0: the results of the GPUs are not checked")
        return
    for index, gpu in enumerate(gpus):
        if problem := find_difference(f"GPU:{index}", ("lstm", "gru")):
            # If a kernel could not be loaded, for example because the driver is too old,
            # `check_results` raises an error that says so.
            check_results()
            text = (
                f"GPU {index} ({card_of(gpu).name}) computes wrong results: {problem}; use "
                "another node, and report this node to your site"
            )
            raise NodeFault(text, will_requeue=report_node_fault(text))


def checked_plan(plan: ExecutionPlan, job: Job) -> ExecutionPlan:
    """Return the plan, without cuDNN if cuDNN's results for a plain RNN differ from the CPU's.

    Without cuDNN, a loop of TensorFlow operations computes the plain RNN. The difference between
    cuDNN and the CPU is not reported as a fault of the node.
    """
    has_plain_rnn = job.model.recurrent and (job.model.architecture == "rnn" or job.model.is_own)
    if plan.way != "cudnn" or not has_plain_rnn or is_switched_off():
        return plan
    num_gpus = len(tf.config.get_visible_devices("GPU"))
    differs = any(find_difference(f"GPU:{index}", ("rnn",)) for index in range(num_gpus))
    return replace(plan, way="keras") if differs else plan


def take_memory(gpus: Sequence[Any]) -> None:
    """Allocate FIRST_BYTES on each GPU, as the first request for the GPU's memory.

    On a full GPU, TensorFlow's allocator (BFCAllocator::Extend) retries a failed request in a
    loop. Each retry asks for 10 % less memory, rounded up to a multiple of 256 bytes. If the
    process's first request is for at most 2,304 bytes, the loop never ends: 10 % less than 2,304
    bytes is rounded up to 2,304 bytes again.

    Raises:
        tf.errors.ResourceExhaustedError: if a GPU is full.
    """
    for index in range(len(gpus)):
        with tf.device(f"GPU:{index}"):
            # Not tf.zeros, which would first request a single byte.
            tf.constant(np.zeros(FIRST_BYTES, np.uint8))


@functools.cache
def find_difference(gpu: str, layers: tuple[str, ...]) -> str:
    """Describe the first computation whose results differ between GPU and CPU; "" if none do.

    Args:
        gpu: TensorFlow's name of the GPU, such as `GPU:0`.
        layers: the keys of LAYERS to compare.
    """
    tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        for name, on_gpu, on_cpu in _computations(layers):
            with tf.device(gpu):
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
    """Return the largest difference divided by the largest expected number; `inf` for NaN."""
    a, b = results.numpy().astype(np.float64), expected.numpy().astype(np.float64)
    difference = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
    return difference if np.isfinite(difference) else np.inf
