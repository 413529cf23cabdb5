"""How much memory a training process needs: of its node, and of a GPU.

A node's is reckoned from the sizes of the job. It is held to the peaks of seven runs on a CPU, from
0.92 GB for the steady LSTM to 3.9 GB for a bidirectional one of 128 units over 1,000 words, and
above each. On a GPU the activations are in its own memory, so that it is more than enough there.

A GPU's is measured by a run, for its record. TensorFlow takes memory as it needs it and gives none
back, so what a process holds after an epoch is the most that it has needed.
"""

from harness.compute.execution_plan import recurrent_units
from harness.job.job_file import put_value
from harness.job.keys import Job
from harness.job.search import SearchSpec
from harness.slurm.environment import visible_gpus
from harness.system import gpu

BASE_GB = 1.15  # TensorFlow, this package, IMDB in words, and XLA while it compiles
GPU_BASE_GB = 2.0  # the same where a GPU trains (TensorFlow issue 36459)
COPIES = 11  # of the weights: two models, optimizer, average, best epoch, and a checkpoint's arrays
PER_UNIT, PER_CHANNEL = 11, 2  # values of a word: of a recurrent unit, of the embedding
MAX_REVIEWS, WORDS_PER_REVIEW = 50_000, 235  # of IMDB
RATIO_COPIES = 3  # an array, a tensor, and another array while a tensor is made
MAX_PADDED_GB = 1.0  # of reviews that are held padded; more are padded as they come
FLOAT = 4  # bytes
OWN_NETWORK_GB = 0.5  # above what its embedding and units would need: it can hold anything
# For CUDA's context and its libraries, which TensorFlow's own count leaves out: an allowance for
# where the driver does not know the process, on the safe side, not a measurement.
CONTEXT_GB = 1.0


def reckoned_gb(job: Job, kind: str | None = None) -> float:
    """The memory that a run of the job takes of its node, in GB.

    Args:
        kind: of the device that trains, gpu or cpu; by default the one that is here.
    """
    on_gpu = kind == "gpu" or (kind is None and visible_gpus() > 0)
    model, data = job.model, job.data
    width = recurrent_units(model)
    weights = data.vocab_size * model.embedding_dim + 4 * width * (width + model.embedding_dim)
    words = data.maxlen * job.train.batch_size
    values = COPIES * weights + words * (PER_UNIT * width + PER_CHANNEL * model.embedding_dim)
    own_gb = OWN_NETWORK_GB if model.is_own else 0.0
    reviews = 2 * data.limit or MAX_REVIEWS
    if not data.source:
        reviews = min(reviews, MAX_REVIEWS)
    # Of own texts it is known only when they are read how many there are, and of how many classes.
    values += RATIO_COPIES * reviews * WORDS_PER_REVIEW * model.ngram_ratios
    padded_gb = min(FLOAT * reviews * data.maxlen / 1e9, MAX_PADDED_GB)
    if data.source and not data.limit:
        padded_gb = MAX_PADDED_GB
    base_gb = GPU_BASE_GB if on_gpu else BASE_GB
    return base_gb + own_gb + padded_gb + FLOAT * values / 1e9


def largest_gb(search: SearchSpec, kind: str | None = None) -> float:
    """The memory of the largest trial of a search, in GB; `kind` as for `reckoned_gb`."""
    return max(reckoned_gb(job, kind) for job in largest_jobs(search))


def largest_jobs(search: SearchSpec) -> list[Job]:
    """The largest trial of a search for each architecture: each size at its largest."""
    largest = {
        parameter.key: max(values)
        for parameter in search.space
        if (values := [v for v in parameter.examples() if type(v) in (int, float)])
    }
    content = search.job.model_dump()
    for key, value in largest.items():
        put_value(content, key, value)
    architectures = [p.examples() for p in search.space if p.key == "model.architecture"]
    return [
        Job.model_validate({**content, "model": {**content["model"], "architecture": name}})
        for name in (architectures[0] if architectures else [search.job.model.architecture])
    ]


# GPUs


def measure_gpu_gb() -> float | None:
    """The memory that this process holds of its fullest GPU, in GB; None where the CPU trains."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return None
    if (held := gpu.own_gb()) is not None:
        return held
    read = tf.config.experimental.get_memory_info
    return CONTEXT_GB + max(float(read(f"GPU:{i}")["peak"]) for i in range(len(gpus))) / 1e9


# Graphs


def forget_gradients() -> None:
    """Free the graphs of networks that no one uses any more.

    TensorFlow keeps the gradient function of each `tf.custom_gradient` of a graph in a table of
    the process, and with it the graph. Keras's optimizer has one, so the graphs of each trial would
    stay.
    Call it only while no network is in training.
    """
    from tensorflow.python.framework import ops

    registered = ops.gradient_registry._registry
    for name in [name for name in registered if name.startswith("CustomGradient-")]:
        del registered[name]
