"""Measures on made-up runs how the costs of commands grow with the number of finished runs.

The last column compares with the cost for 10 runs: 0.10 means ten times this cost. Times are CPU
times, which other work on the machine changes little.
"""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from shutil import copytree

import numpy as np
import psutil

from harness import PROJECT
from harness.data.dataset import Dataset
from harness.data.sources import open_dataset
from harness.errors import RunError
from harness.job.job_file import load_job
from harness.report.html import REPORT
from tests import child
from tests.bench.measured import Measured
from tests.bench.processes import Arg, Bench
from tests.child import Ended
from tests.made_up_runs import write_run, write_scored_run

SIZES = (10, 100, 1_000, 10_000)
# Larger folders have no predictions or logs, and only `status` and `prune` read these folders.
MOST_SCORED = 1_000
NUM_SEEDS = 5
JOB = PROJECT / "jobs" / "lstm.toml"
POLL_S, LONGEST_S = 0.3, 1_800.0


def scale(bench: Bench) -> Iterator[Measured]:
    """Measure the costs of each command for each number of finished runs."""
    _, trained = bench.train(JOB)
    log, dataset = trained.path("tensorboard"), open_dataset(bench.settings.data)
    folders = {num: make_runs(bench.folder / f"of{num}", num, dataset, log) for num in SIZES}
    commands: dict[str, Callable[[Path], dict[str, float]]] = {
        "status": lambda runs: _cpu_s(bench.harness("status", "--runs", runs)),
        "status --all": lambda runs: _cpu_s(bench.harness("status", "--all", "--runs", runs)),
        "status of one": lambda runs: _cpu_s(bench.harness("status", "run00007", "--runs", runs)),
        "prune": lambda runs: _cpu_s(bench.harness("prune", "--runs", runs)),
        "compare": lambda runs: _cpu_s(_compare(bench, runs)),
        "compare --out": lambda runs: _report(bench, runs),
        "tensorboard": lambda runs: _show(bench, runs),
    }
    for name, command in commands.items():
        most = SIZES[-1] if name.startswith(("status", "prune")) else MOST_SCORED
        ways = {f"{n:,} runs": partial(command, runs) for n, runs in folders.items() if n <= most}
        for unit, values in bench.in_turn(name, ways).items():
            yield Measured(name, unit, False, values, f"{SIZES[0]:,} runs")


def make_runs(runs: Path, num: int, dataset: Dataset, log: Path) -> Path:
    """Write finished runs, five seeds of each job, and return their folder.

    A job with more units predicts more reviews correctly; its seeds differ at random.

    Args:
        runs: the new folder.
        num: the number of runs. If it is at most `MOST_SCORED`, every run has predictions and a
            TensorBoard log; otherwise no run has them.
        dataset: the dataset of the predictions.
        log: the TensorBoard log that is copied into each run.
    """
    generator, toml = np.random.default_rng(1), load_job(JOB).to_toml()
    for index in range(num):
        units, seed = 1 + index // NUM_SEEDS, 1 + index % NUM_SEEDS
        folder, share = runs / "lstm" / f"run{index:05}", 0.82 + 0.1 * index / num
        job = toml.replace("\nunits = 32", f"\nunits = {units}")
        job = job.replace("\nseed = 1", f"\nseed = {seed}")
        if num <= MOST_SCORED:
            right = generator.random(len(dataset.test)) < share
            write_scored_run(folder, dataset, right.tolist(), toml=job, seed=seed, val_accuracy=0.8)
            copytree(log, folder / "tensorboard")
        else:
            write_run(folder, job, seed=seed)
        state = {"phase": "finished", "epoch": 7, "num_epochs": 7, "time_s": time.time()}
        state |= {"job": "lstm", "architecture": "lstm", "seed": seed, "test_accuracy": share}
        (folder / "state.json").write_text(json.dumps(state))
    return runs


def _cpu_s(ended: Ended) -> dict[str, float]:
    return {"CPU s": ended.cpu_s}


def _compare(bench: Bench, runs: Path, *args: Arg) -> Ended:
    data: list[Arg] = ["--data", bench.settings.data] if bench.settings.data else []
    return bench.harness("compare", runs, "--baseline", "none", *data, *args)


def _report(bench: Bench, runs: Path) -> dict[str, float]:
    out = runs.with_name(f"{runs.name}-report")
    ended = _compare(bench, runs, "--out", out)
    size = (out / REPORT).stat().st_size
    return {**_cpu_s(ended), "GB": ended.peak_memory_gb, "KB of HTML": size / 1e3}


def _show(bench: Bench, runs: Path) -> dict[str, float]:
    """Start TensorBoard, and return its costs until it shows the curves of all runs.

    Raises:
        RunError: if TensorBoard ends, or does not show all curves within half an hour.
    """
    cache, num = bench.folder / "cache", len(list(runs.glob("lstm/*")))
    deadline = time.monotonic() + LONGEST_S
    args = [*child.module_args("harness"), "tensorboard", runs, "--runs", runs]
    with child.start(args, {"XDG_CACHE_HOME": str(cache)}) as process:
        try:
            while (shown := _num_shown(cache, process.pid)) < num:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RunError(f"harness tensorboard {runs}: showed only {shown} of {num} runs")
                time.sleep(POLL_S)
            board = psutil.Process(process.pid)
            return {"CPU s": sum(board.cpu_times()[:4]), "GB": board.memory_info().rss / 1e9}
        finally:
            process.terminate()


def _num_shown(cache: Path, process: int) -> int:
    """Return the number of runs whose loss TensorBoard shows; 0 if it doesn't answer."""
    for file in cache.glob(f"harness/tensorboard/*-{process}.txt"):
        host, _, path = file.read_text().split()[-1].removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(host, timeout=LONGEST_S)
        try:
            connection.request("GET", f"/{path}data/plugin/scalars/tags")
            tags = json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException):
            return 0
        finally:
            connection.close()
        return sum("step/loss" in each for each in tags.values())
    return 0
