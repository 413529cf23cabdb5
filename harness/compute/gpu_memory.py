"""How much of a GPU's memory a run takes: measured by the run, kept for those that will share one.

TensorFlow takes memory as it needs it and gives none back, so what a process holds after an epoch
is the most that it has needed.
"""

import contextlib

from harness.compute.execution_plan import device_name, read_measured, save_measured, shape
from harness.errors import RunError
from harness.job import Job
from harness.system import nvml

# For CUDA's context and its libraries, which TensorFlow's own count leaves out: an allowance for
# where the driver does not know the process, on the safe side, not a measurement.
CONTEXT_GB = 1.0


def measure_gb() -> float | None:
    """The memory that this process holds of its fullest GPU, in GB; None where the CPU trains."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return None
    if (held := nvml.own_gb()) is not None:
        return held
    read = tf.config.experimental.get_memory_info
    return CONTEXT_GB + max(float(read(f"GPU:{i}")["peak"]) for i in range(len(gpus))) / 1e9


def keep_gb(job: Job, gb: float) -> None:
    """Keep what a run of a job on one GPU took, for jobs of the same sizes on such a GPU."""
    with contextlib.suppress(RunError, OSError):  # no run fails because its cache is full
        save_measured(device_name("gpu"), "gpu_gb", {_key(job): round(gb, 3)})


def kept_gb(job: Job) -> float | None:
    """What a run of a job's sizes took of a GPU like the first one here; None if none was run."""
    gb = read_measured(device_name("gpu"), "gpu_gb").get(_key(job))
    return float(gb) if isinstance(gb, int | float) and gb > 0 else None


def _key(job: Job) -> str:
    return f"{shape(job)} xla={job.train.xla}"
