"""`harness doctor --probe`: estimates how long harness's five jobs take here, from short runs.

A short run also checks the GPU, fills the driver's cache of compiled kernels, and records how much
GPU memory the run takes.

To import TensorFlow, `harness doctor` runs this module in a child process.
"""

import json
import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import PROJECT
from harness.architectures import ARCHITECTURES
from harness.errors import InputError, NodeFault, RunError
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.resources import WARNING_S
from harness.system import gpu
from harness.system.console import echo, log, strip_prefix
from harness.system.files import scratch_directory
from harness.system.lenient_json import read_json, read_json_lines
from harness.system.processes import own_code_first
from harness.tracking.run_dir import RECORD, RESULT, last_start

JOBS = PROJECT / "jobs"
MODULE = "harness.doctor.probe"
# The value of `data.limit` in a short run: reviews per split, on a GPU and on the CPU. Half of the
# training split is for validation.
SHORT = {"gpu": 20_000, "cpu": 2000}
EPOCHS = 2
FULL_REVIEWS = 25_000  # number of reviews in each split of IMDB
# Time limit of a child process that imports TensorFlow; the first import from a network disk takes
# minutes.
START_S = 300
# Time limit of a short run on a GPU, whose kernels may take 30 minutes to compile.
FIRST_USE_S = 2400
MARGIN = 1.25  # the job's time limit is the estimate times this, for slow nodes and busy disks
WARNED_S = WARNING_S + 60  # Slurm may warn a job 60 s earlier than --signal says


@dataclass(frozen=True)
class Estimate:
    """How fast a job trains on these devices, and how long it takes."""

    job: str
    devices: str = ""
    data: str = ""  # the dataset of the short run
    reviews_per_s: float = 0.0  # during training, without validation
    step_s: float = 0.0
    first_step_s: float = 0.0  # from the start of the process to the end of the first step
    total_s: float = 0.0
    time_limit: str = ""  # for sbatch --time
    memory_gb: float = 0.0
    gpu_gb: float | None = None  # GPU memory that the run takes; None on CPUs
    error: str = ""

    @property
    def is_well(self) -> bool:
        """Whether the short run succeeded."""
        return not self.error


def ask_child(devices: str | None) -> dict[str, Any]:
    """Call `devices_seen` in a child process with TensorFlow.

    Raises:
        InputError: if the child refuses its input.
        RunError: if the child fails, dies or takes longer than START_S.
    """
    what, remedy = "a process with TensorFlow", f"; try: {sys.executable} -c 'import tensorflow'"
    output = _run_module(MODULE, devices or "", timeout_s=START_S, what=what, remedy=remedy)
    return dict(json.loads(output.splitlines()[-1]))


def _run_module(
    module: str, *args: str | Path, timeout_s: float, what: str, remedy: str = ""
) -> str:
    """Run a Python module of this project in a child process; return its standard output.

    Args:
        module: the module's name; `args` are its command-line arguments.
        timeout_s: the time in seconds after which the child is killed.
        what: the subject of the error's message, such as `a short run`.
        remedy: the end of the error's message.

    Raises:
        InputError: if the child refuses its input.
        RunError: if the child fails, dies or takes longer than `timeout_s`.
    """
    try:
        done = subprocess.run(  # noqa: S603 - a list of arguments, no shell
            # With -P, because the current folder may contain another package named harness.
            [sys.executable, "-P", "-m", module, *args],
            # Offline, because a download would distort the measured times.
            env={**own_code_first(), "HARNESS_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"{what} took over {timeout_s:.0f} s and was killed{remedy}") from None
    if done.returncode == 0:
        return done.stdout
    lines = [line for line in f"{done.stdout}{done.stderr}".splitlines() if line.strip()]
    last = strip_prefix(lines[-1]) if lines else "it printed nothing"
    if done.returncode == InputError.exit_code:
        raise InputError(last)
    how = f"ended with code {done.returncode}"
    if done.returncode < 0:
        how = f"died of {signal.Signals(-done.returncode).name}"
    raise RunError(f"{what} {how} ({last[:300]}){remedy}")


# The estimate


def probe(devices: str | None, data: Path | None) -> Iterator[Estimate]:
    """Train the job file of each built-in network, such as `jobs/lstm.toml`, for two short epochs.

    By default, train on one GPU, or on the CPU if there is no GPU. For a job that fails, yield an
    estimate that contains only the error message.

    Raises:
        InputError: if the devices or the data can't be used.
        RunError: if TensorFlow can't list its devices.
    """
    if devices is None and ask_child(None)["gpus"]:
        devices = "gpu:1"
    for name in ARCHITECTURES:
        try:
            yield measure(name, devices, data)
        except RunError as error:
            yield Estimate(name, error=str(error))


def measure(name: str, devices: str | None, data: Path | None) -> Estimate:
    """Train a job for two short epochs in a child process, and extrapolate to the whole job.

    Raises:
        InputError: if the run refuses its input.
        RunError: if the run fails.
    """
    on_gpu = (devices or "").startswith("gpu")
    with scratch_directory() as folder:
        args: list[str | Path] = ["train", JOBS / f"{name}.toml", "--runs", folder]
        args += ["--run-id", "probe", "--set", f"data.limit={SHORT['gpu' if on_gpu else 'cpu']}"]
        args += ["--set", "data.validation_split=0.5", "--set", f"train.epochs={EPOCHS}"]
        args += ["--devices", devices] if devices else []
        args += ["--data", data] if data else []
        began_s = time.perf_counter()
        limit_s = FIRST_USE_S if on_gpu else 2 * START_S
        _run_module("harness", *args, timeout_s=limit_s, what="a short run")
        wall_s = time.perf_counter() - began_s
        return estimate(load_job(JOBS / f"{name}.toml"), next(folder.glob("*/probe")), wall_s)


def estimate(job: Job, run: Path, wall_s: float) -> Estimate:
    """Estimate a job on IMDB, which has 25,000 reviews per split, from a short run of the job.

    Args:
        job: the job to estimate, with all its epochs.
        run: the folder of the short run.
        wall_s: the time in seconds that the process of the short run took.
    """
    result, start = read_json(run / RESULT), last_start(read_json(run / RECORD))
    last = read_json_lines(run / "timings.jsonl")[-1]  # not the first epoch, which also compiles
    evaluated_s = last["validation_s"] / result["num_validation"]  # per review
    num_validation = int(FULL_REVIEWS * job.data.validation_split)
    epoch_s = (FULL_REVIEWS - num_validation) / last["reviews_per_s"]
    total_s = (
        # The time of the short run without its last epoch: start, first epoch with compilation, end
        wall_s
        - (last["epoch_s"] + last["validation_s"])
        + job.train.epochs * (epoch_s + num_validation * evaluated_s)
        + FULL_REVIEWS * evaluated_s
    )
    used = start["devices"]
    kind = used[0].get("name") or used[0]["device"].partition(":")[0]
    return Estimate(
        job.name,
        devices=f"{len(used)} x {kind}",
        data=result["data"],
        reviews_per_s=last["reviews_per_s"],
        step_s=job.train.batch_size / last["reviews_per_s"],
        first_step_s=round(result["first_step_s"], 1),
        total_s=round(total_s, 1),
        time_limit=time_limit(total_s),
        memory_gb=round(read_json(run / "state.json")["device"]["memory_gb"], 2),
        gpu_gb=start.get("gpu_gb"),
    )


def time_limit(seconds: float) -> str:
    """Return a value for `sbatch --time`, with a margin, in steps of 5 minutes: `[D-]HH:MM:SS`."""
    minutes = math.ceil((seconds * MARGIN + WARNED_S) / 300) * 5
    days, minutes = divmod(minutes, 24 * 60)
    return f"{f'{days}-' if days else ''}{minutes // 60:02}:{minutes % 60:02}:00"


# In the child process


def devices_seen(devices: str) -> dict[str, Any]:
    """Import TensorFlow; return the import's time, TensorFlow's build, and the visible GPUs.

    In the returned dictionary, `refused` is the error that would end a run on `devices`, and
    `warning` is the warning that a run on `devices` would print.

    Args:
        devices: the devices to train on; empty = all.
    """
    from harness.compute.strategy import card_of, import_tensorflow, make_strategy, parse_devices

    allocation = SlurmEnvironment.from_environment()
    began = time.perf_counter()
    tf = import_tensorflow(allocation)
    gpus = tf.config.list_physical_devices("GPU")
    import_s = time.perf_counter() - began
    from harness.compute.device_check import check_gpus

    cards = [card_of(each) for each in gpus]
    libraries = {"missing": gpu.load_libraries(), "site": gpu.shadowing_libraries()}
    warnings: list[str] = []
    refused, build = "", tf.sysconfig.get_build_info()
    try:
        requested = parse_devices(devices) if devices else None
        check_gpus(requested, allocation, warnings.append)
        make_strategy(requested)
    except (InputError, NodeFault) as error:
        refused = str(error)
    return {
        "import_s": import_s,
        "gpus": [card.name for card in cards],
        "capabilities": [list(card.capability) for card in cards],
        "libraries": libraries if gpu.has_driver() else None,
        "targets": list(build.get("cuda_compute_capabilities", ())),
        "cuda": ".".join(build.get("cuda_version", "").split(".")[:2]),
        "driver_cuda": gpu.driver_cuda(),
        "cudnn": gpu.library_versions()["cudnn"],
        "warning": "".join(warnings),
        "refused": refused,
    }


if __name__ == "__main__":
    try:
        echo(json.dumps(devices_seen(sys.argv[1])))
    except (InputError, RunError) as error:
        log(logging.ERROR, str(error))
        sys.exit(error.exit_code)
