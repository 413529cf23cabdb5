"""How much memory a training process needs: of its node, and of a GPU.

A node's is reckoned from the sizes of the job. It is held to the peaks of seven runs on a CPU, from
0.92 GB for the steady LSTM to 3.9 GB for a bidirectional one of 128 units over 1,000 words, and
above each. On a GPU the activations are in its own memory, so that it is more than enough there.

A GPU's is measured by a run and kept for those that will share one. TensorFlow takes memory as it
needs it and gives none back, so what a process holds after an epoch is the most that it has needed.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from harness.compute.execution_plan import recurrent_units, shape
from harness.errors import RunError
from harness.files.atomic_file import atomic_write
from harness.files.lenient_json import read_json, table
from harness.files.paths import cache_folder
from harness.files.scratch import turn_at
from harness.job import Job
from harness.search_space import SearchSpec
from harness.slurm.environment import visible_gpus
from harness.system import nvml
from harness.system.host import gpu_name, installed_version, processor

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
SIZES = (
    *("model.units", "model.second_units", "model.embedding_dim", "model.ngram_ratios"),
    *("data.vocab_size", "data.maxlen", "train.batch_size", "train.average_epochs"),
)


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
        if (values := [v for v in parameter.examples() if isinstance(v, int | float)])
    }
    content = search.job.model_dump()
    for key in SIZES:
        table, _, name = key.partition(".")
        if key in largest:
            content[table][name] = int(largest[key])
    if largest.get("train.ema_momentum"):  # an average is one more copy of the weights
        content["train"]["ema_momentum"] = largest["train.ema_momentum"]
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
    if (held := nvml.own_gb()) is not None:
        return held
    read = tf.config.experimental.get_memory_info
    return CONTEXT_GB + max(float(read(f"GPU:{i}")["peak"]) for i in range(len(gpus))) / 1e9


def keep_gpu_gb(what: Job | SearchSpec, gb: float) -> None:
    """Keep what a process took of a GPU: by a run of a job, or by a worker in a search.

    It counts for jobs of the same sizes and searches of the same space, on such a GPU with this
    TensorFlow. Of a search the most counts that any worker has taken, since its trials differ in
    size.
    """
    key, path = _key(what), record_path()
    with contextlib.suppress(RunError, OSError):  # no run fails because its cache is full
        if isinstance(what, SearchSpec) and gb <= (_read(key) or 0):
            return
        with turn_at(path):  # several runs may end in the same moment
            record = read_json(path)
            record[_device()] = {**_kept(record), key: round(gb, 3)}
            atomic_write(path, json.dumps(record, indent=1))


def kept_gpu_gb(what: Job | SearchSpec) -> float | None:
    """What a process took of a GPU like the first one here; None if none was measured.

    Of a search also what runs of the sizes of its largest trials took.
    """
    jobs = largest_jobs(what) if isinstance(what, SearchSpec) else []
    known = [gb for gb in map(_read, map(_key, [what, *jobs])) if gb is not None]
    return max(known, default=None)


def record_path() -> Path:
    """The file of what processes took of GPUs."""
    return cache_folder() / "gpu_memory.json"


def _read(key: str) -> float | None:
    gb = _kept(read_json(record_path())).get(key)
    return float(gb) if isinstance(gb, int | float) and gb > 0 else None


def _kept(record: dict[str, Any]) -> dict[str, Any]:
    return table(record, _device())


def _device() -> str:
    return f"{gpu_name() or processor()}, TensorFlow {installed_version('tensorflow')}"


def _key(what: Job | SearchSpec) -> str:
    if isinstance(what, SearchSpec):
        space = " ".join(f"{each.key}={list(each.examples())}" for each in what.space)
        return f"{_key(what.job)} search {space}"
    average = " ema" if what.train.ema_momentum else ""  # one more copy of the weights
    return f"{shape(what)} xla={what.train.xla}{average}"
