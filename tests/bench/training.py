"""Measures how the harness, the notebook and PyTorch train each architecture."""

import importlib.util
import json
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from harness import PROJECT
from tests.bench.measured import Measured
from tests.bench.processes import Bench, Way, one_gpu

BY_LENGTH = "harness, by length"


def training(bench: Bench) -> Iterator[Measured]:
    """Measure start, training and evaluation of each architecture by each program."""
    others = ["notebook", *(["torch"] if importlib.util.find_spec("torch") else [])]
    for name in bench.settings.architectures:
        job = PROJECT / "jobs" / "notebook" / f"{name}.toml"
        if name == bench.settings.architectures[0]:
            yield _cold_start(bench, name, job)
        ways: dict[str, Way] = {way: partial(_baseline, bench, way, name) for way in others}
        ways["harness"] = partial(_train, bench, job, *one_gpu())
        ways[BY_LENGTH] = partial(_train, bench, job, *one_gpu(), "--set", "data.bucket=true")
        values = bench.in_turn(name, ways)
        for quantity, unit, more_is_better in (
            ("first step", "s", False),
            ("fit", "s", False),
            ("training", "reviews/s", True),
            ("evaluation", "reviews/s", True),
            ("peak memory", "GB", False),
        ):
            yield Measured(f"{name} {quantity}", unit, more_is_better, values[quantity], "notebook")


def _cold_start(bench: Bench, name: str, job: Path) -> Measured:
    def cold() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=bench.folder) as cache:
            return _train(bench, job, *one_gpu(), XDG_CACHE_HOME=cache)

    notebook = partial(_baseline, bench, "notebook", name)
    ways: dict[str, Way] = {"notebook": notebook, "harness": cold}
    values = bench.in_turn(f"{name} without a cache", ways)["first step"]
    return Measured(f"{name} first step without a cache", "s", False, values, "notebook")


def _baseline(bench: Bench, way: str, architecture: str) -> dict[str, float]:
    ended, answer = bench.baseline(way, architecture)
    return {
        "first step": answer["first_step_s"],
        "fit": answer["fit_s"],
        "training": answer["training_reviews_per_s"],
        "evaluation": answer["evaluation_reviews_per_s"],
        "peak memory": ended.peak_memory_gb,
    }


def _train(bench: Bench, job: Path, *args: str, **variables: str) -> dict[str, float]:
    ended, run = bench.train(job, *args, **variables)
    result = run.result()
    # The first epoch is left out because it includes compilation.
    epochs = [json.loads(line) for line in run.path("timings.jsonl").read_text().splitlines()[1:]]
    validation_s = statistics.median(each["validation_s"] for each in epochs)
    return {
        "first step": result["first_step_s"],
        "fit": result["fit_s"],
        "training": statistics.median(each["reviews_per_s"] for each in epochs),
        "evaluation": result["num_validation"] / max(validation_s, 1e-3),
        "peak memory": ended.peak_memory_gb,
    }
