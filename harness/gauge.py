"""How busy a process keeps its processors, its memory and its GPUs.

GPUs are read through NVML, the driver's own library. Without it, or without its Python package,
everything else is read all the same.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.idle import IdleWatch

READ_S = 5.0  # between two readings


def find_nvml() -> Any:
    """The module `pynvml` of nvidia-ml-py, None where it is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


class Gauge:
    """Reads what this process uses; a context manager, which also watches for idle GPUs."""

    def __init__(
        self,
        num_gpus: int,
        num_cpus: int,
        *,
        idle_min: float = 0.0,
        warn: Callable[[str], object] = lambda line: None,
        nvml: Callable[[], Any] = find_nvml,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        """Make a gauge; nothing is read yet.

        Args:
            num_gpus: how many this process uses, the first of those that it sees.
            num_cpus: how many it may use.
            idle_min: minutes after which an idle GPU is warned of, 0 for never.
            warn: takes a line of warning; called from a thread.
            nvml: finds NVML, as `find_nvml` does.
            environment: its CUDA_VISIBLE_DEVICES tells which GPUs are seen.
            clock: gives seconds.
            cpu_clock: gives the seconds of processor time that this process has used.
        """
        self._num_gpus, self._num_cpus = num_gpus, num_cpus
        self._idle = IdleWatch(idle_min, clock) if idle_min > 0 else None
        self._warn, self._find, self._environment = warn, nvml, environment
        self._clock, self._cpu_clock = clock, cpu_clock
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}  # by TensorFlow's number of the GPU
        self._read_at = float("-inf")
        self._before = clock(), cpu_clock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Gauge":
        if self._num_gpus:
            problem = self._open()
            if problem:
                self._warn(f"the use of GPUs is not measured: {problem}")
        if self._handles and self._idle:
            # Not at the steps: where a loop hangs, its GPU is idle and no step comes.
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()
        if self._nvml:
            self._ask(self._nvml.nvmlShutdown)
        self._nvml, self._handles = None, {}

    @property
    def warning(self) -> str | None:
        """What there is to say of GPUs that are idle now."""
        return self._idle.warning if self._idle else None

    def figures(self) -> dict[str, float]:
        """What is used, by name; empty within READ_S of the last reading.

        `cpu_share`: of the processors that may be used, since the last reading. `memory_gb`: in
        the machine's memory. Of each GPU `gpu0_share`, of the time in which a kernel ran, over
        NVML's last period of at most a second, and `gpu0_memory_gb`, taken on it by any process.
        """
        now = self._clock()
        if now - self._read_at < READ_S:
            return {}
        (then, used), self._before = self._before, (now, self._cpu_clock())
        self._read_at = now
        found: dict[str, float | None] = {"memory_gb": resident_memory_gb()}
        if now > then:
            found["cpu_share"] = (self._before[1] - used) / (now - then) / self._num_cpus
        for name, handle in self._handles.items():
            found[f"gpu{name}_share"] = self._share(handle)
            found[f"gpu{name}_memory_gb"] = self._memory_gb(handle)
        return {name: round(value, 4) for name, value in found.items() if value is not None}

    def look(self) -> None:
        """Take a look at the use of the GPUs, and warn of those that are idle for too long."""
        if self._idle:
            shares = {name: self._share(handle) for name, handle in self._handles.items()}
            if line := self._idle.look(shares):
                self._warn(line)

    def _watch(self) -> None:
        while not self._over.wait(READ_S):
            self.look()

    def _open(self) -> str:
        """Find the GPUs; returns what prevents it."""
        nvml = self._find()
        if nvml is None:
            return "nvidia-ml-py is not installed; HARNESS_EXTRA=gpu bash slurm/common.sh --setup"
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return f"NVML says {error}; compare nvidia-smi"
        self._nvml = nvml
        seen = self._environment.get("CUDA_VISIBLE_DEVICES")
        names = seen.split(",") if seen else [str(place) for place in range(self._num_gpus)]
        for place, name in enumerate(word.strip() for word in names[: self._num_gpus]):
            if name.isdigit():
                handle = self._ask(nvml.nvmlDeviceGetHandleByIndex, int(name))
            else:  # GPU-... or MIG-...
                handle = self._ask(nvml.nvmlDeviceGetHandleByUUID, name)
            if handle is None:
                return f"NVML does not know GPU {name} of CUDA_VISIBLE_DEVICES; compare nvidia-smi"
            self._handles[str(place)] = handle
        return ""

    def _share(self, handle: Any) -> float | None:
        rates = self._ask(self._nvml.nvmlDeviceGetUtilizationRates, handle)
        return None if rates is None else float(rates.gpu) / 100

    def _memory_gb(self, handle: Any) -> float | None:
        info = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        return None if info is None else float(info.used) / 1e9

    def _ask(self, call: Callable[..., Any], *words: object) -> Any:
        """None where NVML has no answer, as for a part of a GPU (MIG), or one that is lost."""
        try:
            return call(*words)
        except self._nvml.NVMLError:
            return None


def resident_memory_gb() -> float | None:
    """The machine's memory that this process holds, None where the system does not tell."""
    try:
        # The second number of statm is the resident set in pages, proc_pid_statm(5).
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
