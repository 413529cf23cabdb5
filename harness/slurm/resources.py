"""What a job asks Slurm for: sbatch's options in layers, and the requests of `submit`.

The layers are the script's header, the site's variables and the user's options. sbatch replaces an
option by the same one of a later layer only. `--gres=gpu:1` in a script stays
beside `--gpus-per-node=2`, and the job gets one GPU without a word. Here an option replaces
whatever asks for the same thing in another way.
"""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import InputError
from harness.slurm.environment import FLAGS, RETRY_MEMORY

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
        gpus: of each node, as `--gpus` takes it; None to ask as site and script do.
        rules: of the site.

    Raises:
        InputError: if GPUs are wanted in a way that the site refuses.
    """
    args = [_gpu_arg(gpus, site), *args] if gpus else list(args)
    asked = names_in(arg for arg in args if arg != "--gres=none")
    if refused := {*rules.never} & asked & {*GPUS}:
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


# The requests of `harness submit`

MAX_SEEDS = 10_000

SEEDS = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?")
WARNING_S = 90  # before the time limit, as the scripts ask for it by --signal
SHORT_S = 300  # a time limit below it hardly lets a run start
# Flags of sbatch that submit sets itself: the name, and its letter.
OWN_FLAGS = {
    "array": "a", "job-name": "J", "output": "o", "wait": "W", "parsable": "", "wrap": "",
    "test-only": "",
}  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """Requests to sbatch that override the script's header; None keeps the header's."""

    gpus: str | None = None  # of each node: 2 or a100:2
    nodes: int | None = None
    time: str | None = None
    mem: str | None = None  # of each node
    retry_memory: bool = False  # half as much again after a kill for want of it
    flags: tuple[str, ...] = ()  # sbatch's own, as they are
    kept: tuple[str, ...] | None = None  # those of `flags` that a job which goes on asks for too

    def check(self) -> None:
        """Raise for what sbatch would not refuse, or not in words of this project.

        Raises:
            InputError: one line with the option, its value and the rule.
        """
        if self.gpus is not None:
            found = GPU_REQUEST.fullmatch(self.gpus)
            if not found or int(found[2]) > 64:
                raise InputError(
                    f"--gpus {self.gpus}: should be 0 to 64 of each node, with or without a type: "
                    "2 or a100:2"
                )
            if twice := names_in(self.flags) & {*GPUS}:
                raise InputError(f"--{min(twice)}: asks for GPUs, and so does --gpus; give one")
        may_be_value = False  # of the flag before it, as in `-C a100`
        for flag in self.flags:
            if not flag.startswith("-"):
                if not may_be_value:
                    raise InputError(
                        f"{flag}: is neither an option of submit nor, after --, a flag of sbatch; "
                        "one job file is submitted at a time, or all by --all"
                    )
                may_be_value = False
                continue
            may_be_value = "=" not in flag
            name = flag.lstrip("-").partition("=")[0]
            for own, letter in OWN_FLAGS.items():
                long = flag.startswith("--") and len(name) > 2 and own.startswith(name)
                if long or (letter and not flag.startswith("--") and name.startswith(letter)):
                    raise InputError(
                        f"{flag}: is what submit decides itself, leave it out"
                        + (" and give --seeds" if own == "array" else "")
                    )

    def sbatch_args(self) -> list[str]:
        """The flags for sbatch, apart from the one for GPUs, which depends on the site."""
        sizes = {"nodes": self.nodes, "time": self.time, "mem": self.mem}
        args = [f"--{name}={value}" for name, value in sizes.items() if value is not None]
        return [*args, *self.flags]

    @property
    def variables(self) -> dict[str, str]:
        """What the job's script exports for them."""
        flags = self.flags if self.kept is None else self.kept
        found = {RETRY_MEMORY: "1" if self.retry_memory else "", FLAGS: shlex.join(flags)}
        return {name: value for name, value in found.items() if value}


def short_limit(limit_s: float | None) -> str:
    """What to do about a time limit near the warning before it; empty if there is time enough."""
    if not limit_s or limit_s >= SHORT_S:  # 0: no limit
        return ""
    left_s = max(0.0, limit_s - WARNING_S)
    return (
        f"a time limit of {limit_s:.0f} s leaves {left_s:.0f} s before the warning, {WARNING_S} s "
        "before the end, by which a run saves and its job starts again; starts without a step end "
        f"it: give at least --time={SHORT_S // 60}"
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `1-5`, `1,3,7` or `2`, sorted.

    Raises:
        InputError: for anything else, one that stands there twice, or over ten thousand of them.
    """
    seeds: set[int] = set()
    for part in text.split(","):
        match = SEEDS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InputError(f"--seeds {text}: should be numbers and ranges, such as 1-5 or 1,3,7")
        part_of = range(first, min(last, first + MAX_SEEDS) + 1)  # of more, enough to refuse
        if twice := seeds.intersection(part_of):
            raise InputError(f"--seeds {text}: names seed {min(twice)} twice; give each seed once")
        seeds.update(part_of)
        if len(seeds) > MAX_SEEDS:
            raise InputError(f"--seeds {text}: are too many, at most {MAX_SEEDS:,}")
    return tuple(sorted(seeds))


def array_spec(seeds: Sequence[int]) -> str:
    """Seeds in order as `--array` takes them, consecutive ones as ranges: `1-3,7`."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
