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
LETTERS = {"-G": "gpus"}

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
    num_nodes: int = 1,
) -> Composed:
    """What to give to sbatch, so that the user's own options replace the site's and the script's.

    Args:
        header: the script's `#SBATCH` lines.
        site: from `site_options`.
        args: the user's options, apart from `--gpus`.
        gpus: of each node, as `check_gpus` takes it; None to ask as site and script do.
        num_nodes: that are asked for, 1 if nothing is said.
    """
    others = _other_gres(site, header)
    usual = _usual_request(site, header)
    args = [*gpu_args(gpus, num_nodes, usual, others=others), *args] if gpus else list(args)
    named = names_in(args)
    if others and named & {*GPUS} and "gres" not in named:  # what replaces GPUs spares the others
        args.insert(0, f"--gres={others}")
    by_user = _replaced_by(named)
    of_site = {name for variable in site if (name := VARIABLES[variable]) not in by_user}
    replaced = by_user | _replaced_by(of_site)
    return Composed(
        header=[line for each in header if (line := _without(each, replaced))],
        args=args,
        unset=[variable for variable in site if VARIABLES[variable] in by_user],
    )


def gpu_args(gpus: str, num_nodes: int, usual: tuple[str, str], *, others: str) -> list[str]:
    """Ask for GPUs of each node by the usual option, and of its type where the user names none.

    Args:
        gpus: as `check_gpus` takes it.
        num_nodes: that are asked for.
        usual: the option, and the type.
        others: what the same `--gres` asks for beside GPUs.
    """
    kind, _, count = gpus.rpartition(":")
    if not int(count):
        return [f"--gres={others or 'none'}"]
    way, usual_kind = usual
    kind = kind or usual_kind
    amount = f"{kind}:" if kind else ""
    if way == "gres":
        return [f"--gres=gpu:{amount}{count}{',' if others else ''}{others}"]
    if way == "gpus":  # of the whole job; without --nodes Slurm may spread them
        return [f"--gpus={amount}{int(count) * num_nodes}", f"--nodes={num_nodes}"]
    one_task = ["--ntasks-per-node=1"] if way == "gpus-per-task" else []
    return [f"--{way}={amount}{count}", *one_task]


def split_gres(value: str) -> tuple[str, str]:
    """What a `--gres` asks of GPUs, and what else: `lscratch:50` of the node's disk."""
    parts = [part for part in value.split(",") if part not in ("", "none")]
    gpus = [part for part in parts if part.partition(":")[0] == "gpu"]
    return (gpus or [""])[0], ",".join(part for part in parts if part not in gpus)


def _other_gres(site: Mapping[str, str], header: Sequence[str]) -> str:
    asked = _by_name(site).get("gres") or _script_options(header).get("gres", "")
    return split_gres(asked)[1]


def _by_name(site: Mapping[str, str]) -> dict[str, str]:
    return {VARIABLES[name]: value for name, value in site.items()}


def _script_options(header: Sequence[str]) -> dict[str, str]:
    return dict(option for line in header for option in _options(words_of(line)))


def _usual_request(site: Mapping[str, str], header: Sequence[str]) -> tuple[str, str]:
    """The option by which the site, or else the script, asks for GPUs, and the type it names."""
    for options in (_by_name(site), _script_options(header)):
        for name in reversed(GPUS):
            value = options.get(name, "")
            value = split_gres(value)[0] if name == "gres" else value.partition(",")[0]
            if value not in ("", "none", "0"):
                kinds = [part for part in value.split(":") if part != "gpu" and not part.isdigit()]
                return name, (kinds or [""])[0]
    return "gres", ""


def names_in(args: Iterable[str]) -> set[str]:
    """The options of GPUS and MEMORY among sbatch's arguments; sbatch takes them abbreviated."""
    return {name for name, _ in _options(args)} & {*GPUS, *MEMORY}


def drop(args: Iterable[str], names: Collection[str]) -> list[str]:
    """sbatch's arguments without some options and their values."""
    kept: list[str] = []
    is_value = False  # of an option that is dropped, as in `-G 2`
    for arg in args:
        if {name for name, _ in _options([arg])} & {*names}:
            is_value = "=" not in arg and (arg.startswith("--") or len(arg) == 2)
        else:
            if not is_value or arg.startswith("-"):
                kept.append(arg)
            is_value = False
    return kept


def _replaced_by(names: set[str]) -> set[str]:
    return {each for group in (GPUS, MEMORY) if names & {*group} for each in group}


def words_of(line: str) -> list[str]:
    """The options in a `#SBATCH` line."""
    try:
        return shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except ValueError:  # an odd quote, which sbatch will refuse
        return []


def _options(args: Iterable[str]) -> list[tuple[str, str]]:
    """The long names of options and their values, where those stand in the same word."""
    found = []
    for arg in args:
        name, _, value = arg.partition("=")
        if name.startswith("--"):
            found.append((_whole(name[2:]), value))
        elif name[:2] in LETTERS:
            found.append((LETTERS[name[:2]], arg[2:]))
    return found


def _whole(name: str) -> str:
    """The option that an abbreviation means, if it is one of ours."""
    if name in (*GPUS, *MEMORY):
        return name
    fitting = [each for each in (*GPUS, *MEMORY) if len(name) > 2 and each.startswith(name)]
    return fitting[0] if len(fitting) == 1 else name


def _without(line: str, names: Collection[str]) -> str:
    """A `#SBATCH` line without some of its options; empty if none is left."""
    words = words_of(line)
    kept = drop(words, names)
    if kept == words:
        return line
    return f"#SBATCH {shlex.join(kept)}" if kept else ""
