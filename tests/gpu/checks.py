"""The checks of a node and its devices."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from harness.architectures import ARCHITECTURES
from harness.compute.execution_plan import choose
from harness.doctor.doctor import Finding, describe_cards, describe_gpus
from harness.doctor.probe import JOBS, START_S
from harness.errors import RunError
from harness.job.job_file import load_job
from harness.slurm.environment import given_cpus
from harness.system.processes import nvidia_driver
from harness.tracking.run_dir import last_start
from tests import child
from tests.gpu.runs import ALONE, RUN_S, Checks, Runs, SmallRun, judge

AT_ONCE = 4  # runs at a time on a GPU
# One tensor of activations has 65 GB, and a run needs several: more than any GPU has.
TOO_LARGE = ("model.units=4096", "train.batch_size=4000", "data.maxlen=1000", "data.limit=5000")


def check_gpus(seen: dict[str, Any], runs: Runs) -> Iterator[Finding]:
    """Report the GPUs, and for each GPU model whether driver and TensorFlow support it."""
    yield describe_gpus(seen)
    if runs.kind == "gpu":
        yield from describe_cards(seen, nvidia_driver())
    else:
        yield Finding("not run", "card", "not run: needs a GPU")


def check_broken_driver(runs: Runs) -> Iterator[Finding]:
    """A run with --devices gpu and a broken libcuda is refused and trains nothing."""
    broken = runs.folder / "broken"
    broken.mkdir()
    (broken / "libcuda.so.1").write_text("no library")
    path = os.pathsep.join(filter(None, (str(broken), os.environ.get("LD_LIBRARY_PATH"))))
    args = runs.args("lstm", "refused", "gpu:1")
    ended = child.run_process(args, timeout_s=RUN_S, **ALONE, LD_LIBRARY_PATH=path)
    is_refused = ended.code in (1, 2) and "TensorFlow sees no GPU" in ended.last_line
    if is_refused and not runs.run("lstm", "refused").folder.exists():
        yield Finding("green", "broken driver", f"refused: {ended.last_line[:90]}…")
    else:
        yield Finding("red", "broken driver", f"not refused: it {ended}", "it may train on a CPU")


def check_kernels(runs: Runs) -> Iterator[Finding]:
    """The record of each run has the expected kernel for each recurrent layer.

    The record of a run on a GPU also has the versions of the CUDA libraries.
    """
    wrong, shown = [], []
    for job, run in zip(ARCHITECTURES, _all(runs, "calm", runs.one), strict=True):
        kernels, way = run.record["kernels"], run.record["plan"]["way"]
        if runs.kind == "gpu":
            way = choose(load_job(JOBS / f"{job}.toml"), "gpu", 1).way
        expected = "loop" if way == "keras" else way
        shown.append(f"{job} {' '.join(kernels.values())}")
        runs.values.setdefault("kernels", {})[job] = kernels
        if set(kernels.values()) != {expected}:
            wrong.append(f"{job} {' '.join(kernels.values()) or 'none'}, not {expected}")
    if wrong:
        yield Finding("red", "kernels", "; ".join(wrong), "compare the log of a run")
    else:
        yield Finding("green", "kernels", f"as expected and recorded: {', '.join(shown)}")
    if runs.kind == "cpu":
        yield Finding("not run", "libraries", "not run: needs a GPU")
        return
    libraries = runs.values["libraries"] = last_start(runs.calm("lstm").record)["libraries"]
    found = f"cuDNN {libraries['cudnn']}, NCCL {libraries['nccl']}"
    yield Finding("red" if "None" in found else "green", "libraries", found)


def check_bytes(job: str, runs: Runs) -> Iterator[Finding]:
    """A killed and resumed run of fifty steps has the bytes of an undisturbed run.

    On a GPU a second undisturbed run also has these bytes.
    """
    step = runs.kill(job, "killed", runs.one)
    names = ["killed", *(["again"] if runs.kind == "gpu" else [])]
    with ThreadPoolExecutor(2) as pool:
        others = list(pool.map(lambda name: runs.train(job, name, runs.one), names))
    calm = runs.calm(job)
    different = [
        f"{name}: {', '.join(files)}"
        for name, run in zip(names, others, strict=True)
        if (files := calm.different_files(run))
    ]
    num_starts = len(others[0].record["starts"])
    runs.values.setdefault("bytes", {})[job] = {"killed_at_step": step, "different": different}
    if different:
        found = f"not the same bytes: {'; '.join(different)}"
        yield Finding("red", f"bytes {job}", found, "runs of this node can't be repeated exactly")
    elif num_starts != 2:
        yield Finding("red", f"bytes {job}", f"the killed run started {num_starts} times, not 2")
    else:
        again = "repeated, and " if "again" in names else ""
        found = f"the same bytes {again}killed after the checkpoint of step {step} and resumed"
        yield Finding("green", f"bytes {job}", found)


def check_against_cpu(runs: Runs) -> Iterator[Finding]:
    """A run of fifty steps has the same losses on the GPU as on this node's CPU."""
    runs.need_gpu()
    for job, run in zip(ARCHITECTURES, _all(runs, "on-cpu", "cpu:1"), strict=True):
        yield judge(runs, f"gpu against cpu {job}", runs.calm(job).difference(run))


def check_masks(runs: Runs) -> Iterator[Finding]:
    """Two devices draw identical dropout masks."""
    devices = ["cpu:0", "gpu:0" if runs.kind == "gpu" else "cpu:1"]
    ended = child.run_module("tests.gpu.masks", *devices, timeout_s=START_S, **ALONE)
    if ended.code != 0:
        raise RunError(f"drawing masks {ended}; see its message")
    sums = runs.values["masks"] = json.loads(ended.output.splitlines()[-1])
    same = len(set(sums.values())) == 1
    found = f"{' and '.join(devices)} draw {'the same' if same else 'different'} masks"
    remedy = "" if same else "a run that resumes on the other kind of device gets other dropout"
    yield Finding("green" if same else "red", "dropout masks", found, remedy)
    if runs.kind == "cpu":
        yield Finding("not run", "masks of a gpu", "not run: needs a GPU")


def check_devices(count: int, runs: Runs) -> Iterator[Finding]:
    """Several devices have the losses of one device, with 1 and with 10 steps per call.

    The last batch has an odd number of reviews.
    """
    devices = runs.devices(count)
    for steps in (1, 10):
        name = f"{devices}, {steps} step{'s' if steps > 1 else ''} a call"
        setting = f"train.steps_per_execution={steps}"
        run = runs.train("lstm", f"{count}-devices-{steps}", devices, setting)
        if (used := run.result["num_replicas"]) != count:
            yield Finding("red", name, f"{used} replicas trained")
        else:
            yield judge(runs, name, runs.calm("lstm").difference(run))


def check_precision(precision: str, setting: str, runs: Runs) -> Iterator[Finding]:
    """A run in lower precision has losses near those of float32."""
    run = runs.train("lstm", precision, runs.one, setting)
    difference = runs.calm("lstm").difference(run)
    losses = ", ".join(f"{loss:.4f}" for loss in run.losses())
    found = f"losses {losses}: {difference:.1e} from float32"
    if difference < 0.1:  # false if the difference is NaN
        yield Finding("green", precision, found)
    else:
        yield Finding("red", precision, found, "use train.precision = 'float32'")


def check_speed(runs: Runs) -> Iterator[Finding]:
    """Report the speed of each job on one GPU, on two GPUs and on this node's CPU."""
    gpus = [f"gpu:{num}" for num in (1, 2) if runs.kind == "gpu" and num <= runs.num_devices]
    measured: dict[str, list[dict[str, Any]]] = {}
    for kind in (*gpus, "cpu"):
        args = ["doctor", "--probe", "--json", "--here", "--devices", kind]
        args += ["--data", str(runs.data)] if runs.data else []
        ended = child.run_module("harness", *args, timeout_s=len(ARCHITECTURES) * RUN_S, **ALONE)
        if ended.code not in (0, 1):  # 1: the estimate of a job has an error
            raise RunError(f"harness doctor --probe {ended}; see its message")
        measured[kind] = json.loads(ended.output)
    runs.values["speed"] = measured
    for job, *each in zip(ARCHITECTURES, *measured.values(), strict=True):
        speeds = dict(zip(measured, each, strict=True))
        found = "; ".join(f"{kind} {_speed(speed)}" for kind, speed in speeds.items())
        if any(speed["error"] for speed in each):
            yield Finding("red", f"speed {job}", found, "see its message")
        elif gpus and speeds["gpu:1"]["reviews_per_s"] < speeds["cpu"]["reviews_per_s"]:
            remedy = f"--devices cpu, larger batches, or --runs-per-gpu for several ({job})"
            found += f": slower than {given_cpus(None)} CPUs"
            yield Finding("yellow", f"speed {job}", found, remedy)
        else:
            yield Finding("green", f"speed {job}", found)
    if not gpus:
        yield Finding("not run", "speed of a gpu", "not run: needs a GPU")


def _speed(speed: dict[str, Any]) -> str:
    """Return an estimate of `harness doctor --probe` as text."""
    return speed["error"] or (
        f"{speed['reviews_per_s']:,.0f} reviews/s, {speed['step_s'] * 1000:.1f} ms a step, "
        f"{speed['memory_gb']:.1f} GB"
        + (f", {speed['gpu_gb']:.2f} GB of the GPU" if speed["gpu_gb"] is not None else "")
    )


def check_memory(runs: Runs) -> Iterator[Finding]:
    """A run that needs more memory than the GPU has ends with a line about memory."""
    runs.need_gpu()
    args = runs.args("lstm", "too-large", runs.one, *TOO_LARGE)
    ended = child.run_process(args, timeout_s=RUN_S, **ALONE)
    if ended.code == 1 and "out of memory" in ended.last_line:
        yield Finding("green", "out of memory", ended.last_line)
    else:
        yield Finding("red", "out of memory", f"no such message: it {ended}", "see the lines")


def _all(runs: Runs, run_id: str, devices: str) -> list[SmallRun]:
    """Train a run of each architecture, several runs at a time."""
    at_once = AT_ONCE if runs.kind == "gpu" else min(AT_ONCE, given_cpus(None))
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda job: runs.train(job, run_id, devices), ARCHITECTURES))


CHECKS: Checks = {
    "broken driver": check_broken_driver,
    "kernels": check_kernels,
    **{f"bytes {job}": partial(check_bytes, job) for job in ARCHITECTURES},
    "gpu against cpu": check_against_cpu,
    "dropout masks": check_masks,
    **{f"{num} devices": partial(check_devices, num) for num in (2, 4)},
    **{
        each: partial(check_precision, each, f"train.precision={each}")
        for each in ("float16", "bfloat16")
    },
    "tf32": partial(check_precision, "tf32", "train.tf32=true"),
    "out of memory": check_memory,
    "speed": check_speed,
}
