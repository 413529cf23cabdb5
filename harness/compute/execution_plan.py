"""How a job's steps are computed: the fastest of the plans whose results agree to rounding.

Which plan is fastest depends on the device and on the job's sizes; one rule decides from these. No
run measures by itself: two runs of one job could then differ because two plans are almost equally
fast. A resumed run keeps the plan that it began with.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.architectures import ModelConfig, over_time
from harness.job import Job

# Up to these sizes XLA was faster on two CPU cores (tests/README.md, "Where the time goes").
LARGEST_COMPILED = 2048  # reviews in a batch times units in all recurrent layers
LONGEST_COMPILED = 200  # words of each review, where the outputs at all words are used
MAX_PARTS = 4  # that a batch is split into
BLOCK_PARTS = 2  # where LSTM layers are one operation; more were slower on two CPU cores


@dataclass(frozen=True)
class ExecutionPlan:
    """How steps are computed."""

    xla: bool  # forward and backward pass are compiled by XLA
    threads: int  # in each operation, and operations at a time
    parts: int  # of a global batch, computed side by side
    why: str
    block: bool = False  # LSTM layers are one operation, see `use_block_kernel`
    cudnn_rnn: bool = False  # on a GPU plain RNN layers are one operation, see `use_cudnn_rnn`


def without_cudnn(job: Job) -> str:
    """Why cuDNN can't compute the job's layers; empty if it can, as far as the job shows it."""
    if job.model.architecture == "gru" and not job.model.reset_after:
        return "cuDNN has only the GRU with model.reset_after = true"
    return ""


def uses_xla(job: Job, kind: str) -> bool:
    """The rule of `train.xla = "auto"`.

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


def choose(job: Job, kind: str, cpus: int, *, begun: Mapping[str, Any] = {}) -> ExecutionPlan:
    """The plan of a run.

    Args:
        job: its `train.xla` may be on or off.
        kind: of the device, cpu or gpu.
        cpus: the most threads that a new run's plan may use.
        begun: the plan in the record of a resumed run, else nothing.
    """

    def plan(xla: bool, threads: int, why: str, *, block: bool = False) -> ExecutionPlan:
        parts = num_parts(job, kind) if xla else 1
        if block:
            parts = min(BLOCK_PARTS, job.train.batch_size)
        cudnn_rnn = kind == "gpu" and not xla
        return ExecutionPlan(xla, threads, parts, why, block, cudnn_rnn)

    if isinstance(begun.get("xla"), bool):
        parts, block = begun.get("parts", 1), begun.get("block", False)
        # Sums over threads differ in their last bits. More threads than CPUs are slow, but exact;
        # whoever wants speed instead begins a new run.
        threads = begun.get("threads")
        if type(threads) is not int or threads < 1:
            threads = cpus
        cudnn_rnn = begun.get("cudnn_rnn", False)
        return ExecutionPlan(begun["xla"], threads, parts, "as the run began", block, cudnn_rnn)
    if uses_block(job, kind):
        return plan(False, cpus, "train.block_lstm = true", block=True)
    setting = f"train.xla = {job.train.xla}"
    if job.train.xla != "auto":
        return plan(job.train.xla == "on", cpus, setting)
    xla = uses_xla(job, kind)
    return plan(xla, cpus, f"{setting}, by rule: {'compiled' if xla else 'not compiled'}")
