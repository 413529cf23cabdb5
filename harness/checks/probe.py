"""How fast this machine trains the five jobs: measured in child processes, and extrapolated.

Each job gets a child of its own: a process can make one strategy only, frees all of its memory at
its end, starts as a run does, and can crash without harm. Only the children import TensorFlow.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import PROJECT
from harness.checks import child
from harness.errors import InputError, RunError
from harness.files.scratch import scratch_directory
from harness.slurm.environment import SlurmEnvironment
from harness.tracking.disk_use import total

ARCHITECTURES = ("rnn", "lstm", "gru", "bilstm", "stacked_lstm")
JOBS = PROJECT / "jobs"
SMALL_RUN = "lstm"
TRY = f"try: {sys.executable} -c 'import tensorflow'"
START_S = 300  # that a child may take in addition to what it measures
# On a GPU for which TensorFlow holds no machine code; TensorFlow warns of 30 minutes.
FIRST_USE_S = 2400
MARGIN = 1.25  # of the time limit over the estimate: other nodes, busy disks
WARNED_S = 120  # Slurm warns 90 s before the end, and looks every 30 s


@dataclass(frozen=True)
class Estimate:
    """How fast a job is on these devices, and how long it takes."""

    job: str
    devices: str = ""
    data: str = ""  # measured on
    is_sample: bool = False  # then the estimate is for the full data all the same
    measured_s: float = 0.0
    reviews_per_s: float = 0.0  # training
    first_step_s: float = 0.0  # from the start of the process
    total_s: float = 0.0
    time_limit: str = ""  # for sbatch --time
    speed_of_two: float | None = None  # two GPUs over one, None where not measured
    peak_memory_gb: float = 0.0
    error: str = ""

    @property
    def on_gpu(self) -> bool:
        """Whether it was measured on a GPU."""
        return bool(self.devices) and "cpu" not in self.devices


def ask_child(request: dict[str, Any], timeout_s: float, **variables: str) -> dict[str, Any]:
    """The answer of a child process that measures: see `harness.checks.probe_child`.

    Raises:
        InputError: if the child refused its input.
        RunError: if it failed, died or took too long.
    """
    module = "harness.checks.probe_child"
    try:
        answer, ended = child.ask(module, request, timeout_s=timeout_s, **variables)
    except child.ChildError as error:
        raise RunError(f"a process with TensorFlow {error}; {TRY}") from None
    return {**answer, "peak_memory_gb": ended.peak_memory_gb}


# The estimate


def probe(minutes: float, devices: str | None, data: Path | None) -> list[Estimate]:
    """Measure each of the five jobs, for `minutes` in total without starts and warm-up.

    Where there are two GPUs or more and no devices are named, a job is measured on one and on two,
    and the estimate is for one.

    Raises:
        InputError, RunError: if nothing can be trained here at all.
    """
    allocation = SlurmEnvironment.from_environment()
    if allocation and max(allocation.num_nodes, allocation.num_tasks) > 1:
        raise InputError(
            f"--probe in {allocation.num_nodes} nodes and {allocation.num_tasks} tasks: should be "
            "in one of each; ask Slurm for --nodes=1 --ntasks=1"
        )
    gpus = ask_child({"do": "devices"}, START_S)["gpus"] if devices is None else []
    variants = ["gpu:1", "gpu:2"] if len(gpus) > 1 else [devices]
    limit_s = FIRST_USE_S if gpus or (devices or "").startswith("gpu") else START_S
    run_s = time_small_run(variants[0], data, limit_s)
    seconds = minutes * 60 / len(ARCHITECTURES) / len(variants)
    measured: dict[str, list[dict[str, Any]]] = {}
    errors = {}
    for name in ARCHITECTURES:
        request = {
            "do": "speed",
            "job": JOBS / f"{name}.toml",
            "data": data,
            "seconds": seconds,
        }
        for each in variants:
            try:
                answer = ask_child({**request, "devices": each}, limit_s + seconds)
            except (InputError, RunError) as error:
                errors[name] = f"on {each}: {error}" if each else str(error)
                break  # two are of no use without one
            measured.setdefault(name, []).append(answer)
    start_s = measured[SMALL_RUN][0]["first_step_s"] if SMALL_RUN in measured else 0.0
    return [
        estimate(
            name,
            *measured[name],
            rest_s=max(0.0, run_s - start_s),
            error=errors.get(name, ""),
        )
        if name in measured
        else Estimate(name, error=errors[name])
        for name in ARCHITECTURES
    ]


def estimate(
    name: str,
    measured: dict[str, Any],
    on_two: dict[str, Any] | None = None,
    *,
    rest_s: float,
    error: str = "",
) -> Estimate:
    """Extrapolate what was measured of a job to all of its steps and evaluations.

    Args:
        on_two: what a child measured on two devices.
        rest_s: what a run takes in addition to its start, its steps and its evaluations.
        error: why there is no measurement on two.
    """
    ratio = measured["step_s"] / on_two["step_s"] if on_two else None
    total_s = (
        measured["first_step_s"]
        + measured["num_steps"] * measured["step_s"]
        + measured["num_evaluation_batches"] * measured["evaluation_batch_s"]
        + rest_s
    )
    return Estimate(
        name,
        devices=measured["devices"],
        data=measured["data"],
        is_sample=measured["is_sample"],
        measured_s=round(measured["measured_s"], 1),
        reviews_per_s=round(measured["batch_size"] / measured["step_s"], 1),
        first_step_s=round(measured["first_step_s"], 1),
        total_s=round(total_s, 1),
        time_limit=time_limit(total_s),
        speed_of_two=None if ratio is None else round(ratio, 2),
        peak_memory_gb=round(measured["peak_memory_gb"], 2),
        error=error,
    )


def time_limit(seconds: float) -> str:
    """The value for `sbatch --time`: with a margin, in steps of five minutes, `[D-]HH:MM:SS`."""
    minutes = math.ceil((seconds * MARGIN + WARNED_S) / 300) * 5
    days, minutes = divmod(minutes, 24 * 60)
    return f"{f'{days}-' if days else ''}{minutes // 60:02}:{minutes % 60:02}:00"


def folder_gb(folder: Path | None) -> float:
    """The size of the files below a folder, in GB."""
    return total(folder).num_bytes.total() / 1e9 if folder else 0.0


def describe_kernel_cache(folder: Path | None, before_gb: float) -> str:
    """What the probe's runs have put into CUDA's cache, from which later runs start at once.

    Args:
        folder: of the cache, None where nothing is kept.
        before_gb: its size before the probe.
    """
    if folder is None:
        return (
            "CUDA keeps no compiled kernels: unset CUDA_CACHE_DISABLE, or name a folder of your "
            "own by CUDA_CACHE_PATH"
        )
    now_gb = folder_gb(folder)
    what = "had all that the five jobs need"
    if now_gb > before_gb:
        what = f"got {now_gb - before_gb:.2f} GB that the driver compiled for this card"
    return f"CUDA's cache of kernels {what}: {now_gb:.2f} GB in {folder}"


def time_small_run(devices: str | None, data: Path | None, limit_s: float) -> float:
    """The seconds that a whole run of a handful of reviews takes.

    Without its start, that is what any run takes in addition to steps and evaluations: tracing,
    pictures, files, its end.

    Raises:
        RunError: if such a run fails.
    """
    with scratch_directory() as folder:
        args = ["train", str(JOBS / f"{SMALL_RUN}.toml"), "--runs", str(folder)]
        args += ["--set", "data.limit=64", "--set", "train.epochs=1"]
        args += ["--devices", devices] if devices else []
        args += ["--data", str(data)] if data else []
        ended = child.run_module("harness", *args, timeout_s=limit_s)
    if ended.code != 0:
        raise RunError(f"a run of 64 reviews failed: it {ended}")
    return ended.wall_s
