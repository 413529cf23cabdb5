"""The child processes of the checks: `python -m tests.gpu.child REQUEST`."""

import ctypes
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from harness.compute.strategy import import_tensorflow, make_strategy, parse_devices
from harness.slurm.environment import SlurmEnvironment
from harness.system.gpu import find_nvml, library_versions
from harness.system.processes import age_s
from tests.asked_child import answer_request

SEED, STEPS, RATE, SHAPE = 1, 3, 0.4, (32, 64)  # of the masks


def main() -> None:
    """Answer the request in the first argument."""
    answer_request({"start": _start, "masks": _masks, "libraries": library_versions, "nvml": _nvml})


def _start(devices: str) -> dict[str, Any]:
    """Seconds to the first kernels: a product of matrices, then an LSTM with its gradient."""
    tf = import_tensorflow(SlurmEnvironment.from_environment())
    make_strategy(parse_devices(devices))
    import keras

    imported_s = age_s() or 0.0
    began = time.perf_counter()
    ones = tf.ones((64, 64))
    float(tf.reduce_sum(ones @ ones))
    product_s = time.perf_counter() - began
    layer = keras.layers.LSTM(32)
    with tf.GradientTape() as tape:
        output = tf.reduce_sum(layer(tf.ones((16, 50, 32))))
    gradients = tape.gradient(output, layer.trainable_variables)
    float(tf.reduce_sum(gradients[0]))
    lstm_s = time.perf_counter() - began - product_s
    return {"import_s": imported_s, "product_s": product_s, "lstm_s": lstm_s}


def _masks(devices: Sequence[str]) -> dict[str, Any]:
    """The checksum of the dropout masks that each device draws."""
    tf = import_tensorflow(SlurmEnvironment.from_environment())
    if all(device.startswith("cpu") for device in devices):
        make_strategy(parse_devices(f"cpu:{len(devices)}"))

    from harness.layers import uniform

    sums = {}
    for device in devices:
        digest = hashlib.sha256()
        with tf.device(device):
            for step in range(STEPS):
                drawn = uniform(SHAPE, tf.constant([SEED << 16, step], tf.int64))
                digest.update((drawn >= RATE).numpy().tobytes())
        sums[device] = digest.hexdigest()
    return {"sums": sums}


def _nvml() -> dict[str, Any]:
    """What NVML says of each GPU, and CUDA's own order of them by their PCI addresses."""
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    nvml = find_nvml()
    if nvml is None:
        return {"problem": "nvidia-ml-py is not installed"}
    try:
        nvml.nvmlInit()
        gpus = list(_gpus(nvml))
    except nvml.NVMLError as error:
        return {"problem": f"NVML: {error}"}
    return {"gpus": gpus, "cuda": _cuda_addresses()}


def _gpus(nvml: Any) -> Iterator[dict[str, Any]]:
    modes = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}
    for i in range(nvml.nvmlDeviceGetCount()):
        gpu = nvml.nvmlDeviceGetHandleByIndex(i)
        try:
            has_mig = bool(nvml.nvmlDeviceGetMigMode(gpu)[0])
        except nvml.NVMLError:  # a card without MIG
            has_mig = False
        mode = nvml.nvmlDeviceGetComputeMode(gpu)
        yield {
            "address": _address(nvml.nvmlDeviceGetPciInfo(gpu).busId),
            "compute_mode": modes.get(mode, str(mode)),
            "mig": has_mig,
        }


def _cuda_addresses() -> list[str]:
    cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    cuda.cuInit(0)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    text = ctypes.create_string_buffer(32)
    addresses = []
    for i in range(count.value):  # a device's handle is its number
        cuda.cuDeviceGetPCIBusId(text, len(text), i)
        addresses.append(_address(text.value))
    return addresses


def _address(text: str | bytes) -> str:
    """A PCI address without leading zeros of its domain: NVML writes eight digits, CUDA four."""
    shown = text.decode() if isinstance(text, bytes) else text
    domain, bus, device = shown.split(":")
    return f"{int(domain, 16):x}:{bus}:{device}".lower()


if __name__ == "__main__":
    main()
