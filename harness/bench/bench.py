"""How fast the harness is on this machine, next to what a user would write instead.

This module says what is measured; `harness.bench.processes` runs it.
"""

import importlib.util
import itertools
import json
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import PROJECT
from harness.bench.large_table import large_table
from harness.bench.measured import Measured
from harness.bench.processes import Arg, Bench, Settings, Way, one_gpu
from harness.bench.scale import scale
from harness.checks import child
from harness.checks.child import Ended
from harness.checks.probe import ARCHITECTURES, ask_child
from harness.compute.execution_plan import device_name, plan_name, save_measured_ms, uses_block
from harness.errors import InputError, RunError
from harness.files.scratch import scratch_directory
from harness.job_file import load_job
from harness.slurm.environment import SlurmEnvironment, given_cpus, visible_gpus
from harness.system.console import Console
from harness.system.host import installed_version, processor, total_memory_gb
from harness.tracking.provenance import PACKAGES
from harness.tracking.run_dir import RunDirectory

TIMEOUT_S = 3600.0
PIPELINE_S = 5.0  # that the pipeline alone is measured
STEPS_S = 6.0  # that a plan is measured, evaluation included
NUM_RUNS = 100  # that `status` looks at
NUM_TRIALS = 8
# Keys that make training or evaluation faster, and change the last digits of results.
FASTER = ("train.compile_evaluation=true", "train.block_lstm=true")
MORE_WAYS = {
    "harness, faster": FASTER,
    "harness, by length": (*FASTER, "data.bucket=true"),
}
# The choices of `harness.bench.baselines.by_keras_tuner`.
SEARCH = f"""
[search]
tuner = "random"
trials = {NUM_TRIALS}
[search.space]
model.dropout = {{ min = 0.1, max = 0.6, step = 0.01 }}
train.learning_rate = {{ min = 0.0005, max = 0.005, log = true }}
"""


# What is measured


def training(bench: Bench) -> Iterator[Measured]:
    """Start, training and evaluation of each architecture, next to the notebook and PyTorch."""
    others = ["notebook", *(["torch"] if importlib.util.find_spec("torch") else [])]
    for name in bench.settings.architectures:
        job = PROJECT / "jobs" / "notebook" / f"{name}.toml"
        if name == bench.settings.architectures[0]:
            yield from _cold_start(bench, name, job)
        ways: dict[str, Way] = {way: partial(_baseline, bench, way, name) for way in others}
        ways["harness"] = partial(_train, bench, job, *one_gpu())
        for way, keys in MORE_WAYS.items():
            more = [word for key in keys for word in ("--set", key)]
            ways[way] = partial(_train, bench, job, *one_gpu(), *more)
        values = bench.in_turn(name, ways)
        for quantity, unit, more_is_better in (
            ("first step", "s", False),
            ("training", "reviews/s", True),
            ("evaluation", "reviews/s", True),
            ("peak memory", "GB", False),
        ):
            shown = values[quantity]
            if quantity not in ("training", "evaluation"):  # which the keys are for
                shown = {way: each for way, each in shown.items() if way not in MORE_WAYS}
            yield Measured(f"{name} {quantity}", unit, more_is_better, shown, "notebook")
        share = {"harness": values["checkpoints"]["harness"]}
        yield Measured(f"{name} checkpoints", "% of training", False, share)


def _cold_start(bench: Bench, name: str, job: Path) -> Iterator[Measured]:
    def cold() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=bench.folder) as cache:
            return _train(bench, job, *one_gpu(), XDG_CACHE_HOME=cache)

    notebook = partial(_baseline, bench, "notebook", name)
    ways: dict[str, Way] = {"notebook": notebook, "harness": cold}
    values = bench.in_turn(f"{name} without a cache", ways)["first step"]
    yield Measured(f"{name} first step without a cache", "s", False, values, "notebook")


def _baseline(bench: Bench, way: str, architecture: str) -> dict[str, float]:
    ended, answer = bench.baseline(way, architecture)
    return {
        "first step": answer["first_step_s"],
        "training": answer["training_reviews_per_s"],
        "evaluation": answer["evaluation_reviews_per_s"],
        "peak memory": ended.peak_memory_gb,
        "checkpoints": 0.0,
    }


def _train(bench: Bench, job: Path, *args: str, **variables: str) -> dict[str, float]:
    ended, run = bench.train(job, *args, **variables)
    result = run.result()
    # The first epoch compiles on the way.
    epochs = [json.loads(line) for line in run.path("timings.jsonl").read_text().splitlines()[1:]]
    validation_s = statistics.median(each["validation_s"] for each in epochs)
    return {
        "first step": result["first_step_s"],
        "training": statistics.median(each["reviews_per_s"] for each in epochs),
        "evaluation": result["num_validation"] / max(validation_s, 1e-3),
        "peak memory": ended.peak_memory_gb,
        "checkpoints": 100 * result["checkpoint_s"] / result["training_s"],
    }


def resuming(bench: Bench) -> Iterator[Measured]:
    """From the start of a process to its first step: of a new run, and of one that was killed."""
    name = bench.settings.architectures[0]
    job = PROJECT / "jobs" / "notebook" / f"{name}.toml"
    runs = bench.folder / "runs" / load_job(job).name
    firsts, nexts = [], []
    for turn in range(bench.settings.pairs):
        bench.console.info(f"resume: {turn + 1} of {bench.settings.pairs}")
        run = RunDirectory(runs / f"killed{turn}")
        args = [*child.module_args("harness"), *bench.train_args(job, run.folder.name)]
        with child.start(args) as process:
            while process.poll() is None and not run.read_json("state.json").get("first_step_s"):
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
        if not (first_step_s := run.read_json("state.json").get("first_step_s")):
            command = " ".join(map(str, args[4:]))
            raise RunError(
                f"harness {command} ended with code {process.returncode} before its first step; "
                "start it by hand to see why"
            )
        firsts.append(first_step_s)
        bench.harness(*bench.train_args(job, run.folder.name))
        nexts.append(run.result()["first_step_s"])
    ways = {"new run": tuple(firsts), "resumed run": tuple(nexts)}
    title = "start to first step"
    title = title if name == ARCHITECTURES[0] else f"{name} {title}"
    yield Measured(title, "s", False, ways, "new run")


def pipeline(bench: Bench) -> Iterator[Measured]:
    """The speed of the input pipeline alone, with no training on its batches."""
    name = bench.settings.architectures[0]
    job = PROJECT / "jobs" / "notebook" / f"{name}.toml"

    def alone() -> dict[str, float]:
        request = {"do": "pipeline", "job": job, "data": bench.settings.data, "seconds": PIPELINE_S}
        return {"speed": ask_child(request, TIMEOUT_S)["reviews_per_s"]}

    ways = {f"{name} training": lambda: {"speed": _train(bench, job)["training"]}}
    values = bench.in_turn("pipeline", {**ways, "pipeline alone": alone})["speed"]
    yield Measured("input pipeline", "reviews/s", True, values, f"{name} training")


def plans(bench: Bench) -> Iterator[Measured]:
    """A step of each job by each plan; the times are saved, and later runs use the fastest."""
    kind = "gpu" if visible_gpus() else "cpu"
    device = device_name(kind)
    cpus = given_cpus(SlurmEnvironment.from_environment())
    steady = [PROJECT / "jobs" / f"{name}.toml" for name in bench.settings.architectures]
    jobs = {path: load_job(path) for path in bench.settings.jobs or steady}
    for path, job in jobs.items():
        if uses_block(job, kind):
            raise InputError(
                f"--job {path}: train.block_lstm = true decides how its steps are computed; "
                "remove it to measure the other ways"
            )
    for path, job in jobs.items():
        ways = {
            plan_name(xla, threads): partial(_step, bench, path, kind, xla=xla, threads=threads)
            for xla in (False, True)
            for threads in sorted({1, cpus})
        }
        values = bench.in_turn(f"{job.name} plans", ways)["step"]
        step_ms = {plan: statistics.median(times) for plan, times in values.items()}
        saved = save_measured_ms(device, job, step_ms)
        yield Measured(f"{job.name} step", "ms", False, values, plan_name(False, cpus))
    bench.console.info(
        f"plans on {device}: saved in {saved}; runs of the same sizes use the fastest"
    )


def _step(bench: Bench, job: Path, kind: str, *, xla: bool, threads: int) -> dict[str, float]:
    request = {
        "do": "speed",
        "job": job,
        "data": bench.settings.data,
        "devices": f"{kind}:1",
        "seconds": STEPS_S,
        "overrides": [f"train.xla={'on' if xla else 'off'}"],
        "threads": threads,  # whatever was measured before
    }
    answer = ask_child(request, TIMEOUT_S, HARNESS_CPUS=str(threads))
    return {"step": 1000 * answer["step_s"]}


def replicas(bench: Bench) -> Iterator[Measured]:
    """One GPU against all of them; without several GPUs one CPU device against two virtual ones."""
    gpus = visible_gpus()
    one, many = ("gpu:1", f"gpu:{gpus}") if gpus > 1 else ("cpu:1", "cpu:2")
    name = bench.settings.architectures[-1]
    job = PROJECT / "jobs" / "notebook" / f"{name}.toml"

    ways = {on: partial(_train, bench, job, "--devices", on) for on in (one, many)}
    values = bench.in_turn("replicas", ways)["training"]
    yield Measured(f"{name} on several devices", "reviews/s", True, values, one)


def side_by_side(bench: Bench) -> Iterator[Measured]:
    """Five architectures, and five seeds of one, from the first command to the last result."""
    names = bench.settings.architectures
    one = names[min(1, len(names) - 1)]
    several = f"{len(names)} architectures" if names == ARCHITECTURES else ", ".join(names)
    for title, chosen, num_seeds in (
        (f"{several}, one seed", names, 1),
        (f"{one}, five seeds", (one,), 5),
    ):
        ways = {
            "notebook": partial(_one_by_one, bench, chosen * num_seeds),
            "harness": partial(_at_once, bench, chosen, num_seeds),
        }
        values = bench.in_turn(title, ways)["wall"]
        yield Measured(title, "s", False, values, "notebook")


def _one_by_one(bench: Bench, names: Sequence[str]) -> dict[str, float]:
    return {"wall": sum(bench.baseline("notebook", name)[0].wall_s for name in names)}


def _at_once(bench: Bench, names: Sequence[str], num_seeds: int) -> dict[str, float]:
    bench.num_runs += 1
    first, *more = [PROJECT / "jobs" / "notebook" / f"{name}.toml" for name in names]
    seeds = f"1-{num_seeds}" if num_seeds > 1 else "1"
    args = bench.train_args(first, f"run{bench.num_runs}", *more, "--seeds", seeds)
    return {"wall": bench.harness(*args).wall_s}


def sweep(bench: Bench) -> Iterator[Measured]:
    """Trials an hour of the same search, from the command to its end."""
    name = bench.settings.architectures[min(1, len(bench.settings.architectures) - 1)]
    job = bench.folder / f"tune_{name}.toml"
    job.write_text((PROJECT / "jobs" / "notebook" / f"{name}.toml").read_text() + SEARCH)
    sweeps = itertools.count()

    def alone() -> dict[str, float]:
        folder = str(bench.folder / f"KerasTuner{next(sweeps)}")
        ended, _ = bench.baseline("KerasTuner", name, trials=NUM_TRIALS, folder=folder)
        return {"trials": 3600 * NUM_TRIALS / ended.wall_s}

    def ours() -> dict[str, float]:
        args = ["tune", job, "--sweep-id", f"sweep{next(sweeps)}", *bench.size_args()]
        return {"trials": 3600 * NUM_TRIALS / bench.harness(*args).wall_s}

    values = bench.in_turn(f"{name} sweep", {"KerasTuner": alone, "harness": ours})["trials"]
    yield Measured(f"{name} sweep", "trials/hour", True, values, "KerasTuner")


def commands(bench: Bench) -> Iterator[Measured]:
    """From the command to its answer, for commands that do not import TensorFlow."""
    runs = bench.folder / "many"
    for i in range(NUM_RUNS):
        run = RunDirectory(runs / "lstm" / f"run{i:03}")
        run.folder.mkdir(parents=True)
        run.write("job.toml", load_job(PROJECT / "jobs" / "lstm.toml", (), i).to_toml())
        run.write_json("state.json", {"phase": "training", "epoch": 1, "time_s": time.time()})
    job = PROJECT / "jobs" / "lstm.toml"
    python: list[Arg] = [sys.executable, "-c", "import typer"]
    ways: dict[str, Callable[[], Ended]] = {
        "import typer": lambda: bench.process(python),
        "--help": lambda: bench.harness("--help"),
        f"status of {NUM_RUNS} runs": lambda: bench.harness("status", "--runs", runs),
        "submit --dry-run": lambda: bench.harness("submit", job, "--dry-run", "--runs", runs),
    }
    timed = {name: partial(_milliseconds, way) for name, way in ways.items()}
    values = bench.in_turn("commands", timed)["wall"]
    yield Measured("command to answer", "ms", False, values, "import typer")


def _milliseconds(way: Callable[[], Ended]) -> dict[str, float]:
    return {"wall": 1000 * way().wall_s}


SECTIONS: dict[str, Callable[[Bench], Iterator[Measured]]] = {
    "training": training,
    "resume": resuming,
    "pipeline": pipeline,
    "plans": plans,
    "large-table": large_table,
    "replicas": replicas,
    "side-by-side": side_by_side,
    "sweep": sweep,
    "commands": commands,
    "scale": scale,
}


def measure(settings: Settings, sections: Sequence[str], console: Console) -> Iterator[Measured]:
    """Measure the named sections, in order.

    Raises:
        InputError: if the named data are not there.
        RunError: if a process fails.
    """
    with scratch_directory() as folder:
        bench = Bench(settings, folder, console)
        for section in sections:
            yield from SECTIONS[section](bench)


def machine() -> dict[str, Any]:
    """The machine that is measured: a figure means nothing without it."""
    return {
        "processor": processor(),
        "cpus": given_cpus(SlurmEnvironment.from_environment()),
        "memory_gb": round(total_memory_gb(), 1),
        "gpus": visible_gpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in (*PACKAGES, "torch")},
    }


def check_names(
    option: str, names: Sequence[str], known: Collection[str], *, fault: str
) -> tuple[str, ...]:
    """The names that an option lists, each once; all known ones by default.

    Raises:
        InputError: for an unknown one, whose fault is named.
    """
    for name in names:
        if name not in known:
            raise InputError(f"{option} {name}: {fault}; known: {', '.join(known)}")
    return tuple(dict.fromkeys(names)) or tuple(known)
