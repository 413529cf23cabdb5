"""How much of a node's memory a training process needs, reckoned from the sizes of its job.

Held to the peaks of seven runs on a CPU, from 0.92 GB for the steady LSTM to 3.9 GB for a
bidirectional one of 128 units over 1,000 words, and above each. On a GPU the activations are in its
own memory, so that it is more than enough there.
"""

import contextlib
import ctypes

from harness.compute.execution_plan import ExecutionPlan, has_large_table, recurrent_units
from harness.job import Job
from harness.search_space import SearchSpec

BASE_GB = 1.15  # TensorFlow, this package, IMDB in words, and XLA while it compiles
COPIES = 11  # of the weights: two models, optimizer, average, best epoch, and a checkpoint's arrays
PER_UNIT, PER_CHANNEL = 11, 2  # values of a word: of a recurrent unit, of the embedding
MAX_REVIEWS, WORDS_PER_REVIEW = 50_000, 235  # of IMDB
RATIO_COPIES = 3  # an array, a tensor, and another array while a tensor is made
MAX_PADDED_GB = 1.0  # of reviews that are held padded; more are padded as they come
FLOAT = 4  # bytes
OWN_NETWORK_GB = 0.5  # above what its embedding and units would need: it can hold anything
# Of glibc's mallopt(3): option and value.
KEEP_FREED = (
    (-8, 1),  # M_ARENA_MAX: other arenas have at most 64 MB, so larger buffers would be mapped
    (-4, 0),  # M_MMAP_MAX
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD
)

SIZES = (
    *("model.units", "model.second_units", "model.embedding_dim", "model.ngram_ratios"),
    *("data.vocab_size", "data.maxlen", "train.batch_size", "train.average_epochs"),
)


def reckoned_gb(job: Job) -> float:
    """The memory of a run of the job, in GB."""
    model, data = job.model, job.data
    width = recurrent_units(model)
    weights = data.vocab_size * model.embedding_dim + 4 * width * (width + model.embedding_dim)
    words = data.maxlen * job.train.batch_size
    averaged = 2 * job.train.average_epochs if job.train.average_epochs > 1 else 0
    values = (COPIES + averaged) * weights + words * (
        PER_UNIT * width + PER_CHANNEL * model.embedding_dim
    )
    own_gb = OWN_NETWORK_GB if model.is_own else 0.0
    reviews = 2 * data.limit or MAX_REVIEWS
    if not data.source:
        reviews = min(reviews, MAX_REVIEWS)
    # Of own texts it is known only when they are read how many there are, and of how many classes.
    values += RATIO_COPIES * reviews * WORDS_PER_REVIEW * model.ngram_ratios
    padded_gb = min(FLOAT * reviews * data.maxlen / 1e9, MAX_PADDED_GB)
    if data.source and not data.limit:
        padded_gb = MAX_PADDED_GB
    return BASE_GB + own_gb + padded_gb + FLOAT * values / 1e9


def largest_gb(search: SearchSpec) -> float:
    """The memory of the largest trial of a search, in GB."""
    return max(map(reckoned_gb, largest_jobs(search)))


def largest_jobs(search: SearchSpec) -> list[Job]:
    """The largest trial of a search for each architecture: each size at its largest."""
    largest = {
        parameter.key: max(values)
        for parameter in search.space
        if (values := [v for v in parameter.examples() if isinstance(v, int | float)])
    }
    content = search.job.model_dump()
    for key in SIZES:
        table, _, name = key.partition(".")
        if key in largest:
            content[table][name] = int(largest[key])
    architectures = [p.examples() for p in search.space if p.key == "model.architecture"]
    return [
        Job.model_validate({**content, "model": {**content["model"], "architecture": name}})
        for name in (architectures[0] if architectures else [search.job.model.architecture])
    ]


def keep_for_large_tables(plan: ExecutionPlan, *jobs: Job) -> None:
    """Keep freed memory if a job's table of words is large; call it before TensorFlow starts."""
    if plan.fused and any(map(has_large_table, jobs)):
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Have malloc keep for the next step what TensorFlow frees.

    Otherwise a buffer above 32 MB, such as the gradient of a large table of words, is given back
    and taken from the kernel in each step, which clears its pages each time. Results do not change.
    Where malloc is not that of glibc, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in KEEP_FREED:
            mallopt(option, value)
