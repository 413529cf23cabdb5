"""How a job's steps are computed: the fastest of the plans whose results agree to rounding.

Which plan is fastest depends on the device and on the job's sizes. `harness bench --only plans`
measures a few steps of each plan and saves the times in the user's cache; a run of the same sizes
takes the fastest from there. Without a measurement a rule decides. A resumed run keeps the plan
that it began with, so later measurements do not change its bytes. No run measures by itself: two
runs of one job could then differ because two plans are almost equally fast.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.architectures import ModelConfig, over_time
from harness.files.atomic_file import atomic_write
from harness.files.lenient_json import read_json, table
from harness.files.paths import cache_folder
from harness.files.scratch import turn_at
from harness.job import FACTS, KEYS, Job
from harness.system.host import gpu_name, installed_version, processor

# Up to these sizes XLA was faster on two CPU cores (tests/README.md, "Where the time goes").
LARGEST_COMPILED = 2048  # reviews in a batch times units in all recurrent layers
LONGEST_COMPILED = 200  # words of each review, where the outputs at all words are used
MAX_PARTS = 4  # that a batch is split into
BLOCK_PARTS = 2  # where LSTM layers are one operation; more were slower on two CPU cores
LARGE = 2**23  # numbers in a variable: 32 MB of float32, more than most CPUs have as a cache
# Their updates depend on sums over a variable, which threads would add up in another order.
NOT_ELEMENTWISE = ("adafactor", "muon")


@dataclass(frozen=True)
class ExecutionPlan:
    """How steps are computed."""

    xla: bool  # forward and backward pass are compiled by XLA
    threads: int  # in each operation, and operations at a time
    parts: int  # of a global batch, computed side by side
    why: str
    fused: bool = False  # the update of a large variable is one pass, see `FusedUpdate`
    block: bool = False  # LSTM layers are one operation, see `use_block_kernel`


def plan_name(xla: bool, threads: int) -> str:
    """Such as `xla 2` or `loop 1`: the way of computing and the number of threads."""
    return f"{'xla' if xla else 'loop'} {threads}"


def without_cudnn(job: Job) -> str:
    """Why cuDNN can't compute the job's layers, by Keras's own rules; empty if it can."""
    if job.model.architecture == "rnn":
        return "cuDNN has no plain RNN in Keras"
    if job.model.architecture == "gru" and not job.model.reset_after:
        return "cuDNN has only the GRU with model.reset_after = true"
    return ""


def uses_xla(job: Job, kind: str) -> bool:
    """The rule without a measurement.

    On a GPU XLA compiles what cuDNN can't compute. On a CPU XLA is faster for steps of many small
    operations, which TensorFlow's loop spends more time starting than computing. It is slower for
    large operations, and for long reviews if the outputs at all words are used, because it copies
    them at every word. For batches by length it also compiles a step for each length.
    """
    if kind == "gpu":
        return without_cudnn(job) != ""
    if job.data.bucket:
        return False
    keeps_outputs = over_time(job.network()) or job.model.architecture == "stacked_lstm"
    if keeps_outputs and job.data.maxlen > LONGEST_COMPILED:
        return False
    return 0 < _size(job) <= 2 * LARGEST_COMPILED  # in two parts, faster on one thread too


def num_parts(job: Job, kind: str) -> int:
    """How many parts a compiled step splits its batch into. It depends on the job alone.

    The parts are computed side by side, or one after another on a single thread, to the same bytes.
    """
    if kind == "gpu":
        return 1
    return max(1, min(MAX_PARTS, -(-_size(job) // LARGEST_COMPILED), job.train.batch_size))


def uses_block(job: Job, kind: str) -> bool:
    """Whether a new run computes LSTM layers by TensorFlow's block kernel, which CPUs have."""
    return job.train.block_lstm and kind == "cpu" and not job.block_lstm_without_effect()


def has_large_table(job: Job) -> bool:
    """Whether the words' vectors are a large variable."""
    return job.data.vocab_size * job.model.embedding_dim >= LARGE


def _size(job: Job) -> int:
    """Reviews in a batch times units in all recurrent layers; 0 for an unknown architecture."""
    if not job.model.recurrent or job.model.is_own:
        return 0
    return job.train.batch_size * recurrent_units(job.model)


def recurrent_units(model: ModelConfig) -> int:
    """The units in all recurrent layers."""
    if model.architecture == "stacked_lstm":
        return model.units + (model.second_units or model.units)
    return model.units * (2 if model.architecture == "bilstm" else 1)


def shape(job: Job) -> str:
    """The settings that decide how long a step takes: jobs that share them share measurements."""
    values = {key: job.value(key) for key, facts in FACTS.items() if facts.step != "value"}
    return " ".join(
        f"{key}={value}"
        for key, value in values.items()
        if value != KEYS[key].default and key != "train.xla"  # which the plans themselves say
    )


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
        job: its `train.xla` may be on or off.
        kind: of the device, cpu or gpu.
        cpus: the most threads that a new run's plan may use.
        device: its name, for the reason.
        begun: the plan in the record of a resumed run, else nothing.
        times_ms: the time of a step by plan name, if it was measured on the device.
    """

    def plan(xla: bool, threads: int, why: str, *, block: bool = False) -> ExecutionPlan:
        parts = num_parts(job, kind) if xla else 1
        if block:
            parts = min(BLOCK_PARTS, job.train.batch_size)
        # Nobody has measured on a GPU whether one pass is faster there.
        fused = kind == "cpu" and job.train.optimizer not in NOT_ELEMENTWISE
        return ExecutionPlan(xla, threads, parts, why, fused, block)

    if isinstance(begun.get("xla"), bool):
        parts, fused = begun.get("parts", 1), begun.get("fused", False)
        # Sums over threads differ in their last bits. More threads than CPUs are slow, but exact;
        # whoever wants speed instead begins a new run.
        threads = begun.get("threads")
        if type(threads) is not int or threads < 1:
            threads = cpus
        block = begun.get("block", False)
        return ExecutionPlan(begun["xla"], threads, parts, "as the run began", fused, block)
    if uses_block(job, kind):
        return plan(False, cpus, "train.block_lstm = true", block=True)
    allowed = {"on": [True], "off": [False]}.get(job.train.xla, [True, False])
    plans = {
        plan_name(xla, threads): (xla, threads) for xla in allowed for threads in range(1, cpus + 1)
    }
    measured = {name: times_ms[name] for name in plans if name in times_ms}
    setting = f"train.xla = {job.train.xla}"
    if measured:
        ranked = sorted(measured, key=lambda name: measured[name])
        ms = ", ".join(f"{name}: {measured[name]:.3g}" for name in ranked)
        return plan(
            *plans[ranked[0]], f"{setting}, the fastest measured on {device} (ms a step: {ms})"
        )
    if len(allowed) == 1:
        return plan(allowed[0], cpus, setting)
    xla = uses_xla(job, kind)
    return plan(xla, cpus, f"{setting}, by rule: {'compiled' if xla else 'not compiled'}")


# Measurements


def device_name(kind: str) -> str:
    """The name of this machine's cpu or gpu in the record of measurements."""
    return (gpu_name() if kind == "gpu" else None) or processor()


def record_path() -> Path:
    """The file of measurements."""
    return cache_folder() / "plans.json"


def measured_ms(device: str, job: Job) -> dict[str, float]:
    """The time of a step by plan, measured on a device with this TensorFlow for jobs of the same
    sizes; empty if there was no measurement.
    """
    times = table(read_measured(device, "step_ms"), shape(job))
    return {name: float(ms) for name, ms in times.items() if isinstance(ms, int | float) and ms > 0}


def save_measured_ms(device: str, job: Job, step_ms: Mapping[str, float]) -> Path:
    """Save a job's times by plan on a device, replacing those of jobs of the same sizes.

    Raises:
        RunError: if the cache can't be written.
    """
    return save_measured(device, "step_ms", {shape(job): dict(step_ms)})


def read_measured(device: str, kind: str) -> dict[str, Any]:
    """All measurements of a kind on a device, those with this TensorFlow; empty without any."""
    return table(_entry(read_json(record_path()), device), kind)


def save_measured(device: str, kind: str, values: Mapping[str, Any]) -> Path:
    """Save measurements of a kind on a device beside those that are there; returns the file.

    Raises:
        RunError: if the cache can't be written.
    """
    path, version = record_path(), installed_version("tensorflow")
    with turn_at(path):  # several runs may end in the same moment
        record = read_json(path)
        entry = {"tensorflow": version, **_entry(record, device)}
        record[device] = {**entry, kind: {**table(entry, kind), **values}}
        atomic_write(path, json.dumps(record, indent=1))
    return path


def _entry(record: dict[str, Any], device: str) -> dict[str, Any]:
    """A device's measurements in a record; empty if they are not of this TensorFlow."""
    entry = table(record, device)
    return entry if entry.get("tensorflow") == installed_version("tensorflow") else {}
