"""Chooses how steps and evaluations are computed: the fastest way whose bytes can be repeated.

A rule decides by the device, the kind of network and its sizes. A run does not measure, because two
runs of one job could then choose differently between two almost equally fast ways. A resumed run
keeps its first plan.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from harness.architectures import ModelConfig, over_time
from harness.errors import InputError
from harness.job.keys import Job

# The faster choices on two CPU cores (jobs/FINDINGS.md, "where the time of a step goes").
LARGEST_PART = 2048  # reviews of a part times the units of all recurrent layers
LONGEST_COMPILED = 200  # words of a review, if the outputs at all words are used
MAX_PARTS = 4  # of a batch
BLOCK_PARTS = 2  # the same with BlockLSTM
# Reviews of a split. XLA takes longer to compile the network than to evaluate fewer.
FEWEST_COMPILED = 5000

# keras: Keras's layers; xla: XLA compiles the forward and backward pass; block: an LSTM layer is
# one operation, see `use_block_kernel`; cudnn: on a GPU also plain RNNs, see `use_cudnn_rnn`.
Way = Literal["keras", "xla", "block", "cudnn"]


@dataclass(frozen=True)
class ExecutionPlan:
    """How steps and evaluations are computed."""

    way: Way
    # Of an operation, and operations at a time. The limits are for records of other users.
    threads: Annotated[int, Field(ge=1, le=1024)]
    # Of a global batch, computed in parallel.
    parts: Annotated[int, Field(ge=1, le=MAX_PARTS)] = 1
    compiles_evaluation: bool = False  # by XLA


def choose(job: Job, kind: str, cpus: int, *, begun: Mapping[str, Any] = {}) -> ExecutionPlan:
    """The plan of a run.

    Args:
        job: `train.xla` may be on or off.
        kind: of the device, cpu or gpu.
        cpus: the number of threads of a new run.
        begun: the plan in the record of a resumed run. It keeps its number of threads, even above
            the number of CPUs, because sums over threads differ in their last bits.

    Raises:
        InputError: if the record has no valid plan.
    """
    if begun:
        try:
            return ExecutionPlan(**begun)
        except (TypeError, ValidationError):
            raise InputError("the run's record has no valid plan; start a new run") from None
    way = _way(job, kind)
    return ExecutionPlan(way, cpus, _num_parts(job, kind, way), _compiles(job, kind))


def _way(job: Job, kind: str) -> Way:
    """The way of training steps.

    On a GPU XLA compiles the layers that cuDNN can't compute. On a CPU, TensorFlow's loop over the
    words spends more time on starting small operations than on computing them. LSTM layers have one
    operation for all words. For other layers XLA is faster, but not for large operations, nor for
    long reviews if the outputs at all words are used, because it copies them at every word. For
    batches by length it would compile a step for each length.
    """
    setting = job.train.xla
    if setting == "on":
        return "xla"
    if kind == "gpu":
        return "xla" if setting == "auto" and without_cudnn(job) else "cudnn"
    if setting == "off" or job.model.is_own or not job.model.recurrent:
        return "keras"
    if "lstm" in job.model.architecture and job.train.precision == "float32":
        return "block"
    keeps_outputs = over_time(job.network()) or job.model.architecture == "stacked_lstm"
    is_long = keeps_outputs and job.data.maxlen > LONGEST_COMPILED
    # XLA is faster in two parts, also on one thread.
    is_large = _size(job) > 2 * LARGEST_PART
    return "keras" if job.data.bucket or is_long or is_large else "xla"


def _compiles(job: Job, kind: str) -> bool:
    """Whether XLA compiles validation and test, which halves their time for layers of any size."""
    if kind == "gpu" or job.train.xla == "off":
        return False
    if job.train.xla == "on":
        return True
    if job.model.is_own or not job.model.recurrent or job.data.bucket:
        return False
    return not 0 < job.data.limit < FEWEST_COMPILED


def _num_parts(job: Job, kind: str, way: Way) -> int:
    """The number of parts of a step's batch, which depends only on the job.

    Several threads compute the parts in parallel, one thread in sequence, with the same bytes.
    """
    if kind == "gpu" or way == "keras":
        return 1
    at_most = min(BLOCK_PARTS if way == "block" else MAX_PARTS, job.train.batch_size)
    return max(1, min(at_most, -(-_size(job) // LARGEST_PART)))


def _size(job: Job) -> int:
    """Reviews of a batch times units of all recurrent layers; 0 for a custom network."""
    if not job.model.recurrent or job.model.is_own:
        return 0
    return job.train.batch_size * recurrent_units(job.model)


def recurrent_units(model: ModelConfig) -> int:
    """The number of units in all recurrent layers."""
    if model.architecture == "stacked_lstm":
        return model.units + (model.second_units or model.units)
    return model.units * (2 if model.architecture == "bilstm" else 1)


def without_cudnn(job: Job) -> bool:
    """Whether a layer of the job is known to be impossible for cuDNN."""
    return job.model.architecture == "gru" and not job.model.reset_after
