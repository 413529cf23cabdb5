"""Checks of the cluster: whether Slurm answers, where GPUs are, and if it accepts our scripts."""

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from harness import PROJECT
from harness.doctor.finding import Finding
from harness.errors import InputError, RunError
from harness.slurm.client import ask, has_client, would_start
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.resources import ALWAYS, NEVER, VARIABLES, Rules, compose, site_options
from harness.slurm.script import read_header
from harness.system.files import scratch_directory
from harness.system.site_settings import SITE, TRUSTED_NETWORK, not_sourced

TIMEOUT_S = 10
SETTINGS = (TRUSTED_NETWORK, "HARNESS_DATA", "HARNESS_RUNS", "HARNESS_VENV", "HARNESS_DEVICES")
MAX_NAMES = 8  # of partitions in a line
RUN_HERE = "bash slurm/lstm.sh runs on this machine"
FORMAT = "%P|%a|%G"  # partition, state, generic resources
DEFAULTS = (
    *("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_GRES", "SBATCH_QOS", "SBATCH_TIMELIMIT"),
)


@dataclass(frozen=True)
class Partition:
    """A partition, or those nodes of it that are alike."""

    name: str
    is_default: bool
    is_up: bool
    gpu_types: frozenset[str]  # "" for GPUs without a type; empty where there are none


def parse_partitions(text: str) -> list[Partition]:
    """Read what `sinfo --format=FORMAT` prints."""
    partitions = []
    for line in text.splitlines():
        fields = line.split("|", 2)
        if len(fields) != 3:  # a line beside the partitions, as of several clusters
            continue
        name, state, gres = fields
        partitions.append(
            Partition(
                name.rstrip("*"),
                name.endswith("*"),
                state == "up",
                gpu_types(gres),
            )
        )
    return partitions


def gpu_types(gres: str) -> frozenset[str]:
    """The types of GPU in a node's `Gres`, such as `gpu:a100:4(S:0-1),gpu:2`."""
    types = set()
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = item.strip().split(":")
        if name == "gpu":
            types.add(rest[0] if rest and not rest[0].isdigit() else "")
    return frozenset(types)


def check_slurm(allocation: SlurmEnvironment | None) -> Iterator[Finding]:
    """Check client, controller, partitions, GPUs, limits and our own script, in short calls."""
    if not has_client("sinfo"):
        where = f"in job {allocation.job_id} without Slurm's programs" if allocation else "none"
        remedy = "harmless in a container: a job is put back into the queue from outside of it"
        level = Finding("yellow", "slurm", where, remedy) if allocation else None
        yield level or Finding("green", "slurm", f"no Slurm here: {RUN_HERE}")
        return
    try:
        version = ask("sinfo", "--version", timeout_s=TIMEOUT_S).strip()
    except RunError as error:
        found = f"its programs are here but find no cluster: {error}"
        yield Finding("yellow", "slurm", found, f"load your site's module; {RUN_HERE}")
        return
    try:
        answers = " is UP" in ask("scontrol", "ping", timeout_s=TIMEOUT_S)
    except RunError:
        answers = False
    if not answers:
        found = f"{version}, but its controller does not answer (scontrol ping)"
        yield Finding("red", "slurm", found, f"ask your site; meanwhile {RUN_HERE}")
        return
    yield Finding("green", "slurm", f"{version}, its controller answers")
    text = ask("sinfo", "--noheader", f"--format={FORMAT}", timeout_s=TIMEOUT_S)
    partitions = parse_partitions(text)
    yield describe_gpus(partitions)
    yield from check_script(partitions)
    yield check_site_file()


def _some(names: list[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def describe_gpus(partitions: list[Partition]) -> Finding:
    """Where GPUs are, and what to write to get one."""
    having = [each for each in partitions if each.is_up and each.gpu_types]
    if not having and os.environ.get("SBATCH_GRES") == "none":
        return Finding("green", "gpus", "no partition that is up has any; SBATCH_GRES is none")
    if not having:
        remedy = "export SBATCH_GRES=none before sbatch: the scripts ask for a GPU"
        return Finding("yellow", "gpus", "no partition that is up has any", remedy)
    names = list(dict.fromkeys(each.name for each in having))
    kinds = sorted({kind for each in having for kind in each.gpu_types if kind})
    ask_for = "--gres=gpu:1" + "".join(f" or --gres=gpu:{kind}:1" for kind in kinds)
    found = f"in {_some(names)}: {ask_for}"
    in_use = os.environ.get("SBATCH_PARTITION")
    used = in_use.split(",") if in_use else [each.name for each in having if each.is_default]
    if {*used} & {*names}:
        return Finding("green", "gpus", found)
    remedy = f"export SBATCH_PARTITION={names[0]}, or sbatch --partition={names[0]}"
    return Finding("yellow", "gpus", f"{found}; none in {in_use or 'the default one'}", remedy)


def check_script(partitions: list[Partition]) -> Iterator[Finding]:
    """Whether sbatch would accept a script as it is, with this shell's SBATCH_ settings."""
    settings = " ".join(f"{n}={os.environ[n]}" for n in DEFAULTS if os.environ.get(n))
    rules = Rules.of_site()
    if rules.never or rules.always:
        yield from _check_by_rules(rules)
        return
    name = f"slurm/lstm.sh with {settings}" if settings else "slurm/lstm.sh as it is"
    try:
        answer = would_start(PROJECT / "slurm" / "lstm.sh", timeout_s=TIMEOUT_S)
    except (InputError, RunError) as error:
        has_gpus = any(each.gpu_types for each in partitions)
        remedy = (
            "sbatch --gres, --mem, --cpus-per-task, --time, or SBATCH_ACCOUNT and "
            "SBATCH_PARTITION: see the end of slurm/site.example.sh"
            if has_gpus or "SBATCH_GRES" in settings
            else "export SBATCH_GRES=none"
        )
        yield Finding("red", "sbatch", f"{name} {error}", remedy)
        return
    yield Finding("green", "sbatch", f"{name} is accepted: {answer}")


def _check_by_rules(rules: Rules) -> Iterator[Finding]:
    """Whether sbatch would accept a script in the site's way, and the line that submits it so."""
    script = PROJECT / "slurm" / "lstm.sh"
    composed = compose(read_header(PROJECT, "lstm"), site_options(), (), rules=rules)
    unset = shlex.join(["env", *(f"-u{name}" for name in composed.unset)]) if composed.unset else ""
    names = "|".join(map(re.escape, rules.never))
    edit = rf"sed -E '/^#SBATCH --({names})\b/d' slurm/lstm.sh | " if names else ""
    words = f"{unset} sbatch {shlex.join(composed.args)} {'' if names else 'slurm/lstm.sh'}"
    line = edit + " ".join(words.split())
    with scratch_directory() as folder:
        copy = folder / "job.sh"
        copy.write_text("\n".join(["#!/bin/bash", *composed.header, ""]))
        try:
            answer = would_start(copy, *composed.args, timeout_s=TIMEOUT_S, unset=composed.unset)
        except (InputError, RunError) as error:
            remedy = f"correct {NEVER} and {ALWAYS} in {SITE}"
            yield Finding("red", "sbatch", f"{script.name} by `{line}` {error}", remedy)
            return
    yield Finding("green", "sbatch", f"`{line}`, or harness submit, is accepted: {answer}")


def check_site_file() -> Finding:
    """Whether the file with the site's settings is there."""
    if (PROJECT / SITE).is_file():
        if hint := not_sourced([*VARIABLES, *SETTINGS, NEVER, ALWAYS]):
            found, _, remedy = hint.rpartition(": ")
            return Finding("yellow", "site", found, remedy)
        return Finding("green", "site", f"{SITE} is there, and this shell has what it exports")
    remedy = "cp slurm/site.example.sh slurm/site.sh, if your site needs modules or an account"
    return Finding("yellow", "site", "no slurm/site.sh", remedy)
