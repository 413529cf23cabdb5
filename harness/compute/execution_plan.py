"""How a job's steps and evaluations are computed: the fastest way that repeats to the byte.

Which way is fastest depends on the device, the kind of network and its sizes; one rule decides
from these. No run measures by itself: two runs of one job could then differ because two ways are
almost equally fast. A resumed run keeps the plan that it began with.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from harness.architectures import ModelConfig, over_time
from harness.errors import InputError
from harness.job.keys import Job

# By what was faster on two CPU cores (jobs/FINDINGS.md, "where the time of a step goes").
LARGEST_PART = 2048  # of a batch: its reviews times the units in all recurrent layers
LONGEST_COMPILED = 200  # words of each review, where the outputs at all words are used
MAX_PARTS = 4  # that a batch is split into
MAX_THREADS = 1024  # in a record, which another user may have written
BLOCK_PARTS = 2  # where LSTM layers are one operation; more were slower on two CPU cores
# Of each split; fewer reviews are evaluated sooner than XLA has compiled the network.
FEWEST_COMPILED = 5000

# keras: Keras's own layers; xla: forward and backward pass compiled by XLA; block: LSTM layers as
# one operation, see `use_block_kernel`; cudnn: on a GPU plain RNNs too, see `use_cudnn_rnn`.
Way = Literal["keras", "xla", "block", "cudnn"]


@dataclass(frozen=True)
class ExecutionPlan:
    """How steps and evaluations are computed."""

    way: Way
    threads: int  # in each operation, and operations at a time
    parts: int = 1  # of a global batch, computed side by side
    compiles_evaluation: bool = False  # by XLA
    why: str = ""


def choose(job: Job, kind: str, cpus: int, *, begun: Mapping[str, Any] = {}) -> ExecutionPlan:
    """The plan of a run.

    Args:
        job: its `train.xla` may be on or off.
        kind: of the device, cpu or gpu.
        cpus: the most threads that a new run's plan may use.
        begun: the plan in the record of a resumed run, else nothing. Sums over threads differ in
            their last bits, so it keeps its threads too: more than there are CPUs are slow.

    Raises:
        InputError: if the record holds no plan.
    """
    if begun:
        with contextlib.suppress(TypeError):
            plan = replace(ExecutionPlan(**begun), why="as the run began")
            known = plan.way in get_args(Way)
            if known and 1 <= plan.threads <= MAX_THREADS and 1 <= plan.parts <= MAX_PARTS:
                return plan
        raise InputError("the run's record holds no plan; start a new run")
    setting = job.train.xla
    way = _way(job, kind)
    why = f"train.xla = {setting}" + (", by rule" if setting == "auto" else "")
    return ExecutionPlan(way, cpus, _num_parts(job, kind, way), _compiles(job, kind), why)


def _way(job: Job, kind: str) -> Way:
    """How steps are computed.

    On a GPU XLA compiles what cuDNN can't compute. On a CPU TensorFlow's loop over words spends
    more time starting small operations than computing them. An LSTM layer has an operation for all
    words. For the others XLA is faster, but not for large operations, and not for long reviews if
    the outputs at all words are used, because it copies them at every word. For batches by length
    it would also compile a step for each length.
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
    # In two parts XLA is faster on one thread too.
    is_large = _size(job) > 2 * LARGEST_PART
    return "keras" if job.data.bucket or is_long or is_large else "xla"


def _compiles(job: Job, kind: str) -> bool:
    """Whether XLA compiles validation and test: it takes half the time for layers of any size."""
    if kind == "gpu" or job.train.xla == "off":
        return False
    if job.train.xla == "on":
        return True
    if job.model.is_own or not job.model.recurrent or job.data.bucket:
        return False
    return not 0 < job.data.limit < FEWEST_COMPILED


def _num_parts(job: Job, kind: str, way: Way) -> int:
    """How many parts a step splits its batch into. It depends on the job alone.

    The parts are computed side by side, or one after another on a single thread, to the same bytes.
    """
    if kind == "gpu" or way == "keras":
        return 1
    at_most = min(BLOCK_PARTS if way == "block" else MAX_PARTS, job.train.batch_size)
    return max(1, min(at_most, -(-_size(job) // LARGEST_PART)))


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


def without_cudnn(job: Job) -> bool:
    """Whether cuDNN can't compute the job's layers, as far as the job shows it."""
    return job.model.architecture == "gru" and not job.model.reset_after
