"""The checks of `harness doctor --accept --full`: several GPUs and nodes, memory, moved models."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness.checks import child
from harness.checks.acceptance_runs import POLL_S, RUN_S, Runs, SmallRun, judge
from harness.checks.finding import Finding, NotRun
from harness.checks.probe import JOBS
from harness.errors import RunError
from harness.files.lenient_json import read_json
from harness.slurm.environment import SlurmEnvironment, variables_of_a_check
from harness.slurm.trusted_network import TRUSTED_NETWORK, is_trusted_network

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
LOST_S = 60.0  # within which the others end when a worker dies
# Activations of some 65 GB a tensor, more than any GPU has.
TOO_LARGE = ("model.units=4096", "train.batch_size=4000", "data.maxlen=1000", "data.limit=5000")


def checks(
    runs: Runs, allocation: SlurmEnvironment | None
) -> dict[str, Callable[[], Iterator[Finding]]]:
    """The checks by name, in order."""
    return {
        "four devices": partial(check_four, runs),
        "two nodes": partial(check_two_nodes, runs, allocation),
        "killed worker": partial(check_killed_worker, runs, allocation),
        "runs a device": partial(check_sharing, runs),
        "out of memory": partial(check_memory, runs),
        "moved model": partial(check_moved_model, runs),
    }


def check_four(runs: Runs) -> Iterator[Finding]:
    """One device against four."""
    run = runs.train("lstm", "4-devices", runs.devices(4))
    yield judge(runs, "four devices", runs.train("lstm", "calm", runs.one).difference(run))


def check_two_nodes(runs: Runs, allocation: SlurmEnvironment | None) -> Iterator[Finding]:
    """One device against one on each of two nodes, over TensorFlow's collectives."""
    run = SmallRun(runs.folder / "lstm" / "two-nodes")
    process = _start_on_two_nodes(runs, allocation, "two-nodes")
    if process.wait(RUN_S) != 0 or not run.result:
        yield Finding("red", "two nodes", f"ended with code {process.returncode}", "see the lines")
        return
    yield judge(runs, "two nodes", runs.train("lstm", "calm", runs.one).difference(run))


def check_killed_worker(runs: Runs, allocation: SlurmEnvironment | None) -> Iterator[Finding]:
    """A worker that dies ends the others within a minute."""
    run = SmallRun(runs.folder / "lstm" / "killed-worker")
    process = _start_on_two_nodes(runs, allocation, "killed-worker", "train.epochs=1000")
    try:
        deadline = time.monotonic() + RUN_S
        while run.saved_step < 1 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        pid = read_json(run.folder / "state.json").get("process")
        if process.poll() is not None or not isinstance(pid, int):
            raise RunError("the run on two nodes ended before its worker was killed")
        os.kill(pid, signal.SIGKILL)  # the chief is on this node, the job's first
        began = time.monotonic()
        try:
            process.wait(2 * LOST_S)
        except subprocess.TimeoutExpired:
            found = f"the other worker still hangs after {2 * LOST_S:.0f} s"
            yield Finding("red", "killed worker", found, "cancel such a job by hand")
            return
        took_s = time.monotonic() - began
        runs.values["killed worker"] = took_s
        level = "green" if took_s <= LOST_S else "red"
        remedy = "" if level == "green" else f"should be below {LOST_S:.0f} s"
        found = f"the other worker ended after {took_s:.0f} s"
        yield Finding(level, "killed worker", found, remedy)  # type: ignore[arg-type]
    finally:
        process.kill()
        process.wait()


def _start_on_two_nodes(
    runs: Runs, allocation: SlurmEnvironment | None, run_id: str, *overrides: str
) -> "subprocess.Popen[bytes]":
    if allocation is None or allocation.num_nodes < 2:
        raise NotRun("a Slurm job on two nodes: sbatch --nodes=2 slurm/doctor.sh --full")
    if not is_trusted_network():
        raise NotRun(f"{TRUSTED_NETWORK}=1 in slurm/site.sh")
    args = ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--export=ALL"]
    args += ["--overlap", "--kill-on-bad-exit=0"]
    if allocation.cpus_per_task:
        args += [f"--cpus-per-task={allocation.cpus_per_task}"]
    args += map(str, runs.args("lstm", run_id, runs.one, overrides=overrides))
    environment = child.environment(HARNESS_NODE_FAULTS="")
    return subprocess.Popen(args, env=environment, stdin=subprocess.DEVNULL)  # noqa: S603 - a list


def check_sharing(runs: Runs) -> Iterator[Finding]:
    """How many reviews a second one device trains when several runs share it."""
    rates: dict[int, float] = {}
    counts = (1, 2, 4, 8) if runs.kind == "gpu" else (1, 2)
    for count in counts:
        began = time.perf_counter()
        args: list[str | Path] = ["train", JOBS / "lstm.toml", "--devices", runs.kind]
        args += ["--runs", runs.folder / f"shared-{count}", "--seeds", f"1-{count}"]
        args += ["--set", "data.limit=2000", "--set", "train.epochs=2"]
        args += ["--workers", str(count)]
        args += ["--runs-per-gpu", str(count)] if runs.kind == "gpu" else []
        args += ["--data", runs.data] if runs.data else []
        ended = child.run_module("harness", *args, timeout_s=RUN_S, **variables_of_a_check())
        if ended.code != 0:
            found = f"{count} runs at a time: it {ended}"
            yield Finding("red", "runs a device", found, "leave --runs-per-gpu lower")
            return
        results = [
            read_json(path) for path in (runs.folder / f"shared-{count}").rglob("result.json")
        ]
        trained = sum(each["num_training"] * each["num_epochs"] for each in results)
        rates[count] = trained / (time.perf_counter() - began)
    runs.values["runs a device"] = rates
    shown = ", ".join(f"{count}: {rate:,.0f}" for count, rate in rates.items())
    found = f"reviews/s of lstm with its start, by runs at a time: {shown}"
    yield Finding("green", "runs a device", found)


def check_memory(runs: Runs) -> Iterator[Finding]:
    """A run that is too large for the GPU ends in one line that says so."""
    runs.need_gpu()
    args = runs.args("lstm", "too-large", runs.one, overrides=TOO_LARGE)
    ended = child.run_process(args, timeout_s=RUN_S, **variables_of_a_check())
    if ended.code == 1 and "out of memory" in ended.last_line:
        yield Finding("green", "out of memory", ended.last_line)
    else:
        yield Finding("red", "out of memory", f"no such message: it {ended}", "see the lines")


def check_moved_model(runs: Runs) -> Iterator[Finding]:
    """A model scores the same on the CPU and on the device that trained it."""
    run = runs.train("lstm", "calm", runs.one)
    trained_on_cpu = runs.train("lstm", "on-cpu", "cpu:1") if runs.kind == "gpu" else None
    pairs = [(run, NO_GPU, f"of {runs.one} on the CPU")]
    if trained_on_cpu:
        pairs.append((trained_on_cpu, {}, "of the CPU on the GPU"))
    for each, variables, what in pairs:
        args: list[str | Path] = ["evaluate", each.folder, "--json"]
        args += ["--data", runs.data] if runs.data else []
        ended = child.run_module(
            "harness", *args, timeout_s=RUN_S, **(variables_of_a_check() | variables)
        )
        if ended.code != 0:
            raise RunError(f"harness evaluate {ended}; see its message")
        scores: dict[str, Any] = json.loads(ended.output.splitlines()[-1])
        yield judge(runs, f"model {what}", abs(scores["log_loss"] - each.result["log_loss"]))
    if not trained_on_cpu:
        yield Finding("not run", "model of the CPU on the GPU", "not run: needs a GPU")
