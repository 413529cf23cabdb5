"""How much of a GPU's memory a run takes: measured by the run, kept for those that will share one.

TensorFlow takes memory as it needs it and gives none back, so what a process holds after an epoch
is the most that it has needed.
"""

import contextlib

from harness.compute.execution_plan import device_name, read_measured, save_measured, shape
from harness.compute.host_memory import largest_jobs
from harness.errors import RunError
from harness.job import Job
from harness.search_space import SearchSpec
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


def keep_gb(what: Job | SearchSpec, gb: float) -> None:
    """Keep what a process took of a GPU: by a run of a job, or by a worker in a search.

    It counts for jobs of the same sizes and searches of the same space, on such a GPU. Of a search
    the most counts that any worker has taken, since its trials differ in size.
    """
    key = _key(what)
    with contextlib.suppress(RunError, OSError):  # no run fails because its cache is full
        if isinstance(what, SearchSpec) and gb <= (_read(key) or 0):
            return
        save_measured(device_name("gpu"), "gpu_gb", {key: round(gb, 3)})


def kept_gb(what: Job | SearchSpec) -> float | None:
    """What a process took of a GPU like the first one here; None if none was measured.

    Of a search also what runs of the sizes of its largest trials took.
    """
    jobs = largest_jobs(what) if isinstance(what, SearchSpec) else []
    known = [gb for gb in map(_read, map(_key, [what, *jobs])) if gb is not None]
    return max(known, default=None)


def _read(key: str) -> float | None:
    gb = read_measured(device_name("gpu"), "gpu_gb").get(key)
    return float(gb) if isinstance(gb, int | float) and gb > 0 else None


def _key(what: Job | SearchSpec) -> str:
    if isinstance(what, SearchSpec):
        space = " ".join(f"{each.key}={list(each.examples())}" for each in what.space)
        return f"{_key(what.job)} search {space}"
    return f"{shape(what)} xla={what.train.xla}"
