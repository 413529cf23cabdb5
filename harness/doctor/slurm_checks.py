"""Checks of the cluster: whether Slurm answers, has GPUs, and accepts the job scripts."""

import os
import re
import shlex
from collections.abc import Iterator

from harness import PROJECT
from harness.doctor.finding import Finding
from harness.errors import InputError, RunError
from harness.slurm.client import ask, has_client, sbatch_args, would_start
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.resources import (
    VARIABLES,
    Rules,
    compose,
    names_of,
    option_name,
    site_options,
)
from harness.slurm.script import read_header
from harness.system.site_settings import ALWAYS, NEVER, SITE, not_sourced

TIMEOUT_S = 10
RUN_HERE = "to train on this machine, run: bash slurm/lstm.sh"
FORMAT = "%P|%a|%G"  # partition, state, generic resources


def check_slurm(allocation: SlurmEnvironment | None) -> Iterator[Finding]:
    """Check the client programs, the controller, GPUs, a job script and the site's settings."""
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
    yield describe_gpus(text)
    yield check_script()
    yield check_site_file()


def describe_gpus(text: str) -> Finding:
    """Report which partitions have GPUs, and the sbatch option that requests one.

    Args:
        text: the output of `sinfo --format=FORMAT`; lines with a cluster's name are skipped.
    """
    rows = re.findall(r"^([^|\n]+?)(\*?)\|up\|(.*)$", text, re.MULTILINE)
    having = [(name, is_default, gres) for name, is_default, gres in rows if "gpu" in gres]
    if not having and os.environ.get("SBATCH_GRES") == "none":
        return Finding("green", "gpus", "no partition in state up has GPUs; SBATCH_GRES is none")
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


def check_script() -> Finding:
    """Check that sbatch accepts a job script, changed as the site's rules demand."""
    name, rules = "slurm/lstm.sh", Rules.of_site()
    script, args, site = (PROJECT / name).read_text(errors="replace"), list[str](), site_options()
    line, unset = f"sbatch {name}", list[str]()
    remedy = (
        "set account, partition, GPUs and memory, or SBATCH_GRES=none: see the end of "
        "slurm/site.example.sh"
    )
    if rules.never or rules.always:
        header = read_header(PROJECT, "lstm")
        script, args, unset = "#!/bin/bash\n", compose(header, site, (), rules=rules), [*site]
        removed = [each for each in map(option_name, header) if each not in names_of(args)]
        hidden = [each for each in site if VARIABLES[each] not in names_of(args)]
        line = shlex.join([*sbatch_args(hidden), *rules.always, *([] if removed else [name])])
        if removed:
            line = rf"sed -E '/^#SBATCH --({'|'.join(removed)})\b/d' {name} | {line}"
        remedy = f"correct {NEVER} and {ALWAYS} in {SITE}"
    try:
        answer = would_start(script, *args, timeout_s=TIMEOUT_S, unset=unset)
    except (InputError, RunError) as error:
        found = f"`{line}` with this shell's SBATCH_ settings {error}"
        return Finding("red", "sbatch", found, remedy)
    return Finding("green", "sbatch", f"sbatch accepts `{line}`: {answer}")


def check_site_file() -> Finding:
    """Check that slurm/site.sh exists and that this shell has sourced it."""
    if (PROJECT / SITE).is_file():
        if hint := not_sourced():
            found, _, remedy = hint.rpartition(": ")
            return Finding("yellow", "site", found, remedy)
        return Finding("green", "site", f"{SITE} exists, and this shell has its settings")
    remedy = "cp slurm/site.example.sh slurm/site.sh, if your site needs modules or an account"
    return Finding("yellow", "site", "no slurm/site.sh", remedy)
