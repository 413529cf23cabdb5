"""The checks of `harness doctor`, and their findings.

A child process imports TensorFlow, so that a crash of TensorFlow becomes a finding too.
"""

import contextlib
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import Version

from harness import PROJECT
from harness.architectures import ARCHITECTURES
from harness.compute.execution_plan import choose
from harness.data.sources import open_dataset
from harness.doctor.probe import ask_child
from harness.errors import InputError, RunError
from harness.job.job_file import load_job
from harness.slurm.client import ask, has_client, read_settings, sbatch_args, would_start
from harness.slurm.environment import SITE, SlurmEnvironment, given_cpus, not_sourced
from harness.slurm.resources import (
    ALWAYS,
    NEVER,
    VARIABLES,
    compose,
    names_of,
    refused_options,
    site_options,
)
from harness.slurm.script import read_header
from harness.system.gpu import (
    CUDNN_DROPS,
    FIRST_OF_CUDNN,
    IN_A_CONTAINER,
    LAST_TRUSTED,
    NVML,
    Card,
    code_for,
)
from harness.system.processes import installed_version, nvidia_driver

SET_UP = "bash slurm/common.sh --setup"
# A finding is yellow if TensorFlow's import takes longer than SLOW_IMPORT_S, or if less disk space
# than LITTLE_DISK_GB is free.
SLOW_IMPORT_S = 10.0  # an import from a local disk takes about 2 s
LITTLE_DISK_GB = 2.0  # a run takes some 10 MB of disk space
SLOW_MB_PER_S, WRITTEN_MB = 10.0, 16  # a finding is yellow below this speed; MB that are written
MAX_SKEW_S = 2.0  # largest good difference between the clocks of this machine and of the disk
KERNELS = {  # for each `ExecutionPlan.way`
    "block": "BlockLSTM, because one operation for all words is faster than a loop",
    "cudnn": "cuDNN, which computes all words in one operation",
    "keras": "a loop over the words",
    "xla": "XLA, which compiles the loop over the words",
}
MIN_SAVING_S = 10  # a run saves in less time, unless its disk is slow
TIMEOUT_S = 10  # time limit of each call of a Slurm program
RUN_HERE = "to train on this machine, run: bash slurm/lstm.sh"
FORMAT = "%P|%a|%G"  # partition, state, generic resources

Level = Literal["green", "yellow", "red", "not run"]


@dataclass(frozen=True)
class Finding:
    """The result of a check, and a remedy.

    Green: the checked part works; yellow: it works with a drawback; red: it does not work.
    `not run`: this machine can't run the check; only the checks of `tests.gpu` use this level.
    """

    level: Level
    name: str
    found: str
    remedy: str = ""  # what to do; empty for green

    @property
    def is_well(self) -> bool:
        """Whether the finding is not red."""
        return self.level != "red"


def diagnose(data: Path | None, runs: Path, devices: str | None) -> Iterator[Finding]:
    """Run the checks in order; after an error in one check, run the next checks too."""
    allocation = SlurmEnvironment.from_environment()
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": check_packages,
        "tensorflow": partial(check_tensorflow, devices),
        "cpus": partial(check_cpus, allocation),
        "slurm": partial(check_slurm, allocation),
        "data": partial(check_data, data),
        "runs": partial(check_runs, runs),
    }
    for name, check in checks.items():
        yield from examine(name, check)


def examine(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Run a check and yield its findings; if the check raises an error, yield a red finding."""
    try:
        yield from check()
    except (InputError, RunError) as error:
        # The messages of these errors end with the remedy.
        found, _, remedy = str(error).rpartition("; ")
        yield Finding("red", name, found or remedy, remedy if found else "")
    except Exception as error:  # any error, because the other checks must still run
        found = f"the check failed: {type(error).__name__}: {error}"
        yield Finding("red", name, found, "if the check fails again, report this error")


# The environment


def check_packages() -> Iterator[Finding]:
    """Check that the packages' versions are in the supported ranges."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    if wrong := list(_wrong(project["dependencies"])):
        remedy = SET_UP
        if not Path(sys.prefix, "setup.log").exists():
            # The user made the environment; `--setup` does not change it.
            remedy = shlex.join([sys.executable, "-m", "pip", "install", "-e", str(PROJECT)])
        yield Finding("red", "packages", "; ".join(wrong), remedy)
        return
    ours = ", ".join(f"{name} {installed_version(name)}" for name in ("tensorflow", "keras"))
    ours = f"Python {platform.python_version()}, {ours}"
    yield Finding("green", "packages", f"{ours}, all in the supported ranges")


def _wrong(requirements: list[str]) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = installed_version(requirement.name)
            if version is None:
                yield f"{requirement.name} is missing"
            elif not requirement.specifier.contains(version, prereleases=True):
                yield f"{requirement.name} {version}, not {requirement.specifier}"


# TensorFlow


def check_tensorflow(devices: str | None) -> Iterator[Finding]:
    """Check TensorFlow, its libraries, and the devices that it sees."""
    answer = ask_child(devices)
    yield describe_import(answer["import_s"])
    yield describe_gpus(answer)
    yield from describe_cards(answer, nvidia_driver())
    yield from describe_libraries(answer["libraries"])
    yield describe_kernels("gpu" if answer["gpus"] and "cpu" not in (devices or "") else "cpu")


def describe_kernels(kind: str) -> Finding:
    """Report how each job in `jobs/` computes its recurrent layers on `kind`, gpu or cpu."""
    names: dict[str, list[str]] = {}
    for name in ARCHITECTURES:
        way = choose(load_job(PROJECT / f"jobs/{name}.toml"), kind, 1).way
        names.setdefault(way, []).append(name)
    found = "; ".join(f"{', '.join(each)}: {KERNELS[way]}" for way, each in names.items())
    return Finding("green", "kernels", f"{found}; chosen for the {kind.upper()}")


def check_cpus(allocation: SlurmEnvironment | None) -> Iterator[Finding]:
    """Check how many of the machine's CPUs this process may use."""
    given, seen = given_cpus(allocation), os.cpu_count() or 1
    found = f"this process may use {given} of the machine's {seen} CPUs"
    if allocation and given == 1 < seen:
        yield Finding("yellow", "cpus", found, "request more: sbatch --cpus-per-task=4")
    else:
        yield Finding("green", "cpus", found)


def describe_import(import_s: float) -> Finding:
    """Report how long TensorFlow's import took; if it was slow, advise a faster disk.

    If more processes run than the machine has CPUs, give no advice, because the load may have
    slowed the import.
    """
    found = f"imports in {import_s:.1f} s from {sys.prefix}"
    if import_s > SLOW_IMPORT_S and not _is_busy():
        remedy = (
            "in slurm/site.sh, set HARNESS_VENV to an environment on a faster disk, or "
            "HARNESS_CONTAINER to the command that runs Python in a container"
        )
        return Finding("yellow", "tensorflow", found, remedy)
    return Finding("green", "tensorflow", found)


def describe_gpus(answer: dict[str, Any]) -> Finding:
    """Report the GPUs that TensorFlow sees, or the reason why a run could not use GPUs."""
    if problem := answer["refused"] or answer["warning"]:
        # In `problem`, the first semicolon separates the reason from the remedies, which may
        # contain more semicolons.
        found, _, remedy = problem.partition("; ")
        return Finding("red" if answer["refused"] else "yellow", "devices", found, remedy)
    gpus = answer["gpus"]
    shown = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    found = f"{shown}; {nvidia_driver() or 'driver unknown'}" if gpus else "no GPU, only the CPU"
    return Finding("green", "devices", found)


def describe_cards(answer: dict[str, Any], driver: str | None) -> Iterator[Finding]:
    """Judge for each kind of GPU whether TensorFlow and cuDNN contain code for it."""
    if not answer["targets"]:  # not a CUDA build, such as a site's build for ROCm
        return
    pairs = zip(answer["gpus"], answer["capabilities"], strict=True)
    for card in dict.fromkeys(Card(name, tuple(capability)) for name, capability in pairs):
        yield judge_card(card, driver, answer)


def judge_card(card: Card, driver: str | None, build: Mapping[str, Any]) -> Finding:
    """Judge whether TensorFlow and cuDNN run on a GPU card.

    Args:
        card: the GPU's name and compute capability.
        driver: the line that states the driver's version; None if unknown.
        build: the dictionary that `devices_seen` returns. It contains `targets`, the kinds of code
            in TensorFlow (`sm_80` is machine code, `compute_90` is PTX), and the versions of CUDA
            and cuDNN.
    """
    targets, cudnn, by_driver = build["targets"], build["cudnn"], build["driver_cuda"]
    code, found = code_for(card.capability, targets), f"{card.title}, {driver or 'driver unknown'}"
    if not code:
        text = f"{found}: TensorFlow has no code for it, only for {', '.join(targets)}"
        return Finding("red", "card", text, "use a newer card")
    if card.capability < FIRST_OF_CUDNN and Version(cudnn or "0") >= Version(CUDNN_DROPS):
        remedy = f"{sys.executable} -m pip install 'nvidia-cudnn-cu12<{CUDNN_DROPS}'"
        text = f"{found}: cuDNN {cudnn} has no code for it"
        return Finding("red", "card", text, f"{remedy}, or use a newer card")
    is_ptx = code.startswith("compute_")
    if is_ptx and by_driver and Version(by_driver) < Version(build["cuda"]):
        text = (
            f"{found}: TensorFlow has only PTX code of CUDA {build['cuda']} for this GPU, but the "
            f"driver compiles only PTX code up to CUDA {by_driver}"
        )
        return Finding("red", "card", text, "use another card, or ask your site for a newer driver")
    warm = "run harness doctor --probe on a node with this GPU"
    if card.capability > LAST_TRUSTED:
        return Finding("yellow", "card", f"{found}: XLA may abort on it", f"try the GPU: {warm}")
    if is_ptx:
        text = (
            f"{found}: TensorFlow has only PTX code ({code}) for this GPU; the driver compiles the "
            "code at the first use, which takes minutes"
        )
        remedy = (
            f"before you submit a job array, fill the driver's cache of compiled code once: {warm}"
        )
        return Finding("yellow", "card", text, remedy)
    return Finding("green", "card", f"{found}: machine code {code}")


def describe_libraries(answer: dict[str, Any] | None) -> Iterator[Finding]:
    """If the machine has an NVIDIA driver, report whether CUDA's libraries load, and from where."""
    if answer is None:
        return
    if answer["missing"]:
        found = f"cannot dlopen {', '.join(answer['missing'])}"
        remedy = f"HARNESS_EXTRA=gpu {SET_UP} (6.6 GB)"
        if NVML in answer["missing"]:
            found += f"; {NVML} is a library of the driver"
            remedy = f"{IN_A_CONTAINER}; elsewhere, ask your administrators to install {NVML}"
        yield Finding("red", "libraries", found, remedy)
    elif answer["site"]:
        shown = ", ".join(f"{name} from {path}" for name, path in answer["site"].items())
        found = (
            "because of LD_LIBRARY_PATH, these libraries load instead of those in the Python "
            f"environment: {shown}"
        )
        remedy = (
            "unload the environment module that sets LD_LIBRARY_PATH: harness is tested only with "
            "the CUDA libraries in its lock file"
        )
        yield Finding("yellow", "libraries", found, remedy)
    else:
        yield Finding(
            "green",
            "libraries",
            "all CUDA libraries load, each from the Python environment",
        )


# Slurm


def check_slurm(allocation: SlurmEnvironment | None) -> Iterator[Finding]:
    """Check that Slurm answers; report partitions with GPUs; check a job script and site.sh."""
    if not has_client("sinfo"):
        remedy = (
            "if you run this command in a container, change nothing: the job script runs "
            "outside the container and calls Slurm there"
        )
        if allocation:
            where = f"Slurm's programs are missing in job {allocation.job_id}"
            yield Finding("yellow", "slurm", where, remedy)
        else:
            yield Finding("green", "slurm", f"Slurm's programs are not on this machine; {RUN_HERE}")
        return
    try:
        version = ask("sinfo", "--version", timeout_s=TIMEOUT_S).strip()
        text = ask("sinfo", "--noheader", f"--format={FORMAT}", timeout_s=TIMEOUT_S)
    except RunError as error:
        remedy = f"load your site's Slurm module, or ask your site's support; meanwhile, {RUN_HERE}"
        yield Finding("yellow", "slurm", f"Slurm's controller does not answer: {error}", remedy)
        return
    yield Finding("green", "slurm", f"{version}, its controller answers")
    yield describe_partitions(text)
    with contextlib.suppress(RunError):  # some sites forbid this call
        shown = ask("scontrol", "--oneliner", "show", "partition", timeout_s=TIMEOUT_S)
        yield from describe_preemption(shown, read_settings())
    yield check_script()
    yield check_site_file()


def describe_partitions(text: str) -> Finding:
    """Report which partitions have GPUs, and the sbatch option that requests a GPU.

    Args:
        text: the output of `sinfo --format=FORMAT`; this function skips lines that name a cluster.
    """
    rows = re.findall(r"^([^|\n]+?)(\*?)\|up\|(.*)$", text, re.MULTILINE)
    having = [(name, is_default, gres) for name, is_default, gres in rows if "gpu" in gres]
    if not having and os.environ.get("SBATCH_GRES") == "none":
        return Finding(
            "green",
            "gpus",
            "no partition in state up has GPUs; SBATCH_GRES is none, so jobs request no GPU",
        )
    if not having:
        remedy = "export SBATCH_GRES=none before sbatch, because the job scripts request a GPU"
        return Finding("yellow", "gpus", "no partition in state up has GPUs", remedy)
    names = list(dict.fromkeys(name for name, _, _ in having))
    # A node with `gpu:a100:4(S:0-1),gpu:2` has GPUs of the type a100 and GPUs without a type.
    kinds = {kind for *_, gres in having for kind in re.findall(r"gpu:([^:,()]+):\d", gres)}
    ask_for = "--gres=gpu:1" + "".join(f" or --gres=gpu:{kind}:1" for kind in sorted(kinds))
    found = f"in {', '.join(names)}: {ask_for}"
    in_use = os.environ.get("SBATCH_PARTITION")
    used = in_use.split(",") if in_use else [name for name, is_default, _ in having if is_default]
    if {*used} & {*names}:
        return Finding("green", "gpus", found)
    remedy = f"export SBATCH_PARTITION={names[0]}, or sbatch --partition={names[0]}"
    found += f"; none in {in_use or 'the default partition'}"
    return Finding("yellow", "gpus", found, remedy)


def describe_preemption(text: str, settings: Mapping[str, str]) -> Iterator[Finding]:
    """Report how long Slurm lets a preempted run save, for each partition with preemption.

    Args:
        text: the output of `scontrol --oneliner show partition`.
        settings: Slurm's configuration.
    """
    is_on = settings.get("PreemptType", "preempt/none") != "preempt/none"
    warns = "send_user_signal" in settings.get("PreemptParameters", "")
    kill_s = _first_number(settings.get("KillWait", "30"))
    for line in text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        mode, grace_s = values.get("PreemptMode", "OFF"), _first_number(values.get("GraceTime", ""))
        # With GANG alone, jobs take turns, and none is preempted.
        if not is_on or {*mode.split(",")} <= {"OFF", "GANG"}:
            continue
        found = f"{values.get('PartitionName')}: {mode}, grace time {grace_s} s: a preempted run"
        if "SUSPEND" in mode:
            yield Finding("green", "preemption", f"{found} pauses and continues")
            continue
        saving_s = grace_s if warns and grace_s else kill_s
        by = "Slurm" if "REQUEUE" in mode else "its job script"
        found = f"{found} has {saving_s} s to save; {by} requeues it"
        if saving_s >= MIN_SAVING_S:
            yield Finding("green", "preemption", found)
        else:
            remedy = "lower train.checkpoint_every_s, so that a preempted run loses fewer steps"
            yield Finding("yellow", "preemption", found, remedy)
    if settings.get("JobRequeue") == "0":
        found = (
            "JobRequeue is 0: Slurm requeues only jobs with --requeue; all job scripts that train "
            "have this option"
        )
        yield Finding("green", "requeue", found)


def _first_number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


def check_script() -> Finding:
    """Check that sbatch accepts a job script.

    The options in HARNESS_SBATCH_NEVER are first removed from the script, and the options in
    HARNESS_SBATCH_ALWAYS are added.
    """
    name, site = "slurm/lstm.sh", site_options()
    script, args = (PROJECT / name).read_text(errors="replace"), list[str]()
    always = os.environ.get(ALWAYS, "").split()
    line, unset = f"sbatch {name}", list[str]()
    remedy = (
        "set the account, partition, GPUs and memory that your site demands (SBATCH_GRES=none "
        "requests no GPU): see the end of slurm/site.example.sh"
    )
    if refused_options() or always:
        header = read_header(PROJECT, "lstm")
        script, args, unset = "#!/bin/bash\n", compose(header, ()), [*site]
        removed = sorted(names_of(header) - names_of(args))
        hidden = [each for each in site if VARIABLES[each] not in names_of(args)]
        line = shlex.join([*sbatch_args(hidden), *always, *([] if removed else [name])])
        if removed:
            line = rf"sed -E '/^#SBATCH --({'|'.join(removed)})\b/d' {name} | {line}"
        remedy = f"correct {NEVER} and {ALWAYS} in {SITE}"
    try:
        answer = would_start(script, *args, timeout_s=TIMEOUT_S, unset=unset)
    except (InputError, RunError) as error:
        found = f"`{line}` with this shell's SBATCH_ settings: {error}"
        return Finding("red", "sbatch", found, remedy)
    return Finding("green", "sbatch", f"sbatch accepts `{line}`: {answer}")


def check_site_file() -> Finding:
    """Check that slurm/site.sh exists and that this shell has sourced it."""
    if (PROJECT / SITE).is_file():
        if hint := not_sourced():
            found, _, remedy = hint.partition("; run: ")
            return Finding("yellow", "site", found, remedy)
        return Finding("green", "site", f"{SITE} exists, and this shell has its settings")
    remedy = "cp slurm/site.example.sh slurm/site.sh, if your site needs modules or an account"
    return Finding("yellow", "site", "no slurm/site.sh", remedy)


# The disks


def check_data(data: Path | None) -> Iterator[Finding]:
    """Report which reviews are on this machine, and check their bytes; download nothing."""
    dataset = open_dataset(data, download=False)
    counts = f"{len(dataset.train):,} + {len(dataset.test):,} reviews"
    here = f"move {dataset.folder} away, or leave out --data and unset HARNESS_DATA; then "
    remedy = "on a machine with internet access, run harness data fetch"
    remedy = f"{here if dataset.folder else ''}{remedy}"
    if dataset.is_sample:
        yield Finding("yellow", "data", f"only the packaged SAMPLE of {counts}", remedy)
        return
    where = f"{counts} in {dataset.folder}"
    if not dataset.official:
        yield Finding("yellow", "data", f"{where}: not the official IMDB reviews", remedy)
    else:
        yield Finding("green", "data", f"{where}: the official IMDB reviews, every byte verified")


def check_runs(runs: Path) -> Iterator[Finding]:
    """Check space, speed and clock of the folder of runs, or of its nearest existing parent."""
    remedy = "choose another folder with --runs or HARNESS_RUNS"
    try:
        above = runs.absolute().parents
        folder = next(each for each in (runs.absolute(), *above) if os.path.lexists(each))
        with tempfile.NamedTemporaryFile(prefix=".harness-doctor-", dir=folder) as file:
            content, began_s = os.urandom(WRITTEN_MB * 1_000_000), time.time()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            ended_s, written_s = time.time(), os.fstat(file.fileno()).st_mtime
        free_gb = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        found = f"{runs}: can't be written: {error.strerror or error}"
        yield Finding("red", "runs", found, remedy)
        return
    mb_per_s = WRITTEN_MB / max(ended_s - began_s, 1e-9)
    found = f"{folder}: {free_gb:,.1f} GB free, writes {mb_per_s:,.0f} MB/s"
    if free_gb < LITTLE_DISK_GB:
        yield Finding("yellow", "runs", found, f"free some space, or {remedy}")
    elif mb_per_s < SLOW_MB_PER_S and not _is_busy():
        yield Finding("yellow", "runs", found, f"the disk is slow: {remedy}")
    else:
        yield Finding("green", "runs", found)
    skew_s = written_s - min(max(written_s, began_s), ended_s)  # 0 if it is in between
    found = (
        f"the clock of the runs' disk is {abs(skew_s):.1f} s {'ahead' if skew_s > 0 else 'behind'}"
    )
    if abs(skew_s) > MAX_SKEW_S:
        remedy = "harness status may show wrong states; ask your site to correct its clocks"
        yield Finding("yellow", "clock", found, remedy)
    else:
        yield Finding("green", "clock", found)


def _is_busy() -> bool:
    """Whether more processes run than the machine has CPUs, which makes disks look slow."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)
