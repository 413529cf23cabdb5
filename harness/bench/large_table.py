"""A step with a large table of words: its update in one pass against Keras's own."""

import dataclasses
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from harness import PROJECT
from harness.bench.measured import Measured
from harness.bench.processes import Bench
from harness.checks import child
from harness.job_file import load_job
from harness.slurm.environment import SlurmEnvironment

SIZES = ((8_000, 32), (88_600, 256))  # words and channels: those of the steady jobs, and large ones
NUM_REVIEWS, NUM_STEPS = 640, 10
JOB = PROJECT / "jobs" / "lstm.toml"
TIMEOUT_S = 3600.0


def large_table(bench: Bench) -> Iterator[Measured]:
    """The wall-clock and the CPU time of a step, on made-up reviews and one CPU device."""
    for words, channels in SIZES:
        ways = {
            way: partial(_step_ms, words, channels, fused=way == "one pass")
            for way in ("Keras's update", "one pass")
        }
        name = f"lstm step, {words:,} x {channels}"
        for quantity, values in bench.in_turn(name, ways).items():
            yield Measured(f"{name}: {quantity}", "ms", False, values, "Keras's update")


def _step_ms(words: int, channels: int, *, fused: bool) -> dict[str, float]:
    request = {"do": "steps", "words": words, "channels": channels, "fused": fused}
    answer, _ = child.ask("harness.bench.large_table", request, timeout_s=TIMEOUT_S)
    return {"time": answer["wall_ms"], "CPU time": answer["cpu_ms"]}


# In a process of its own, since it imports TensorFlow


def time_steps(words: int, channels: int, fused: bool) -> dict[str, Any]:
    """The milliseconds of a step after the first."""
    from harness.compute.memory import keep_for_large_tables
    from harness.compute.strategy import import_tensorflow, make_strategy, parse_devices
    from harness.training.launch import plan_of

    job = load_job(JOB, [f"data.vocab_size={words}", f"model.embedding_dim={channels}"])
    plan = dataclasses.replace(plan_of(job, "cpu"), fused=fused)
    keep_for_large_tables(plan, job)  # as a run does
    import_tensorflow(SlurmEnvironment.from_environment())
    strategy = make_strategy(parse_devices("cpu"))

    from harness.compute.train_step import TrainStep
    from harness.inputs.epoch_order import BatchShape
    from harness.inputs.input_pipeline import Reviews, batches

    train_step = TrainStep(job, strategy, plan)
    length = job.data.maxlen
    generator = np.random.default_rng(1)  # few words are frequent, as in any language
    tokens = np.minimum(generator.zipf(1.2, NUM_REVIEWS * length) + 3, words - 1).astype(np.int32)
    offsets = np.arange(0, NUM_REVIEWS * length + 1, length)
    reviews = Reviews(tokens, offsets, (np.arange(NUM_REVIEWS) % 2).astype(np.int32))
    order = np.arange(NUM_REVIEWS, dtype=np.int32)[None]
    shape = BatchShape(job.train.batch_size, length)
    opened = iter(batches(strategy, reviews, order, shape=shape))
    train_step.train_steps(opened, 1).numpy()  # which traces and compiles
    began_s, used_s = time.perf_counter(), time.process_time()
    for _ in range(NUM_STEPS):
        train_step.train_steps(opened, 1).numpy()
    return {
        "wall_ms": 1000 * (time.perf_counter() - began_s) / NUM_STEPS,
        "cpu_ms": 1000 * (time.process_time() - used_s) / NUM_STEPS,
    }


def main() -> None:
    """Answer the request in the first argument."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    child.answer_request({"steps": time_steps})


if __name__ == "__main__":
    main()
