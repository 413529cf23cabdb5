"""sbatch's options in layers: the script's header, the site's variables, the user's own.

sbatch replaces an option by the same one of a later layer only. `--gres=gpu:1` in a script stays
beside `--gpus-per-node=2`, and the job gets one GPU without a word. Here an option replaces
whatever asks for the same thing in another way.
"""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import InputError

# Ways to ask for the same thing, as sbatch names them.
GPUS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
# What a job that goes on does not ask for again: the moment, and what its last start tells.
ONCE = ("dependency", "hold", "begin", "nodes", "time")
LETTERS = {
    "-G": "gpus",
    "-d": "dependency",
    "-H": "hold",
    "-b": "begin",
    "-N": "nodes",
    "-t": "time",
}

# The variables that set an option of sbatch for a whole site, as sbatch itself reads them.
VARIABLES = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_GPUS": "gpus",
    "SBATCH_GPUS_PER_NODE": "gpus-per-node",
    "SBATCH_GPUS_PER_TASK": "gpus-per-task",
    "SBATCH_GRES": "gres",
    "SBATCH_MEM_PER_CPU": "mem-per-cpu",
    "SBATCH_MEM_PER_GPU": "mem-per-gpu",
    "SBATCH_MEM_PER_NODE": "mem",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_TIMELIMIT": "time",
}
GPU_REQUEST = re.compile(r"(?:([A-Za-z][\w.-]*|\d+g\.[\w.+-]+):)?(\d{1,2})")  # MIG: 1g.10gb:1


NEVER, ALWAYS = "HARNESS_SBATCH_NEVER", "HARNESS_SBATCH_ALWAYS"


@dataclass(frozen=True)
class Rules:
    """What a site refuses, and what it wants of each job."""

    never: tuple[str, ...] = ()  # names of options, such as gres and mem
    always: tuple[str, ...] = ()  # options, such as --ntasks=1

    @classmethod
    def of_site(cls, environment: Mapping[str, str] = os.environ) -> "Rules":
        """Those of the environment, which slurm/site.sh exports.

        Raises:
            InputError: if they are no names, or no options.
        """
        never = [name.lstrip("-") for name in environment.get(NEVER, "").split()]
        if wrong := [name for name in never if not re.fullmatch("[a-z][a-z-]+", name)]:
            raise InputError(
                f"{NEVER}: {wrong[0]!r} should be the long name of an option of sbatch, as in "
                '"gres mem"'
            )
        always = environment.get(ALWAYS, "").split()
        if wrong := [word for word in always if not word.startswith("-")]:
            raise InputError(f"{ALWAYS}: {wrong[0]!r} should be an option, as in --ntasks=1")
        return cls(tuple(never), tuple(always))


NO_RULES = Rules()


@dataclass(frozen=True)
class Composed:
    """What is given to sbatch."""

    header: list[str]  # the script's `#SBATCH` lines
    args: list[str]
    unset: list[str]  # variables that would bring back what was replaced


def site_options(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The site's options by their variables, such as SBATCH_ACCOUNT, which sbatch reads itself."""
    return {name: value for name in VARIABLES if (value := environment.get(name))}


def without(site: Mapping[str, str], *groups: Collection[str]) -> dict[str, str]:
    """The site's other options than those of some groups."""
    return {n: v for n, v in site.items() if not any(VARIABLES[n] in group for group in groups)}


def check_gpus(text: str) -> None:
    """Raise unless `text` says how many GPUs of each node, such as 2 or a100:2.

    Raises:
        InputError: one line with the value and the rule.
    """
    found = GPU_REQUEST.fullmatch(text)
    if not found or int(found[2]) > 64:
        raise InputError(
            f"--gpus {text}: should be 0 to 64 of each node, with or without a type: 2 or a100:2"
        )


def compose(
    header: Sequence[str],
    site: Mapping[str, str],
    args: Sequence[str],
    *,
    gpus: str | None = None,
    rules: Rules = NO_RULES,
) -> Composed:
    """What to give to sbatch, so that the user's own options replace the site's and the script's.

    Args:
        header: the script's `#SBATCH` lines.
        site: from `site_options`.
        args: the user's options, apart from `--gpus`.
        gpus: of each node, as `check_gpus` takes it; None to ask as site and script do.
        rules: of the site.

    Raises:
        InputError: if GPUs are wanted in a way that the site refuses.
    """
    args = [_gpu_arg(gpus, site), *args] if gpus else list(args)
    if refused := {*rules.never} & names_in(drop_none(args)) & {*GPUS}:
        raise InputError(
            f"--{min(refused)}: is never sent at this site ({NEVER}); ask for GPUs in its way, "
            "such as by a partition: -- --partition=NAME"
        )
    args = drop([*rules.always, *args], rules.never)
    by_user = _replaced_by(names_in(args))
    of_site = {name for variable in site if (name := VARIABLES[variable]) not in by_user}
    replaced = by_user | _replaced_by(of_site) | {*rules.never}
    return Composed(
        header=[line for each in header if (line := _without(each, replaced))],
        args=args,
        unset=[name for name in site if VARIABLES[name] in {*by_user, *rules.never}],
    )


def _gpu_arg(gpus: str, site: Mapping[str, str]) -> str:
    """Ask for GPUs of each node in the site's way, and of its type where the user names none."""
    if not int(gpus.rpartition(":")[2]):
        return "--gres=none"
    per_node = site.get("SBATCH_GPUS_PER_NODE")
    usual = f"gpu:{per_node}" if per_node else site.get("SBATCH_GRES", "")
    kind = re.search(r"gpu:([^:,]+):\d", usual)
    if kind and ":" not in gpus:
        gpus = f"{kind[1]}:{gpus}"
    return f"--gpus-per-node={gpus}" if per_node else f"--gres=gpu:{gpus}"


def drop_none(args: Iterable[str]) -> list[str]:
    """The arguments without the word that no GPU is wanted."""
    return [arg for arg in args if arg != "--gres=none"]


def names_in(args: Iterable[str]) -> set[str]:
    """The options of GPUS and MEMORY among sbatch's arguments."""
    return {_name(arg) for arg in args} & {*GPUS, *MEMORY}


def drop(args: Iterable[str], names: Collection[str]) -> list[str]:
    """sbatch's arguments without some options and their values."""
    kept: list[str] = []
    is_value = False  # of an option that is dropped, as in `-G 2`
    for arg in args:
        if _name(arg) in names:
            is_value = "=" not in arg and (arg.startswith("--") or len(arg) == 2)
        else:
            if not is_value or arg.startswith("-"):
                kept.append(arg)
            is_value = False
    return kept


def _replaced_by(names: set[str]) -> set[str]:
    return {each for group in (GPUS, MEMORY) if names & {*group} for each in group}


def words_in(line: str) -> list[str]:
    """The options in a `#SBATCH` line, or in a line of options alone."""
    try:
        return shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except ValueError:  # an odd quote, which sbatch will refuse
        return []


def _name(arg: str) -> str:
    """The long name of an option, or empty."""
    return arg[2:].partition("=")[0] if arg.startswith("--") else LETTERS.get(arg[:2], "")


def _without(line: str, names: Collection[str]) -> str:
    """A `#SBATCH` line without some of its options; empty if none is left."""
    words = words_in(line)
    kept = drop(words, names)
    if kept == words:
        return line
    return f"#SBATCH {shlex.join(kept)}" if kept else ""
