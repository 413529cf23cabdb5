"""Chooses how a job's steps are computed, and estimates the memory that a run needs on its node.

The plan is the fastest way to compute the steps with reproducible results. The plan depends on the
device, and on the kind and size of the network, but not on measured times, so that two runs of the
same job get the same plan. A resumed run keeps the plan of its first start.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from harness.architectures import ModelConfig, over_time
from harness.data.dataset import LARGEST_PADDED
from harness.errors import InputError
from harness.job.job_file import put_value
from harness.job.keys import Job
from harness.job.search import SearchSpec
from harness.slurm.environment import visible_gpus

# Limits measured on two CPU cores (jobs/FINDINGS.md, "where the time of a step goes").
LARGEST_PART = 2048  # largest size of a part of a batch: reviews * units of all recurrent layers
# The largest `data.maxlen` for which XLA is faster than TensorFlow's loop over the words. This
# limit applies only to networks with a recurrent layer that returns an output for every word.
LONGEST_COMPILED = 200
MAX_PARTS = 4  # the largest number of parts of a batch
BLOCK_PARTS = 2  # replaces MAX_PARTS if BlockLSTM computes the LSTM layers
# With `train.xla = "auto"` and a `data.limit` below this number, XLA does not compile the
# evaluation, because compiling takes longer than evaluating without XLA. A `data.limit` of 0 means
# all reviews, so XLA compiles the evaluation.
FEWEST_COMPILED = 5000

# The estimate of memory is above the measured peaks of seven runs on a CPU, which range from 0.99
# GB for the LSTM in `jobs/` to 4.2 GB for a bidirectional LSTM of 128 units over 1,000 words. For a
# run on a GPU the estimate is too high, because the activations are in the GPU's memory.
BASE_GB = 1.15  # memory of TensorFlow, this package, the words of IMDB, and XLA while it compiles
GPU_BASE_GB = 2.0  # replaces BASE_GB for a run on a GPU (TensorFlow issue 36459)
# Number of copies of all weights in memory. Two models, the optimizer, the moving average, the
# weights of the best epoch and a checkpoint's arrays contain the copies.
COPIES = 11
# Number of values that each word of a batch needs in memory: PER_UNIT for each recurrent unit, and
# PER_CHANNEL for each dimension of the embedding.
PER_UNIT, PER_CHANNEL = 11, 2
MAX_REVIEWS, WORDS_PER_REVIEW = 50_000, 235  # IMDB's number of reviews and mean length
RATIO_COPIES = 3  # copies of the n-grams' log-count ratios: two NumPy arrays and a tensor
FLOAT = 4  # size of a float32 in bytes
CUSTOM_NETWORK_GB = 0.5  # added to the estimate for a custom network

# keras: Keras's layers are not changed; xla: XLA compiles the forward and backward pass; block: a
# single operation computes an LSTM layer (`block_lstm`); cudnn: cuDNN computes recurrent layers.
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
    compiles_evaluation: bool = False  # whether XLA compiles validation and test


def choose(job: Job, kind: str, cpus: int, *, begun: Mapping[str, Any] = {}) -> ExecutionPlan:
    """Choose the plan of a run.

    Args:
        job: the job; its `train.xla` can force or forbid XLA.
        kind: the kind of device, cpu or gpu.
        cpus: the number of threads of a new run.
        begun: the plan in the record of a resumed run; empty for a new run. A resumed run keeps
            this plan and ignores `cpus`, because the last bits of a sum depend on the number of
            threads.

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

    On a GPU, cuDNN computes the recurrent layers. cuDNN does not support the built-in GRU without
    `reset_after`, so XLA compiles this GRU. On a CPU, TensorFlow's loop over the words spends more
    time on starting small operations than on computing them. If the precision is float32, a single
    operation, TensorFlow's BlockLSTM, replaces the loop of an LSTM layer. For a recurrent layer
    that BlockLSTM does not compute, XLA is faster than TensorFlow's loop, except in 3 cases:

    - XLA does not help if the operations are large.
    - XLA is slower if the reviews are long and a layer returns an output for every word, because
      XLA copies all outputs at every word.
    - If `data.bucket` is set, the batches have several lengths, and XLA would have to compile the
      step again for each length.
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
    """Whether XLA compiles the evaluation, so that each evaluation after the first is faster."""
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
    """Return the batch size times the number of units of all recurrent layers.

    The size is 0 for a custom network and for a network without recurrent layers.
    """
    if not job.model.recurrent or job.model.is_own:
        return 0
    return job.train.batch_size * _recurrent_units(job.model)


def _recurrent_units(model: ModelConfig) -> int:
    """Count the units of all recurrent layers."""
    if model.architecture == "stacked_lstm":
        return model.units + (model.second_units or model.units)
    return model.units * (2 if model.architecture == "bilstm" else 1)


def reckoned_gb(job: Job, kind: str | None = None) -> float:
    """Estimate the memory of a run on its node, in GB.

    Args:
        kind: the kind of device, gpu or cpu; by default gpu if this process sees a GPU.
    """
    on_gpu = kind == "gpu" or (kind is None and visible_gpus() > 0)
    model, data = job.model, job.data
    width = _recurrent_units(model)
    weights = data.vocab_size * model.embedding_dim + 4 * width * (width + model.embedding_dim)
    words = data.maxlen * job.train.batch_size
    values = COPIES * weights + words * (PER_UNIT * width + PER_CHANNEL * model.embedding_dim)
    custom_gb = CUSTOM_NETWORK_GB if model.is_own else 0.0
    reviews = 2 * data.limit or MAX_REVIEWS
    if not data.source:
        reviews = min(reviews, MAX_REVIEWS)
    # The user's texts are not read yet, so assume that they are as long as IMDB's reviews and,
    # without `data.limit`, as many.
    values += RATIO_COPIES * reviews * WORDS_PER_REVIEW * model.ngram_ratios
    padded = min(FLOAT * reviews * data.maxlen, LARGEST_PADDED)
    if data.source and not data.limit:
        padded = LARGEST_PADDED
    base_gb = GPU_BASE_GB if on_gpu else BASE_GB
    return base_gb + custom_gb + (padded + FLOAT * values) / 1e9


def largest_gb(search: SearchSpec, kind: str | None = None) -> float:
    """Estimate the memory of a search's largest trial, in GB.

    The largest trial is assumed to have the largest value of each numeric key in the search space,
    and the architecture that needs the most memory.

    Args:
        kind: the kind of device, gpu or cpu; by default gpu if this process sees a GPU.
    """
    content = search.job.model_dump()
    architectures: Sequence[Any] = [search.job.model.architecture]
    for parameter in search.space:
        values = parameter.examples()
        if parameter.key == "model.architecture":
            architectures = values
        elif sizes := [each for each in values if type(each) in (int, float)]:
            put_value(content, parameter.key, max(sizes))
    model = content["model"]
    # A `model.second_units` of 0 stands for `model.units`.
    if any(each.key == "model.second_units" and 0 in each.examples() for each in search.space):
        model["second_units"] = max(model["second_units"], model["units"])
    jobs = []
    for name in architectures:
        put_value(content, "model.architecture", name)
        jobs.append(Job.model_validate(content))
    return max(reckoned_gb(job, kind) for job in jobs)
