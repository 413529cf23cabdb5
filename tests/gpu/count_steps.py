"""Counts CUDA calls of a step: `python -m tests.gpu.count_steps DEVICES JOB[,SETTING]…`.

The program runs in the rig. For each job it prints a line of JSON: the kernels of the recurrent
layers, and the calls per training step, summed over all GPUs. It does not count the copy of losses
to the CPU's memory, which a run makes once per log interval.
"""

import ctypes
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.compute.execution_plan import choose
from harness.compute.strategy import import_tensorflow, make_strategy, parse_devices
from harness.job.job_file import load_job
from harness.slurm.environment import given_cpus

# Not imported from tests.conftest, which hides the GPUs.
JOBS = Path(__file__).resolve().parents[2] / "jobs"
# For each kind of call, the names of CUDA's functions.
COUNTED = {
    "launches": r"cu(da)?LaunchKernel\w*|cuGraphLaunch|cublas\w*[gG]em\w*|cudnnRNN\w*",
    "of_cudnn": r"cudnnRNN(Forward|Backward)\w*",
    "to_gpus": r"cuMemcpyHtoD\w*",
    "on_gpus": r"cuMemcpy(DtoD|Peer)\w*|cudaMemcpyAsync",
    "to_host": r"cuMemcpyDtoH\w*|cuMemcpyAsync|cudaMemcpyAsyncDtoH",
    "waits": r"cu(Stream|Ctx)Synchronize|cudaStreamSynchronize|cudaDeviceSynchronize",
    "all_reduces": r"ncclAllReduce",
}
WARM_UP_STEPS, NUM_STEPS = 3, 4
NUM_REVIEWS, LENGTH = 1000, 120


def main(devices: str, *jobs: str) -> None:
    """Print the calls per step of each job, all on the same devices."""
    import_tensorflow(None)
    strategy = make_strategy(parse_devices(devices))
    for each in jobs:
        print(json.dumps({"job": each, **count(each, strategy, devices)}))  # noqa: T201


def count(text: str, strategy: Any, devices: str) -> dict[str, Any]:
    """Return the kernels of a job's recurrent layers, and its calls per step by kind."""
    from harness.compute.adversarial import build_step
    from harness.compute.recurrent import kernels_of

    name, *settings = text.split(",")
    job = load_job(JOBS / f"{name}.toml", settings)
    plan = choose(job, parse_devices(devices).kind, given_cpus(None))
    step = build_step(job, strategy, plan)
    opened = open_batches(job, strategy)
    at_once = job.train.steps_per_execution
    graph = step.train_steps.get_concrete_function(opened, at_once).graph
    kernels = kernels_of(step.model, graph, plan.way)
    for _ in range(WARM_UP_STEPS):
        step.train_steps(opened, at_once).numpy()
    before = called()
    for _ in range(NUM_STEPS):
        last = step.train_steps(opened, at_once)
    calls = called() - before
    last.numpy()
    sums = {
        name: sum(num for function, num in calls.items() if re.fullmatch(pattern, function))
        for name, pattern in COUNTED.items()
    }
    num = NUM_STEPS * at_once
    return {"kernels": kernels, **{name: total / num for name, total in sums.items()}}


def open_batches(job: Any, strategy: Any) -> Iterator[Any]:
    """Return an iterator over batches of made-up reviews, built as in a run."""
    from harness.data.input_pipeline import BatchShape, Reviews, batches, permutations_ahead

    offsets = np.arange(NUM_REVIEWS + 1, dtype=np.int64) * LENGTH
    tokens = np.random.default_rng(1).integers(4, 1000, offsets[-1]).astype(np.int32)
    reviews = Reviews(tokens, offsets, (np.arange(NUM_REVIEWS) % 2).astype(np.int32))
    if job.model.ngram_ratios:
        ratios = np.zeros((len(tokens), job.model.ngram_ratios), np.float32)
        reviews = replace(reviews, ratios=ratios)
    shape = BatchShape(job.train.batch_size, job.data.maxlen, job.data.bucket)
    lengths = reviews.lengths(shape.maxlen)
    order = permutations_ahead(1, range(1), lengths, shape=shape)
    return iter(batches(strategy, reviews, order, shape=shape))


def called() -> Counter[str]:
    """Return how often this process has called each function so far."""
    report = ctypes.CDLL("libnull.so").null_report
    report.restype = ctypes.c_char_p
    lines = (line.split() for line in report().decode().splitlines())
    return Counter({function: int(count) for _, function, count in lines})


if __name__ == "__main__":
    main(*sys.argv[1:])
