"""The resources that a job requests: options of sbatch from three layers.

The layers are the script's header, the site's variables and the user's options. For sbatch, an
option replaces only the same option of an earlier layer: `--gpus-per-node=2` beside a script's
`--gres=gpu:1` gets one GPU without a warning. Here it also replaces other options for the same
resource.
"""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import InputError
from harness.slurm.environment import FLAGS, RETRY_MEMORY

# Options for the same resource.
GPUS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
# Options that a job which continues a run does not repeat.
ONCE = ("dependency", "hold", "begin", "nodes", "time")
LETTERS = {
    "-G": "gpus",
    "-d": "dependency",
    "-H": "hold",
    "-b": "begin",
    "-N": "nodes",
    "-t": "time",
    "-a": "array",
    "-J": "job-name",
    "-o": "output",
    "-W": "wait",
}
# Options that submit sets itself, or that change the meaning of its call.
OWN_OPTIONS = ("array", "job-name", "output", "wait", "parsable", "wrap", "test-only")

# The variables of sbatch for its options, which site.sh exports.
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
    """The options of sbatch that a site refuses, and those that it demands."""

    never: tuple[str, ...] = ()  # names of options, such as gres and mem
    always: tuple[str, ...] = ()  # options, such as --ntasks=1

    @classmethod
    def of_site(cls, environment: Mapping[str, str] = os.environ) -> "Rules":
        """Read the environment, which slurm/site.sh exports.

        Raises:
            InputError: if a value has another form.
        """
        never = [name.lstrip("-") for name in environment.get(NEVER, "").split()]
        if wrong := [name for name in never if not re.fullmatch("[a-z][a-z-]+", name)]:
            raise InputError(
                f"{NEVER}: {wrong[0]!r} should be the long name of an option of sbatch, such as "
                '"gres mem"'
            )
        always = environment.get(ALWAYS, "").split()
        if wrong := [word for word in always if not word.startswith("-")]:
            raise InputError(f"{ALWAYS}: {wrong[0]!r} should be an option, such as --ntasks=1")
        return cls(tuple(never), tuple(always))


NO_RULES = Rules()


@dataclass(frozen=True)
class Composed:
    """The options for sbatch without conflicts."""

    header: list[str]  # the script's `#SBATCH` lines
    args: list[str]
    unset: list[str]  # variables that would bring back replaced options


def site_options(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The site's variables of sbatch, such as SBATCH_ACCOUNT, and their values."""
    return {name: value for name in VARIABLES if (value := environment.get(name))}


def without(site: Mapping[str, str], *groups: Collection[str]) -> dict[str, str]:
    """The site's variables without those for some groups of options."""
    return {n: v for n, v in site.items() if not any(VARIABLES[n] in group for group in groups)}


def compose(
    header: Sequence[str],
    site: Mapping[str, str],
    args: Sequence[str],
    *,
    gpus: str | None = None,
    rules: Rules = NO_RULES,
) -> Composed:
    """Options for sbatch in which the user's options replace the site's and the script's.

    Args:
        header: the script's `#SBATCH` lines.
        site: from `site_options`.
        args: the user's options, apart from `--gpus`.
        gpus: value of `--gpus`, per node; None keeps the request of site or script.
        rules: of the site.

    Raises:
        InputError: if the user's request for GPUs needs an option that the site refuses.
    """
    args = [_gpu_arg(gpus, site), *args] if gpus else list(args)
    requested = names_in(arg for arg in args if arg != "--gres=none")
    if refused := {*rules.never} & requested & {*GPUS}:
        raise InputError(
            f"--{min(refused)}: is never sent at this site ({NEVER}); request GPUs in the site's "
            "way, such as by a partition: -- --partition=NAME"
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
    """The option for this number of GPUs per node, as the site requests them and of its type."""
    if not int(gpus.rpartition(":")[2]):
        return "--gres=none"
    per_node = site.get("SBATCH_GPUS_PER_NODE")
    usual = f"gpu:{per_node}" if per_node else site.get("SBATCH_GRES", "")
    kind = re.search(r"gpu:([^:,]+):\d", usual)
    if kind and ":" not in gpus:
        gpus = f"{kind[1]}:{gpus}"
    return f"--gpus-per-node={gpus}" if per_node else f"--gres=gpu:{gpus}"


def names_in(args: Iterable[str]) -> set[str]:
    """The options of GPUS and MEMORY among arguments of sbatch."""
    return {_name(arg) for arg in args} & {*GPUS, *MEMORY}


def drop(args: Iterable[str], names: Collection[str]) -> list[str]:
    """Arguments of sbatch without some options and their values."""
    kept: list[str] = []
    is_value = False  # of a dropped option, as in `-G 2`
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
    """The options in a line, with or without `#SBATCH`."""
    try:
        return shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except ValueError:  # a quote without its end, which sbatch will refuse
        return []


def _name(arg: str) -> str:
    """The long name of an option, or empty."""
    return arg[2:].partition("=")[0] if arg.startswith("--") else LETTERS.get(arg[:2], "")


def _without(line: str, names: Collection[str]) -> str:
    """A `#SBATCH` line without some options; empty if no option is left."""
    words = words_in(line)
    kept = drop(words, names)
    if kept == words:
        return line
    return f"#SBATCH {shlex.join(kept)}" if kept else ""


# The requests of `harness submit`

MAX_SEEDS = 10_000

SEEDS = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?")
WARNING_S = 90  # before the time limit, by --signal in the scripts
SHORT_S = 300  # a run hardly starts within a shorter time limit


@dataclass(frozen=True)
class Resources:
    """The user's requests; None keeps the request of site or script."""

    gpus: str | None = None  # per node: 2 or a100:2
    nodes: int | None = None
    time: str | None = None
    mem: str | None = None  # per node
    retry_memory: bool = False  # if out of memory, request 1.5 times as much
    flags: tuple[str, ...] = ()  # options of sbatch
    kept: tuple[str, ...] | None = None  # `flags` for a job that continues the run, default: all

    def check(self) -> None:
        """Refuse requests that sbatch would accept wrongly or refuse with an unclear message.

        Raises:
            InputError: one line with the option, its value and the rule.
        """
        if self.gpus is not None:
            match = GPU_REQUEST.fullmatch(self.gpus)
            if not match or int(match[2]) > 64:
                raise InputError(
                    f"--gpus {self.gpus}: should be 0 to 64 per node, with or without a type: "
                    "2 or a100:2"
                )
            if twice := names_in(self.flags) & {*GPUS}:
                raise InputError(f"--{min(twice)}: requests GPUs as --gpus does; give one of them")
        if self.flags and not self.flags[0].startswith("-"):
            raise InputError(
                f"{self.flags[0]}: is neither an option of submit nor, after --, one of sbatch; "
                "submit one job file at a time, or all by --all"
            )
        for flag in self.flags:
            if (name := _name(flag)) in OWN_OPTIONS:
                remedy = "use --seeds" if name == "array" else "leave it out"
                raise InputError(f"{flag}: submit sets --{name} itself; {remedy}")

    def sbatch_args(self) -> list[str]:
        """The options for sbatch, apart from the GPUs', which depend on the site."""
        sizes = {"nodes": self.nodes, "time": self.time, "mem": self.mem}
        args = [f"--{name}={value}" for name, value in sizes.items() if value is not None]
        return [*args, *self.flags]

    @property
    def variables(self) -> dict[str, str]:
        """The variables that the job's script exports."""
        flags = self.flags if self.kept is None else self.kept
        variables = {RETRY_MEMORY: "1" if self.retry_memory else "", FLAGS: shlex.join(flags)}
        return {name: value for name, value in variables.items() if value}


def short_limit(limit_s: float | None) -> str:
    """A warning about a short time limit, else empty."""
    if not limit_s or limit_s >= SHORT_S:  # 0: no limit
        return ""
    left_s = max(0.0, limit_s - WARNING_S)
    return (
        f"a time limit of {limit_s:.0f} s leaves {left_s:.0f} s until the run saves and the job is "
        f"requeued, {WARNING_S} s before its end; give at least --time={SHORT_S // 60}"
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `1-5`, `1,3,7` or `2`, sorted.

    Raises:
        InputError: for any other text, a repeated seed, or more than ten thousand seeds.
    """
    seeds: set[int] = set()
    for part in text.split(","):
        match = SEEDS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InputError(f"--seeds {text}: should be numbers and ranges, such as 1-5 or 1,3,7")
        part_of = range(first, min(last, first + MAX_SEEDS) + 1)  # enough to refuse
        if twice := seeds.intersection(part_of):
            raise InputError(f"--seeds {text}: names seed {min(twice)} twice; give each seed once")
        seeds.update(part_of)
        if len(seeds) > MAX_SEEDS:
            raise InputError(f"--seeds {text}: should be {MAX_SEEDS:,} seeds at most")
    return tuple(sorted(seeds))


def array_spec(seeds: Sequence[int]) -> str:
    """Sorted seeds as a value of `--array`: `1-3,7`."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
