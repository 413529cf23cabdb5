"""Whether each GPU computes what a CPU does, before anything is trained on it.

A GPU can be broken without an error: its numbers are wrong, or its kernels are never run. Each one
computes an elementwise operation, a product, a kernel of XLA's and, where the job has one, a
recurrent layer of cuDNN's with its gradient, and is compared with the CPU.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from harness.compute.device_errors import check_results
from harness.compute.execution_plan import ExecutionPlan, without_cudnn
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

SWITCH = "HARNESS_CHECK_DEVICES"  # 0 leaves the check out: for tests on a GPU that computes nothing
TOLERANCE = 1e-3  # relative to the largest number; float32 without TF32 keeps 1e-5
FIRST_BYTES = 1 << 20
SHAPE = (4, 6, 8)  # rows, words, channels
LAYERS: dict[str, type[keras.layers.RNN]] = {
    "lstm": keras.layers.LSTM,
    "gru": keras.layers.GRU,
    "rnn": keras.layers.SimpleRNN,
}

Check = Callable[[], list[tf.Tensor]]


def checked_strategy(
    requested: Devices | None, worker_group: WorkerGroup | None, job: Job, console: Console
) -> tf.distribute.Strategy:
    """The strategy of `make_strategy`, whose GPUs compute what a CPU does.

    Raises:
        InputError: if the devices requested are not there.
        NodeFault: for the first GPU that computes something else; the job goes on elsewhere.
    """
    gpus = devices_in_use(requested)[1]
    for card in dict.fromkeys(map(card_of, gpus)):
        if line := first_use(card):
            console.info(line)
    strategy = make_strategy(requested, worker_group)
    check_devices(job, console.warning)
    return strategy


def first_use(card: Card) -> str:
    """What to expect of a card whose kernels the driver still has to compile; else empty."""
    folder = kernel_cache()
    is_filled = folder and folder.is_dir() and any(folder.iterdir())
    if has_machine_code(card) or folder is None or is_filled:
        return ""
    return (
        f"{card.title}: TensorFlow holds no machine code for it, so the driver compiles each "
        f"kernel at first use: this start takes minutes longer, later ones read {folder}"
    )


def has_machine_code(card: Card) -> bool:
    """Whether TensorFlow holds a card's machine code; else the driver compiles each kernel."""
    targets = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", ())
    return code_for(card.capability, targets).startswith("sm_")


def first_use_factor(gpus: Sequence[Any]) -> float:
    """How much longer than others the first step on some GPUs may take."""
    return 1.0 if all(has_machine_code(card_of(gpu)) for gpu in gpus) else FIRST_USE


def is_switched_off() -> bool:
    """Whether HARNESS_CHECK_DEVICES=0 leaves the check out."""
    return os.environ.get(SWITCH) == "0"


def cudnn_layers(job: Job) -> frozenset[str]:
    """Those of LAYERS that Keras lets cuDNN compute for a job; of a user's own network, all."""
    if job.model.is_own:
        return frozenset({"lstm", "gru"})
    if not job.model.recurrent or without_cudnn(job) or job.model.architecture == "rnn":
        return frozenset()
    return frozenset({"gru"} if job.model.architecture == "gru" else {"lstm"})


def check_devices(job: Job, warn: Callable[[str], object]) -> None:
    """Refuse a GPU that computes something else than the CPU; call it once devices are in use.

    Raises:
        NodeFault: for the first that does; the job goes back into the queue without the node.
        RunError: if its kernels can't be loaded.
    """
    gpus = tf.config.get_visible_devices("GPU")
    take_memory(gpus)
    if gpus and is_switched_off():
        warn(f"{SWITCH}=0: the GPUs are used without a check of what they compute")
        return
    for index, gpu in enumerate(gpus):
        if problem := find_wrong(f"GPU:{index}", cudnn_layers(job)):
            check_results()  # a kernel that was not loaded is why, such as for an old driver
            text = (
                f"GPU {index} ({card_of(gpu).name}) computes wrongly: {problem}; run harness "
                "resume on another node, and report this one to your site"
            )
            raise NodeFault(text, will_requeue=report_node_fault(text))


def checked_plan(plan: ExecutionPlan, job: Job) -> ExecutionPlan:
    """The plan, without cuDNN's plain RNN where a GPU in use computes something else with it.

    No fault of the node: Keras leaves plain RNNs to a loop, which takes over.
    """
    has_plain_rnn = job.model.recurrent and (job.model.architecture == "rnn" or job.model.is_own)
    if plan.way != "cudnn" or not has_plain_rnn or is_switched_off():
        return plan
    gpus = range(len(tf.config.get_visible_devices("GPU")))
    agrees = all(plain_rnn_agrees(f"GPU:{index}") for index in gpus)
    return plan if agrees else replace(plan, way="keras")


@functools.cache
def plain_rnn_agrees(gpu: str) -> bool:
    """Whether cuDNN's plain RNN on a GPU computes what Keras's layer computes on the CPU.

    Args:
        gpu: TensorFlow's name of the device.
    """
    return not find_wrong(gpu, frozenset({"rnn"}))


def take_memory(gpus: Sequence[Any]) -> None:
    """Take the first memory of each GPU, or learn that there is none.

    On a full GPU TensorFlow's allocator tries ever smaller parts, a tenth less each time, rounded
    up to 256 bytes: so a request below FIRST_BYTES is tried for ever, if it is the first one
    (BFCAllocator::Extend).

    Raises:
        tf.errors.ResourceExhaustedError: if a GPU is full.
    """
    for index in range(len(gpus)):
        with tf.device(f"GPU:{index}"):
            tf.constant(np.zeros(FIRST_BYTES, np.uint8))  # tf.zeros would ask for a byte first


def find_wrong(gpu: str, layers: frozenset[str]) -> str:
    """Which computation of a GPU differs from the CPU's, and by how much; empty if none does.

    Args:
        gpu: TensorFlow's name of the device.
    """
    tf32 = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        for name, on_gpu, on_cpu in _computations(layers):
            with tf.device(gpu):
                found = on_gpu()
            with tf.device("CPU:0"):
                expected = on_cpu()
            difference = max(map(_difference, found, expected))
            if not difference <= TOLERANCE:
                return f"{name} differs from the CPU's by {difference:.1g} of the largest number"
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(tf32)
    return ""


def _computations(layers: frozenset[str]) -> Iterator[tuple[str, Check, Check]]:
    """The name of each computation, and how a GPU and the CPU do it."""
    numbers = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    square = np.random.default_rng(2).normal(size=(64, 64)).astype(np.float32)

    def elementwise() -> list[tf.Tensor]:
        return [tf.tanh(tf.constant(numbers)) * 3 + numbers]

    def product() -> list[tf.Tensor]:
        return [tf.matmul(tf.constant(square), tf.constant(square))]

    compiled = tf.function(lambda x: tf.tanh(x) * 3 + x, jit_compile=True, autograph=False)

    def by_xla() -> list[tf.Tensor]:
        return [compiled(tf.constant(numbers))]

    yield "an elementwise operation", elementwise, elementwise
    yield "a product of matrices", product, product
    yield "a kernel of XLA's", by_xla, elementwise
    for name in sorted(layers):
        yield f"cuDNN's {name}", _recurrent(name, numbers, True), _recurrent(name, numbers, False)


def _recurrent(name: str, numbers: np.ndarray, use_cudnn: bool) -> Check:
    """Outputs of a layer over all words, and the gradients of its weights and its input."""

    def compute() -> list[tf.Tensor]:
        random = np.random.default_rng(3)
        with fresh_names():  # the layers of a run are named as without this check
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

    return compute


def _difference(found: tf.Tensor, expected: tf.Tensor) -> float:
    """The largest difference, in parts of the largest number; infinite for what is no number."""
    a, b = found.numpy().astype(np.float64), expected.numpy().astype(np.float64)
    difference = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
    return difference if np.isfinite(difference) else np.inf
