"""Measures how much of the CPUs, memory and GPUs this process uses.

NVML, a library of the driver, has the figures of GPUs. All other figures need no driver.
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from harness.system.gpu import open_gpus

READ_S = 5.0  # between two measurements
REMEDY = "compare nvidia-smi, or HARNESS_EXTRA=gpu bash slurm/common.sh --setup"


class ResourceMonitor:
    """Measures the use by this process; a context manager."""

    def __init__(
        self,
        num_gpus: int,
        num_cpus: int,
        *,
        warn: Callable[[str], object] = lambda line: None,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        """Make a monitor.

        Args:
            num_gpus: the number of GPUs in use, the first visible ones.
            num_cpus: the number of CPUs that this process may use.
            warn: takes a line.
            environment: has CUDA_VISIBLE_DEVICES.
            clock: in seconds.
            cpu_clock: the CPU time of this process in seconds.
        """
        self._num_gpus, self._num_cpus, self._warn = num_gpus, num_cpus, warn
        self._environment, self._clock, self._cpu_clock = environment, clock, cpu_clock
        self._stack = contextlib.ExitStack()
        self._nvml: Any = None
        self._gpus: list[Any] = []  # NVML's handles, by TensorFlow's number of the GPU
        self._read_at = float("-inf")
        self._before = clock(), cpu_clock()

    def __enter__(self) -> "ResourceMonitor":
        if self._num_gpus:
            self._nvml, gpus = self._stack.enter_context(open_gpus(self._environment))
            if len(gpus) >= self._num_gpus:
                self._gpus = list(gpus.values())[: self._num_gpus]
            else:
                known = f"NVML knows {len(gpus)} of the {self._num_gpus} used"
                self._warn(f"the use of GPUs is not measured: {known}; {REMEDY}")
        return self

    def __exit__(self, *_: object) -> None:
        self._gpus = []
        self._stack.close()

    def sample(self) -> dict[str, float]:
        """The current use, by name; empty within READ_S of the last measurement.

        `cpu_share`: share of its CPUs that this process used since the last measurement.
        `memory_gb`: the machine's memory that it uses. `gpu0_share`: share of NVML's last period
        (at most a second) in which a kernel ran. `gpu0_memory_gb`: the GPU's memory that all
        processes use.
        """
        now = self._clock()
        if now - self._read_at < READ_S:
            return {}
        (then, used), self._before = self._before, (now, self._cpu_clock())
        self._read_at = now
        values = {"memory_gb": resident_memory_gb()}
        if now > then:
            values["cpu_share"] = (self._before[1] - used) / (now - then) / self._num_cpus
        for number, gpu in enumerate(self._gpus):
            # NVML has no answer for a MIG instance or a lost GPU.
            with contextlib.suppress(self._nvml.NVMLError):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(gpu)
                values[f"gpu{number}_memory_gb"] = memory.used / 1e9
                rates = self._nvml.nvmlDeviceGetUtilizationRates(gpu)
                values[f"gpu{number}_share"] = rates.gpu / 100
        return {name: round(value, 4) for name, value in values.items()}


def resident_memory_gb() -> float:
    """The machine's memory in GB that this process uses."""
    import psutil  # late, because `harness --help` does not need it

    return float(psutil.Process().memory_info().rss / 1e9)
