"""How much a process uses of its CPUs, its memory and its GPUs.

GPUs are read through NVML, the driver's own library. Without it, or without its Python package,
everything else is still read.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.files.site_settings import number_setting
from harness.system.cuda import visible_names
from harness.system.nvml import find_nvml, open_gpu

READ_S = 5.0  # between two readings


@dataclass(frozen=True)
class Sources:
    """What a monitor reads."""

    nvml: Callable[[], Any] = find_nvml
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)  # which GPUs it sees
    clock: Callable[[], float] = time.monotonic  # seconds
    cpu_clock: Callable[[], float] = time.process_time  # seconds that this process has used


class ResourceMonitor:
    """Reads what this process uses; a context manager, which also watches for idle GPUs."""

    def __init__(
        self,
        num_gpus: int,
        num_cpus: int,
        *,
        idle_min: float = 0.0,
        warn: Callable[[str], object] = lambda line: None,
        sources: Sources | None = None,
    ) -> None:
        """Make a monitor; nothing is read yet.

        Args:
            num_gpus: how many this process uses, the first of those that it sees.
            num_cpus: how many it may use.
            idle_min: minutes after which an idle GPU gets a warning, 0 for never.
            warn: takes a warning of one line; called from a thread.
            sources: what it reads, by default of this process.
        """
        self._num_gpus, self._num_cpus, self._warn = num_gpus, num_cpus, warn
        self._sources = sources or Sources()
        self._clock, self._cpu_clock = self._sources.clock, self._sources.cpu_clock
        self._idle = IdleWatch(idle_min, self._clock) if idle_min > 0 else None
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}  # by TensorFlow's number of the GPU
        self._read_at = float("-inf")
        self._before = self._clock(), self._cpu_clock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "ResourceMonitor":
        if self._num_gpus:
            problem = self._open()
            if problem:
                self._warn(f"the use of GPUs is not measured: {problem}")
        if self._handles and self._idle:
            # Not between steps: when the loop hangs, the GPU is idle and no step follows.
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()
        if self._nvml:
            self._ask(self._nvml.nvmlShutdown)
        self._nvml, self._handles = None, {}

    @property
    def warning(self) -> str | None:
        """The warning of GPUs that are idle now, None if none is."""
        return self._idle.warning if self._idle else None

    def sample(self) -> dict[str, float]:
        """The current use, by name; empty within READ_S of the last reading.

        `cpu_share`: of the CPUs that may be used, since the last reading. `memory_gb`: of the
        machine's memory. For each GPU `gpu0_share`, the share of NVML's last period (at most a
        second) in which a kernel ran, and `gpu0_memory_gb`, its memory used by all processes.
        """
        now = self._clock()
        if now - self._read_at < READ_S:
            return {}
        (then, used), self._before = self._before, (now, self._cpu_clock())
        self._read_at = now
        values: dict[str, float | None] = {"memory_gb": resident_memory_gb()}
        if now > then:
            values["cpu_share"] = (self._before[1] - used) / (now - then) / self._num_cpus
        for name, handle in self._handles.items():
            values[f"gpu{name}_share"] = self._share(handle)
            values[f"gpu{name}_memory_gb"] = self._memory_gb(handle)
        return {name: round(value, 4) for name, value in values.items() if value is not None}

    def look(self) -> None:
        """Read the use of the GPUs, and warn of those that are idle for too long."""
        if self._idle:
            shares = {name: self._share(handle) for name, handle in self._handles.items()}
            if line := self._idle.look(shares):
                self._warn(line)

    def _watch(self) -> None:
        while not self._over.wait(READ_S):
            self.look()

    def _open(self) -> str:
        """Find the GPUs; returns the problem, empty for none."""
        nvml = self._sources.nvml()
        if nvml is None:
            return "nvidia-ml-py is not installed; HARNESS_EXTRA=gpu bash slurm/common.sh --setup"
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return f"NVML says {error}; compare nvidia-smi"
        self._nvml = nvml
        seen = self._sources.environment.get("CUDA_VISIBLE_DEVICES")
        here = range(self._num_gpus)
        names = [str(index) for index in here] if seen is None else visible_names(seen)
        for index, name in enumerate(names[: self._num_gpus]):
            handle = self._ask(open_gpu, nvml, name)
            if handle is None:
                return f"NVML does not know GPU {name} of CUDA_VISIBLE_DEVICES; compare nvidia-smi"
            self._handles[str(index)] = handle
        return ""

    def _share(self, handle: Any) -> float | None:
        rates = self._ask(self._nvml.nvmlDeviceGetUtilizationRates, handle)
        return None if rates is None else float(rates.gpu) / 100

    def _memory_gb(self, handle: Any) -> float | None:
        info = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        return None if info is None else float(info.used) / 1e9

    def _ask(self, call: Callable[..., Any], *args: object) -> Any:
        """None where NVML has no answer, as for a slice of a GPU (MIG) or a lost GPU."""
        try:
            return call(*args)
        except self._nvml.NVMLError:
            return None


def resident_memory_gb() -> float:
    """The machine's memory that this process holds."""
    import psutil  # here, since the doctor's help needs none of it

    return float(psutil.Process().memory_info().rss / 1e9)


IDLE_BELOW = 0.05  # share of the time in which a kernel runs
DEFAULT_MIN = 10.0
ADVICE = (
    "and some sites end such jobs: where step/input_wait_share in TensorBoard is high ask for more "
    "CPUs, else raise train.batch_size or train.steps_per_execution, or take fewer GPUs"
)
GAP_S = 60.0  # between two readings, above which the time between counts as unknown


def idle_warning_min(environment: Mapping[str, str] = os.environ) -> float:
    """The minutes after which an idle GPU is reported, 0 for never: HARNESS_IDLE_WARNING_MIN.

    Raises:
        InputError: if it is not a number in range.
    """
    return number_setting("HARNESS_IDLE_WARNING_MIN", "minutes", DEFAULT_MIN, environment)


class IdleWatch:
    """Follows the use of GPUs, and reports those that were idle for a whole window."""

    def __init__(self, window_min: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the window; no GPU counts as idle before it has passed.

        Args:
            window_min: minutes, above 0.
            clock: gives seconds.
        """
        self._window_s, self._clock = 60 * window_min, clock
        self._busy: dict[str, float] = {}  # when each was last busy
        self._warned: dict[str, float] = {}
        self._looked = clock()
        self.warning: str | None = None  # of those that are idle now

    def look(self, shares: Mapping[str, float | None]) -> str | None:
        """Take a new reading of each GPU's use; returns the warning if it is due.

        It is due when a GPU has been idle for a window, and again after each further window.

        Args:
            shares: by the GPU's name, 0 to 1, None where unknown, which does not count as idle.
        """
        now = self._clock()
        # A job that was suspended knows nothing of that time.
        blind, self._looked = now - self._looked > GAP_S, now
        idle_s = {}
        due = False
        for name, share in shares.items():
            if blind or share is None or share >= IDLE_BELOW:
                self._busy[name] = self._warned[name] = now
                continue
            span_s = now - self._busy.setdefault(name, now)
            if span_s >= self._window_s:
                idle_s[name] = span_s
                due |= now - self._warned.setdefault(name, self._busy[name]) >= self._window_s
        self.warning = _text(idle_s) if idle_s else None
        if due:
            self._warned |= dict.fromkeys(idle_s, now)
        return f"{self.warning}, {ADVICE}" if due else None


def _text(idle_s: Mapping[str, float]) -> str:
    minutes = int(min(idle_s.values()) // 60)
    names = f"GPU{'s' if len(idle_s) > 1 else ''} {', '.join(idle_s)}"
    return f"{names} of {socket.gethostname()} idle for {minutes} min"
