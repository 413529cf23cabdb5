"""What CUDA is to a run, for its record: driver, libraries, cards, and settings."""

import os
from collections.abc import Mapping
from typing import Any

from harness.system import cuda
from harness.system.host import nvidia_driver

# NCCL's and CUDA's own variables decide which network is used, and which kernels.
RECORDED = ("NCCL_", "CUDA_", "CUBLAS_", "CUDNN_", "XLA_FLAGS", "TF_CUDNN_", "NVIDIA_TF32_")


def describe_cuda(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The GPUs that the strategy uses and what drives them; empty where the CPU trains."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return {}
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    capabilities = [each.get("compute_capability") for each in details]
    return {
        "driver": nvidia_driver(),
        "compute_capabilities": [
            ".".join(map(str, capability)) if capability else None for capability in capabilities
        ],
        **cuda.library_versions(),
        "mps": cuda.has_mps(environment),
        "variables": {
            name: value for name, value in sorted(environment.items()) if name.startswith(RECORDED)
        },
    }
