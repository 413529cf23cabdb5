"""Chooses how steps and evaluations are computed: the fastest way with reproducible results.

The choice depends on the device, the kind of network and its sizes. The plan does not depend on
measured times, so that two runs of the same job get the same plan. A resumed run keeps the plan of
its first start.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from harness.architectures import ModelConfig, over_time
from harness.errors import InputError
from harness.job.keys import Job

# Limits measured on two CPU cores (jobs/FINDINGS.md, "where the time of a step goes").
LARGEST_PART = 2048  # largest size of a part of a batch: reviews * units of all recurrent layers
# For networks with a recurrent layer that returns an output for every word, not only for the last
# word: the largest `data.maxlen` for which XLA is faster than TensorFlow's loop over the words.
LONGEST_COMPILED = 200
MAX_PARTS = 4  # the largest number of parts of a batch
BLOCK_PARTS = 2  # replaces MAX_PARTS if BlockLSTM computes the LSTM layers
# With `train.xla = "auto"` and a `data.limit` below this number, XLA does not compile the
# evaluation, because compiling takes longer than evaluating without XLA. A `data.limit` of 0 means
# all reviews, so XLA compiles the evaluation.
FEWEST_COMPILED = 5000

# keras: Keras's layers are not changed; xla: XLA compiles the forward and backward pass; block: one
# operation computes an LSTM layer, see `block_lstm`; cudnn: cuDNN computes recurrent layers.
Way = Literal["keras", "xla", "block", "cudnn"]


@dataclass(frozen=True)
class ExecutionPlan:
    """How steps and evaluations are computed."""

    way: Way
    # The number of threads of an operation; also the number of operations that run in parallel.
    # `threads` and `parts` have upper bounds, because another user may have written the record from
    # which a resumed run reads its plan.
    threads: Annotated[int, Field(ge=1, le=1024)]
    # A global batch is split into this number of parts, which are computed in parallel.
    parts: Annotated[int, Field(ge=1, le=MAX_PARTS)] = 1
    compiles_evaluation: bool = False  # with XLA


def choose(job: Job, kind: str, cpus: int, *, begun: Mapping[str, Any] = {}) -> ExecutionPlan:
    """Choose the plan of a run.

    Args:
        job: the job; its `train.xla` can force or forbid XLA.
        kind: the kind of device, cpu or gpu.
        cpus: the number of threads of a new run.
        begun: the plan in the record of a resumed run; empty for a new run. `choose` returns a
            recorded plan unchanged, even its number of threads, because the last bits of a sum
            depend on the number of threads.

    Raises:
        InputError: if the record contains no valid plan.
    """
    if begun:
        try:
            return ExecutionPlan(**begun)
        except (TypeError, ValidationError):
            raise InputError("the run's record has no valid plan; start a new run") from None
    way = _way(job, kind)
    return ExecutionPlan(way, cpus, _num_parts(job, kind, way), _compiles(job, kind))


def _way(job: Job, kind: str) -> Way:
    """Choose how training steps are computed.

    On a GPU, XLA compiles the built-in GRU without `reset_after`, which cuDNN does not support. On
    a CPU, TensorFlow's loop over the words spends more time on starting small operations than on
    computing them. For LSTM layers, a single operation, TensorFlow's BlockLSTM, processes all
    words. For other layers XLA is faster than the loop, except in 3 cases:

    - XLA does not help if the operations are large.
    - XLA is slower if the reviews are long and a layer returns an output for every word, because
      XLA copies all outputs at every word.
    - XLA would compile a step for each length of the batches if `data.bucket` is set.
    """
    setting = job.train.xla
    if setting == "on":
        return "xla"
    if kind == "gpu":
        lacks_cudnn = job.model.architecture == "gru" and not job.model.reset_after
        return "xla" if setting == "auto" and lacks_cudnn else "cudnn"
    if setting == "off" or job.model.is_own or not job.model.recurrent:
        return "keras"
    if "lstm" in job.model.architecture and job.train.precision == "float32":
        return "block"
    keeps_outputs = over_time(job.network()) or job.model.architecture == "stacked_lstm"
    is_long = keeps_outputs and job.data.maxlen > LONGEST_COMPILED
    # If the batch has at most two parts, XLA is faster than TensorFlow's loop, even on one thread.
    is_large = _size(job) > 2 * LARGEST_PART
    return "keras" if job.data.bucket or is_long or is_large else "xla"


def _compiles(job: Job, kind: str) -> bool:
    """Whether XLA compiles validation and test, which then take half the time."""
    if kind == "gpu" or job.train.xla == "off":
        return False
    if job.train.xla == "on":
        return True
    if job.model.is_own or not job.model.recurrent or job.data.bucket:
        return False
    return not 0 < job.data.limit < FEWEST_COMPILED


def _num_parts(job: Job, kind: str, way: Way) -> int:
    """Choose the number of parts into which a step's batch is split.

    The results are bitwise equal whether several threads compute the parts in parallel or one
    thread computes them in sequence.
    """
    if kind == "gpu" or way == "keras":
        return 1
    at_most = min(BLOCK_PARTS if way == "block" else MAX_PARTS, job.train.batch_size)
    return max(1, min(at_most, -(-_size(job) // LARGEST_PART)))


def _size(job: Job) -> int:
    """Return the batch size times the units of all recurrent layers; 0 for a custom network."""
    if not job.model.recurrent or job.model.is_own:
        return 0
    return job.train.batch_size * recurrent_units(job.model)


def recurrent_units(model: ModelConfig) -> int:
    """Count the units of all recurrent layers."""
    if model.architecture == "stacked_lstm":
        return model.units + (model.second_units or model.units)
    return model.units * (2 if model.architecture == "bilstm" else 1)
