"""How a job's steps are computed: the fastest of the plans whose results agree to rounding.

What is fastest depends on the device and on the job's sizes. `harness bench --only plans` measures
a few steps of each plan and keeps the times in the user's cache; a run of the same sizes takes the
fastest from there, and without a record the rule that held wherever it was measured. A run that
goes on keeps the plan that it began with, so its bytes do not depend on what was measured since.
No run measures by itself: two runs of one job would then differ by which plan won by a hair.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files.atomic_file import atomic_write
from harness.files.lenient_json import read_json
from harness.files.paths import cache_folder
from harness.job import Job
from harness.system.host import gpu_name, installed_version, processor

# Up to where XLA was faster on two CPU cores (tests/README.md, "Where the time goes"): reviews in a
# batch times units in all recurrent layers, and words of which outputs are kept.
LARGEST_COMPILED = 2048
LONGEST_COMPILED = 200
MAX_PARTS = 4  # of a batch
DROPOUTS = ("dropout", "spatial_dropout")  # take the same time whatever their rate


@dataclass(frozen=True)
class ExecutionPlan:
    """How steps are computed."""

    xla: bool  # forward and backward pass are compiled by XLA
    threads: int  # of each operation, and of operations at a time
    parts: int  # of a global batch, that forward and backward pass take at once, side by side
    why: str


def plan_name(xla: bool, threads: int) -> str:
    """`xla 2` or `loop 1`: what computes, on how many threads."""
    return f"{'xla' if xla else 'loop'} {threads}"


def without_cudnn(job: Job) -> str:
    """Why cuDNN can't take the job's layers, by Keras's own rules; empty where it can."""
    if job.model.architecture == "rnn":
        return "cuDNN has no plain RNN in Keras"
    if job.model.architecture == "gru" and not job.model.reset_after:
        return "cuDNN has only the GRU with model.reset_after = true"
    return ""


def uses_xla(job: Job, kind: str) -> bool:
    """The rule without a measurement.

    On a GPU XLA takes what cuDNN can't. On a CPU it wins where a step is many small operations,
    which cost TensorFlow's loop more to begin than to do; it loses where they are large, and where
    outputs over many words are kept, which it copies at every word. See `num_parts`.
    """
    if kind == "gpu":
        return without_cudnn(job) != ""
    keeps_outputs = job.model.pooling != "last" or job.model.architecture == "stacked_lstm"
    if keeps_outputs and job.data.maxlen > LONGEST_COMPILED:
        return False
    return 0 < _size(job) <= 2 * LARGEST_COMPILED  # in two parts, which pay on one thread too


def num_parts(job: Job, kind: str) -> int:
    """In how many parts a compiled step takes its batch, by the job alone.

    Two halves of which each is fast are computed side by side, or one after the other where there
    is one thread, to the same bytes.
    """
    if kind == "gpu":
        return 1
    return max(1, min(MAX_PARTS, -(-_size(job) // LARGEST_COMPILED), job.train.batch_size))


def _size(job: Job) -> int:
    """Reviews in a batch times units in all recurrent layers; 0 for an unknown architecture."""
    units = job.model.units
    recurrent = {
        "rnn": units,
        "lstm": units,
        "gru": units,
        "bilstm": 2 * units,
        "stacked_lstm": units + (job.model.second_units or units),
    }
    return job.train.batch_size * recurrent.get(job.model.architecture, 0)


def shape(job: Job) -> str:
    """What of a job decides how long a step takes; what was measured for one holds for its like."""
    model = {name: value for name, value in job.model if name not in DROPOUTS}
    what = {**model, "maxlen": job.data.maxlen, "vocab_size": job.data.vocab_size}
    what |= {name: getattr(job.train, name) for name in ("batch_size", "optimizer", "precision")}
    return " ".join(f"{name}={value}" for name, value in what.items())


def choose(
    job: Job,
    kind: str,
    cpus: int,
    *,
    device: str = "",
    begun: Mapping[str, Any] = {},
    times_ms: Mapping[str, float] = {},
) -> ExecutionPlan:
    """The plan of a run.

    Args:
        job: whose `train.xla` may say on or off.
        kind: of the device, cpu or gpu.
        device: what computes, such as a processor's name.
        cpus: that may be used; no plan takes more threads.
        begun: the plan in the record of a run that goes on, else nothing.
        times_ms: a step's time by each plan's name, as measured on the device, if it was.
    """

    def plan(xla: bool, threads: int, why: str) -> ExecutionPlan:
        return ExecutionPlan(xla, threads, num_parts(job, kind) if xla else 1, why)

    if isinstance(begun.get("xla"), bool):
        return ExecutionPlan(begun["xla"], cpus, begun.get("parts", 1), "as the run began")
    allowed = {"on": [True], "off": [False]}.get(job.train.xla, [True, False])
    plans = {
        plan_name(xla, threads): (xla, threads) for xla in allowed for threads in range(1, cpus + 1)
    }
    known = {name: times_ms[name] for name in plans if name in times_ms}
    told = f"train.xla = {job.train.xla}"
    if known:
        ranked = sorted(known, key=lambda name: known[name])
        ms = ", ".join(f"{name}: {known[name]:.3g}" for name in ranked)
        return plan(
            *plans[ranked[0]], f"{told}, the fastest measured on {device} (ms a step: {ms})"
        )
    if len(allowed) == 1:
        return plan(allowed[0], cpus, told)
    xla = uses_xla(job, kind)
    return plan(xla, cpus, f"{told}, by rule: {'compiled' if xla else 'not compiled'}")


# What was measured


def device_name(kind: str) -> str:
    """The device by whose name times are kept.

    Args:
        kind: cpu or gpu.
    """
    return (gpu_name() if kind == "gpu" else None) or processor()


def record_path() -> Path:
    """Where the times are kept."""
    return cache_folder() / "plans.json"


def measured_ms(device: str, job: Job) -> dict[str, float]:
    """A step's time by plan, as measured on a device with this TensorFlow for a job of the same
    sizes; nothing if not.
    """
    held = read_json(record_path()).get(device, {})
    if not isinstance(held, dict) or held.get("tensorflow") != installed_version("tensorflow"):
        return {}
    times = held.get("step_ms", {}).get(shape(job), {})
    return {name: float(ms) for name, ms in times.items() if isinstance(ms, int | float) and ms > 0}


def save_measured(device: str, job: Job, step_ms: Mapping[str, float]) -> Path:
    """Keep a job's times on a device by plan, in place of what was known of its like.

    Raises:
        RunError: if the cache can't be written.
    """
    record, version = read_json(record_path()), installed_version("tensorflow")
    held = record.get(device)
    if not isinstance(held, dict) or held.get("tensorflow") != version:
        held = {"tensorflow": version, "step_ms": {}}
    held["step_ms"][shape(job)] = dict(step_ms)
    record[device] = held
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(record, indent=1))
    return path
