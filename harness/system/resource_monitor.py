"""Measures how much of the CPUs, memory and GPUs this process uses.

The use of GPUs is read from NVML, a library of NVIDIA's driver. The use of CPUs and memory is read
from psutil.
"""

import contextlib
import logging
import socket
from time import monotonic
from typing import Any

import psutil

from harness.system.console import log
from harness.system.gpu import open_gpus
from harness.system.watchdog import read_limit

READ_S = 5.0  # minimum number of seconds between two measurements
IDLE, IDLE_MIN = "HARNESS_IDLE_WARNING_MIN", 10.0
REMEDY = (
    "check the GPUs with nvidia-smi, or install nvidia-ml-py with HARNESS_EXTRA=gpu bash "
    "slurm/common.sh --setup"
)


class ResourceMonitor:
    """Measures this process's use of the CPUs, the memory and the GPUs."""

    def __init__(self, num_gpus: int, num_cpus: int) -> None:
        """Make a monitor, and warn if NVML does not know all GPUs.

        Args:
            num_gpus: how many of the visible GPUs this process uses, beginning with the first.
            num_cpus: the number of CPUs that this process may use.

        Raises:
            InputError: if HARNESS_IDLE_WARNING_MIN is not a number from 0 to 1440.
        """
        self._idle_s = 60 * read_limit(IDLE, "minutes", IDLE_MIN)
        self._used_at: dict[int, float] = {}  # when each GPU was last in use, or warned of
        self._num_cpus = num_cpus
        self._read_at = float("-inf")
        self._process = psutil.Process()
        self._process.cpu_percent()  # the next call measures the use since this call
        self._nvml: Any
        self._nvml, gpus = open_gpus() if num_gpus else (None, {})
        self._gpus = list(gpus.values())[:num_gpus]  # in the order of TensorFlow's GPUs
        if len(gpus) < num_gpus:
            self._gpus = []
            known = f"NVML knows {len(gpus)} of the {num_gpus} GPUs in use"
            log(logging.WARNING, f"the use of GPUs is not measured: {known}; {REMEDY}")

    def sample(self) -> dict[str, float]:
        """Measure the use of the CPUs, the memory and the GPUs.

        The result is empty if the last measurement was less than READ_S seconds ago.

        Returns:
            `cpu_share`: the average share, 0 to 1, of this process's CPUs that it used since the
            last measurement. `memory_gb`: the machine's memory that this process uses.
            `gpu0_share`: the share of the last second (or of a shorter time) during which GPU 0 ran
            a kernel. `gpu0_memory_gb`: the memory of GPU 0 that all processes together use.
        """
        now = monotonic()
        if now - self._read_at < READ_S:
            return {}
        self._read_at = now
        cpu_share = self._process.cpu_percent() / 100 / self._num_cpus
        values = {"memory_gb": resident_memory_gb(), "cpu_share": cpu_share}
        for number, gpu in enumerate(self._gpus):
            # NVML does not answer for a MIG instance or a lost GPU.
            with contextlib.suppress(self._nvml.NVMLError):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(gpu)
                values[f"gpu{number}_memory_gb"] = memory.used / 1e9
                rates = self._nvml.nvmlDeviceGetUtilizationRates(gpu)
                values[f"gpu{number}_share"] = rates.gpu / 100
                self._warn_if_idle(number, now, is_used=rates.gpu > 0)
        return {name: round(value, 4) for name, value in values.items()}

    def _warn_if_idle(self, number: int, now: float, *, is_used: bool) -> None:
        """Warn each time a GPU has been idle for HARNESS_IDLE_WARNING_MIN minutes; 0 = never."""
        idle_s = now - self._used_at.setdefault(number, now)
        if is_used or 0 < self._idle_s <= idle_s:
            self._used_at[number] = now
        if not is_used and 0 < self._idle_s <= idle_s:
            log(
                logging.WARNING,
                f"GPU {number} of {socket.gethostname()} has been idle for {idle_s / 60:.0f} min; "
                "some sites end jobs with an idle GPU: use fewer GPUs, or --devices cpu",
            )


def resident_memory_gb() -> float:
    """Return how many GB of the machine's memory this process uses."""
    return float(psutil.Process().memory_info().rss / 1e9)
