"""Estimates a training process's memory on its node, and measures its memory on a GPU.

The node's memory is estimated from the sizes of the job. The estimate is above the measured peaks
of seven runs on a CPU, which range from 0.99 GB for the LSTM in `jobs/` to 4.2 GB for a
bidirectional LSTM of 128 units over 1,000 words. For a run on a GPU the estimate is too high,
because the activations are in the GPU's memory.

The memory used on a GPU is measured at the end of a run and written to its record. TensorFlow frees
no memory before the process ends, so the measurement is the peak.
"""

from collections.abc import Sequence
from typing import Any

from harness.compute.execution_plan import recurrent_units
from harness.data.epoch_order import LARGEST_PADDED
from harness.job.job_file import put_value
from harness.job.keys import Job
from harness.job.search import SearchSpec
from harness.slurm.environment import visible_gpus
from harness.system import gpu

BASE_GB = 1.15  # memory of TensorFlow, this package, IMDB as words, and XLA while it compiles
GPU_BASE_GB = 2.0  # replaces BASE_GB for a run on a GPU (TensorFlow issue 36459)
# Number of copies of all weights: in two models, the optimizer, the moving average, the best epoch
# and a checkpoint's arrays.
COPIES = 11
# How many values each word of a batch needs in memory: PER_UNIT for each recurrent unit, and
# PER_CHANNEL for each dimension of the embedding.
PER_UNIT, PER_CHANNEL = 11, 2
MAX_REVIEWS, WORDS_PER_REVIEW = 50_000, 235  # IMDB's number of reviews and mean length
RATIO_COPIES = 3  # copies of the n-grams' log-count ratios: two NumPy arrays and a tensor
FLOAT = 4  # size of a float32 in bytes
CUSTOM_NETWORK_GB = 0.5  # added to the estimate for a custom network
# A cautious guess of the memory of CUDA's context and libraries, which TensorFlow does not count.
# The guess is used if the driver does not report the process's memory.
CONTEXT_GB = 1.0


def reckoned_gb(job: Job, kind: str | None = None) -> float:
    """Estimate the memory of a run on its node, in GB.

    Args:
        kind: the kind of device, gpu or cpu; by default gpu if this process sees a GPU.
    """
    on_gpu = kind == "gpu" or (kind is None and visible_gpus() > 0)
    model, data = job.model, job.data
    width = recurrent_units(model)
    weights = data.vocab_size * model.embedding_dim + 4 * width * (width + model.embedding_dim)
    words = data.maxlen * job.train.batch_size
    values = COPIES * weights + words * (PER_UNIT * width + PER_CHANNEL * model.embedding_dim)
    custom_gb = CUSTOM_NETWORK_GB if model.is_own else 0.0
    reviews = 2 * data.limit or MAX_REVIEWS
    if not data.source:
        reviews = min(reviews, MAX_REVIEWS)
    # The user's own texts are not read yet, so their sizes are assumed to be those of IMDB.
    values += RATIO_COPIES * reviews * WORDS_PER_REVIEW * model.ngram_ratios
    padded = min(FLOAT * reviews * data.maxlen, LARGEST_PADDED)
    if data.source and not data.limit:
        padded = LARGEST_PADDED
    base_gb = GPU_BASE_GB if on_gpu else BASE_GB
    return base_gb + custom_gb + (padded + FLOAT * values) / 1e9


def largest_gb(search: SearchSpec, kind: str | None = None) -> float:
    """Estimate the memory of a search's largest trial, in GB.

    The largest trial has the largest value of each numeric key in the search space, and the
    architecture that needs the most memory.

    Args:
        kind: the kind of device, as for `reckoned_gb`.
    """
    content = search.job.model_dump()
    architectures: Sequence[Any] = [search.job.model.architecture]
    for parameter in search.space:
        values = parameter.examples()
        if parameter.key == "model.architecture":
            architectures = values
        elif sizes := [each for each in values if type(each) in (int, float)]:
            put_value(content, parameter.key, max(sizes))
    jobs = []
    for name in architectures:
        put_value(content, "model.architecture", name)
        jobs.append(Job.model_validate(content))
    return max(reckoned_gb(job, kind) for job in jobs)


def measure_gpu_gb() -> float | None:
    """Measure this process's memory on its fullest GPU, in GB; None without a GPU."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return None
    # In a container with its own process ids, NVML does not report this process's memory.
    if held := max((each.own_gb for each in gpu.memory_of_gpus().values()), default=0.0):
        return held
    read = tf.config.experimental.get_memory_info
    return CONTEXT_GB + max(float(read(f"GPU:{i}")["peak"]) for i in range(len(gpus))) / 1e9


def forget_gradients() -> None:
    """Free the graphs of networks that are no longer used.

    TensorFlow stores the gradient function of each `tf.custom_gradient` in a global table, which
    keeps the function's graph in memory. Keras's optimizers call `all_reduce`, which has a custom
    gradient, so the graphs of all trials would stay in memory. Call `forget_gradients` only while
    no network is being trained.
    """
    from tensorflow.python.framework import ops

    registered = ops.gradient_registry._registry
    for name in [name for name in registered if name.startswith("CustomGradient-")]:
        del registered[name]
