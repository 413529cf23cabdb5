"""`harness doctor --accept`: proves what the README promises on this node, by real runs.

One line a check, with its number; nothing is taken for granted: a check that could not run is
`not run`, never green. Where there is no GPU the same checks run on two virtual CPU devices.
"""

import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from harness import __version__
from harness.checks import acceptance_full, child
from harness.checks.acceptance_runs import RUN_S, Runs, SmallRun, judge
from harness.checks.doctor import describe_cards, describe_gpus
from harness.checks.finding import Finding, NotRun, examine
from harness.checks.probe import ARCHITECTURES, JOBS, START_S, ask_child
from harness.checks.probe_child import expected_kernel
from harness.compute.strategy import MAX_DEVICES, parse_devices
from harness.errors import InputError
from harness.files.atomic_file import atomic_write
from harness.files.scratch import scratch_directory
from harness.job import TrainConfig
from harness.job_file import load_job
from harness.slurm.environment import SlurmEnvironment, given_cpus, variables_of_a_check
from harness.system.host import nvidia_driver, processor

CHILD = "harness.checks.acceptance_child"
SPEED_S = {"gpu": 4.0, "cpu": 1.5}  # that each job's speed is measured for
AT_ONCE = 4  # runs that share a GPU while bytes, not times, are compared


def accept(
    devices: str | None, data: Path | None, *, full: bool, show: Callable[[int, Finding], object]
) -> dict[str, Any]:
    """Run the checks in order, and return everything for the JSON file.

    Args:
        devices: as `--devices` names them; by default all GPUs, or two CPU devices.
        data: the folder of the dataset.
        full: with the checks that take long or need more than one GPU or node.
        show: is given each line's number and finding once it is known.

    Raises:
        InputError: in a job step of several tasks.
    """
    allocation = SlurmEnvironment.from_environment()
    if allocation and allocation.num_tasks > 1:
        raise InputError(
            f"--accept in {allocation.num_tasks} tasks: should be in one; use --ntasks=1"
        )
    seen = ask_child({"do": "devices"}, START_S)
    requested = parse_devices(devices) if devices else None
    kind = requested.kind if requested else "gpu" if seen["gpus"] else "cpu"
    if kind == "gpu":
        num = min(len(seen["gpus"]), requested.count if requested else MAX_DEVICES)
    else:
        num = max(2, requested.count if requested else 2)
    lines: list[dict[str, Any]] = []
    with scratch_directory() as folder:
        runs = Runs(folder, kind, num, data)
        for name, check in _checks(runs, seen, allocation, full=full).items():
            began = time.perf_counter()
            for finding in examine(name, check):
                took_s = round(time.perf_counter() - began, 1)
                lines.append({"number": len(lines) + 1, **asdict(finding), "took_s": took_s})
                show(len(lines), finding)
    return {
        "harness": __version__,
        "host": socket.gethostname(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "processor": processor(),
        "driver": nvidia_driver(),
        "seen": seen,
        "devices": f"{kind}:{num}",
        "full": full,
        "checks": lines,
        "values": runs.values,
    }


def write_report(report: dict[str, Any], out: Path | None, runs: Path) -> Path:
    """Write the JSON file, by default `RUNS/acceptance-HOST-DATE.json`, and return its path.

    Raises:
        DiskError: if it can't be written.
    """
    name = f"acceptance-{report['host']}-{report['at'][:19].replace(':', '')}.json"
    path = out or runs / name
    atomic_write(path, json.dumps(report, indent=2), remedy="give another --out")
    return path


def check_writable(out: Path | None, runs: Path) -> None:
    """Refuse, before minutes of checks, a place in which their report can't be written.

    Raises:
        InputError: if this is so.
    """
    named, folder = (f"--out {out}", out.parent) if out else (f"--runs {runs}", runs)
    if out and out.is_dir():
        raise InputError(f"{named}: is a folder; name a file, {out}/acceptance.json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{named}: can't be written ({reason}); give another --out") from None


def _checks(
    runs: Runs, seen: dict[str, Any], allocation: SlurmEnvironment | None, *, full: bool
) -> dict[str, Callable[[], Iterator[Finding]]]:
    core: dict[str, Callable[[], Iterator[Finding]]] = {
        "devices": lambda: iter([describe_gpus(seen, allocation)]),
        "card": partial(check_cards, runs, seen),
        "first kernel": partial(check_start, runs),
        "libraries": partial(check_libraries, runs),
        "modes": partial(check_modes, runs),
        "broken driver": partial(check_broken_driver, runs),
        "kernels": partial(check_kernels, runs),
        **{f"bytes {job}": partial(check_bytes, runs, job) for job in ARCHITECTURES},
        "gpu against cpu": partial(check_against_cpu, runs),
        "tf32": partial(check_tf32, runs),
        "dropout masks": partial(check_masks, runs),
        "two devices": partial(check_devices, runs, 2),
        "float16": partial(check_precision, runs, "float16"),
        "bfloat16": partial(check_precision, runs, "bfloat16"),
        **{f"speed {job}": partial(check_speed, runs, job) for job in ARCHITECTURES},
    }
    return core | (acceptance_full.checks(runs, allocation) if full else {})


# The node


def check_cards(runs: Runs, seen: dict[str, Any]) -> Iterator[Finding]:
    """Each kind of card: capability, driver, machine code or PTX."""
    runs.need_gpu()
    yield from describe_cards(seen, nvidia_driver())


def check_start(runs: Runs) -> Iterator[Finding]:
    """How long a process takes until its first kernels have run."""
    answer, _ = child.ask(CHILD, {"do": "start", "devices": runs.one}, timeout_s=RUN_S)
    runs.values["first kernel"] = answer
    found = (
        f"{runs.one}: import {answer['import_s']:.1f} s, first product {answer['product_s']:.2f} "
        f"s, first LSTM {answer['lstm_s']:.2f} s"
    )
    yield Finding("green", "first kernel", found)


def check_libraries(runs: Runs) -> Iterator[Finding]:
    """The versions of cuDNN and NCCL, as they state them."""
    answer, _ = child.ask(CHILD, {"do": "libraries"}, timeout_s=START_S)
    runs.values["libraries"] = answer
    if None not in answer.values():
        yield Finding("green", "libraries", f"cuDNN {answer['cudnn']}, NCCL {answer['nccl']}")
    elif runs.kind == "gpu":
        missing = [name for name, version in answer.items() if version is None]
        remedy = "HARNESS_EXTRA=gpu bash slurm/common.sh --setup"
        yield Finding("red", "libraries", f"{' and '.join(missing)} can't be loaded", remedy)
    else:
        raise NotRun("the CUDA libraries, which HARNESS_EXTRA=gpu installs")


def check_modes(runs: Runs) -> Iterator[Finding]:
    """Compute mode and MIG of each GPU, and whether NVML numbers them as CUDA does."""
    runs.need_gpu()
    answer, _ = child.ask(CHILD, {"do": "nvml"}, timeout_s=START_S)
    if "problem" in answer:
        raise NotRun(f"NVML ({answer['problem']})")
    runs.values["nvml"] = answer
    gpus = answer["gpus"]
    found = "; ".join(
        f"GPU {i} {gpu['compute_mode']}{', MIG' if gpu['mig'] else ''}"
        for i, gpu in enumerate(gpus)
    )
    if exclusive := [gpu for gpu in gpus if gpu["compute_mode"] != "default"]:
        remedy = "runs can't share such a GPU: leave --runs-per-gpu at 1, or use the site's MPS"
        yield Finding("yellow", "modes", f"{found}: {len(exclusive)} not shared", remedy)
    else:
        yield Finding("green", "modes", found)
    addresses = [gpu["address"] for gpu in gpus]
    if any(gpu["mig"] for gpu in gpus):
        yield Finding("not run", "gpu order", "not run: needs GPUs without MIG")
    elif addresses == answer["cuda"]:
        yield Finding("green", "gpu order", f"NVML's index is CUDA's for {len(gpus)} GPUs")
    else:
        found = f"NVML has {', '.join(addresses)}; CUDA {', '.join(answer['cuda'])}"
        yield Finding("red", "gpu order", found, "the use of GPUs is shown for the wrong ones")


def check_broken_driver(runs: Runs) -> Iterator[Finding]:
    """A run that is to use a GPU, and finds a broken libcuda, is refused and trains nothing."""
    broken = runs.folder / "broken"
    broken.mkdir()
    (broken / "libcuda.so.1").write_text("no library")
    path = os.pathsep.join(filter(None, (str(broken), os.environ.get("LD_LIBRARY_PATH"))))
    args = runs.args("lstm", "refused", "gpu:1")
    variables = variables_of_a_check() | {"LD_LIBRARY_PATH": path}
    ended = child.run_process(args, timeout_s=RUN_S, **variables)
    is_refused = ended.code in (1, 2) and "TensorFlow sees no GPU" in ended.last_line
    if is_refused and not SmallRun(runs.folder / "lstm" / "refused").folder.exists():
        yield Finding("green", "broken driver", f"refused: {ended.last_line[:90]}…")
    else:
        yield Finding("red", "broken driver", f"not refused: it {ended}", "it may train on a CPU")


# The numbers


def check_kernels(runs: Runs) -> Iterator[Finding]:
    """The kernel of each recurrent layer, in each run's record, as the rules expect it."""
    with ThreadPoolExecutor(_at_once(runs)) as pool:
        calm = list(pool.map(partial(_calm, runs), ARCHITECTURES))
    wrong, shown = [], []
    for job, run in zip(ARCHITECTURES, calm, strict=True):
        kernels = run.record["kernels"]
        expected = "xla" if run.record["plan"]["xla"] else "loop"
        if runs.kind == "gpu":
            expected = expected_kernel(load_job(JOBS / f"{job}.toml"))
        shown.append(f"{job} {' '.join(kernels.values())}")
        runs.values.setdefault("kernels", {})[job] = kernels
        if not kernels or set(kernels.values()) != {expected}:
            wrong.append(f"{job} {' '.join(kernels.values()) or 'none'}, not {expected}")
    if wrong:
        yield Finding("red", "kernels", "; ".join(wrong), "harness doctor names the reason")
    else:
        yield Finding("green", "kernels", f"as expected and recorded: {', '.join(shown)}")


def check_bytes(runs: Runs, job: str) -> Iterator[Finding]:
    """Fifty steps again, killed and resumed: the same bytes; on a GPU undisturbed again too."""
    with ThreadPoolExecutor(1) as pool:
        names = ["again"] if runs.kind == "gpu" else []
        undisturbed = {name: pool.submit(runs.train, job, name, runs.one) for name in names}
        step = runs.kill(job, "killed", runs.one)
        others = {name: each.result() for name, each in undisturbed.items()}
    others["killed"] = runs.train(job, "killed", runs.one)
    calm = _calm(runs, job)
    num_starts = len(others["killed"].record["starts"])
    different = [
        f"{name}: {', '.join(files)}"
        for name, run in others.items()
        if (files := calm.different_files(run))
    ]
    runs.values.setdefault("bytes", {})[job] = {"killed_at_step": step, "different": different}
    if different:
        found = f"not the same bytes: {'; '.join(different)}"
        yield Finding("red", f"bytes {job}", found, "runs of this node can't be repeated exactly")
    elif num_starts != 2:
        yield Finding("red", f"bytes {job}", f"the killed run started {num_starts} times, not 2")
    else:
        found = f"the same bytes {'again, and ' if names else ''}killed at step {step} and resumed"
        yield Finding("green", f"bytes {job}", found)


def check_against_cpu(runs: Runs) -> Iterator[Finding]:
    """The losses of fifty steps on the GPU against those on this node's CPU."""
    runs.need_gpu()
    with ThreadPoolExecutor(_at_once(runs)) as pool:
        on_cpu = list(pool.map(lambda job: runs.train(job, "on-cpu", "cpu:1"), ARCHITECTURES))
    for job, run in zip(ARCHITECTURES, on_cpu, strict=True):
        difference = _calm(runs, job).difference(run)
        yield judge(runs, f"gpu against cpu {job}", difference)


def check_tf32(runs: Runs) -> Iterator[Finding]:
    """What TF32 changes of the losses, where jobs have a key for it."""
    runs.need_gpu()
    if "tf32" not in TrainConfig.model_fields:
        raise NotRun("the job key train.tf32")
    on = runs.train("lstm", "tf32", runs.one, overrides=["train.tf32=true"])
    difference = _calm(runs, "lstm").difference(on)
    runs.values["tf32"] = difference
    yield Finding("green", "tf32", f"on against off: a loss differs by at most {difference:.1e}")


def check_masks(runs: Runs) -> Iterator[Finding]:
    """The dropout masks of two devices, which must be the same to the bit."""
    devices = ["cpu:0", "gpu:0" if runs.kind == "gpu" else "cpu:1"]
    answer, _ = child.ask(CHILD, {"do": "masks", "devices": devices}, timeout_s=RUN_S)
    sums = runs.values["masks"] = answer["sums"]
    same = len(set(sums.values())) == 1
    found = f"{' and '.join(devices)} draw {'the same' if same else 'different'} masks"
    remedy = "" if same else "a run that resumes on the other kind of device gets other dropout"
    yield Finding("green" if same else "red", "dropout masks", found, remedy)
    if runs.kind == "cpu":
        yield Finding("not run", "masks of a gpu", "not run: needs a GPU")


def check_devices(runs: Runs, count: int) -> Iterator[Finding]:
    """One device against several, with a last batch that they can't divide, in both loops."""
    devices = runs.devices(count)
    for steps in (1, 10):
        name = f"{devices}, {steps} step{'s' if steps > 1 else ''} a call"
        setting = f"train.steps_per_execution={steps}"
        one = _calm(runs, "lstm")
        several = runs.train("lstm", f"{count}-devices-{steps}", devices, overrides=[setting])
        used = several.result["num_replicas"]
        if used != count:
            yield Finding("red", name, f"{used} replicas trained")
        else:
            yield judge(runs, name, one.difference(several))


def check_precision(runs: Runs, precision: str) -> Iterator[Finding]:
    """A run in half precision ends with finite losses."""
    run = runs.train("lstm", precision, runs.one, overrides=[f"train.precision={precision}"])
    difference = _calm(runs, "lstm").difference(run)
    losses = ", ".join(f"{loss:.4f}" for loss in run.losses())
    found = f"losses {losses}: {difference:.1e} from float32"
    if difference < 0.1:  # also false where one is not a number
        yield Finding("green", precision, found)
    else:
        yield Finding("red", precision, found, "use train.precision = 'float32'")


def check_speed(runs: Runs, job: str) -> Iterator[Finding]:
    """Milliseconds a step of the whole job, against the CPU of this node where there is a GPU."""
    request = {
        "do": "speed",
        "job": JOBS / f"{job}.toml",
        "data": runs.data,
        "seconds": SPEED_S[runs.kind],
    }
    kinds = dict.fromkeys((runs.kind, "cpu"))
    times = {
        kind: ask_child({**request, "devices": kind}, RUN_S, **variables_of_a_check())
        for kind in kinds
    }
    runs.values.setdefault("speed", {})[job] = times
    found = "; ".join(
        f"{kind} {each['step_s'] * 1000:.1f} ms a step, {each['batch_size'] / each['step_s']:,.0f}"
        f" reviews/s, {each['peak_memory_gb']:.1f} GB{_gpu_numbers(each)}"
        for kind, each in times.items()
    )
    name = f"speed {job}"
    if runs.kind == "cpu":
        yield Finding("green", name, found)
        yield Finding("not run", f"{name} gpu", "not run: needs a GPU")
    elif times["gpu"]["step_s"] > times["cpu"]["step_s"]:
        remedy = f"--devices cpu, larger batches, or --runs-per-gpu for several ({job})"
        yield Finding("yellow", name, f"{found}: slower than {given_cpus(None)} CPUs", remedy)
    else:
        yield Finding("green", name, found)


def _gpu_numbers(speed: dict[str, Any]) -> str:
    memory, share = speed["gpu_memory_gb"], speed["gpu_share"]
    shown = f", {memory:.2f} GB of the GPU" if memory is not None else ""
    return shown + (f", {share:.0%} busy" if share is not None else "")


def _calm(runs: Runs, job: str) -> SmallRun:
    return runs.train(job, "calm", runs.one)


def _at_once(runs: Runs) -> int:
    return min(AT_ONCE, given_cpus(None)) if runs.kind == "cpu" else AT_ONCE
