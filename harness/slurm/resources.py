"""The resources that a job requests: sbatch options from three sources.

The sources, from the lowest to the highest priority, are the script's header, the site's variables
and the user's options. sbatch replaces an option only by the same option of a higher source. If a
script sets `--gres=gpu:1` and the user adds `--gpus-per-node=2`, sbatch keeps both options, and the
job gets one GPU, without a warning. `harness submit` removes `--gres` in this example: an option
removes all options for the same resource that come from a source of lower priority.
"""

import itertools
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import InputError
from harness.slurm.environment import FLAGS

NEVER, ALWAYS = "HARNESS_SBATCH_NEVER", "HARNESS_SBATCH_ALWAYS"  # settings of the site
# Names of the options that request GPUs, and of the options that request memory.
GPUS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
MEMORY = ("mem", "mem-per-cpu", "mem-per-gpu")
# A job that continues a run does not repeat these options of the run's previous job: three of them
# apply once, and the number of nodes comes from the run's record.
ONCE = ("dependency", "hold", "begin", "nodes")
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
    "-n": "ntasks",
    "-c": "cpus-per-task",
    "-p": "partition",
    "-A": "account",
    "-q": "qos",
    "-C": "constraint",
    "-L": "licenses",
    "-x": "exclude",
    "-w": "nodelist",
    "-M": "clusters",
}
# Options that `harness submit` sets itself, or that change what sbatch does or prints. Only sbatch
# would read `--clusters`: squeue would not find the job, and scancel would not cancel it.
REMEDIES = {
    "array": "use --seeds",
    "nodes": "use --nodes before --",
    "clusters": "export SLURM_CLUSTERS=NAME instead",
}
OWN_OPTIONS = (*REMEDIES, "job-name", "output", "wait", "parsable", "wrap", "test-only")

# Environment variables that sbatch reads as options; site.sh may export them.
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
GPU_REQUEST = re.compile(r"(?:(\w[\w.+-]*):)?(\d{1,2})")  # 2, 2080ti:2 or, for MIG, 1g.10gb:1
GPU_TYPE = re.compile(r"gpu:(?!\d+(?:,|$))([^:,]+)")


def refused_options(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of the sbatch options that the site refuses, such as gres and mem.

    Raises:
        InputError: if a word in HARNESS_SBATCH_NEVER, such as `-G` or `gres=gpu:1`, can't be the
            long name of an sbatch option, and so would have no effect.
    """
    names = [name.lstrip("-") for name in environment.get(NEVER, "").split()]
    if wrong := [name for name in names if not re.fullmatch("[a-z][a-z-]+", name)]:
        raise InputError(
            f"{NEVER}: {wrong[0]!r} should be the long name of an sbatch option, such as "
            "gres or mem"
        )
    return names


def site_options(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables for sbatch that the site sets, such as SBATCH_ACCOUNT.

    The keys are the names of the variables.
    """
    return {name: value for name in VARIABLES if (value := environment.get(name))}


def compose(
    header: Sequence[str],
    args: Sequence[str],
    *,
    gpus: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> list[str]:
    """Combine options for sbatch; the user's options replace the site's and the script's.

    Args:
        header: the options in the script's `#SBATCH` lines.
        args: the user's options, apart from `--gpus`.
        gpus: the value of `--gpus`, per node; if None, the site's or the script's request remains.
        environment: the site's variables for sbatch, with HARNESS_SBATCH_NEVER and
            HARNESS_SBATCH_ALWAYS.

    Raises:
        InputError: if the user's request for GPUs needs an option that the site refuses, or if
            HARNESS_SBATCH_NEVER is invalid.
    """
    site, never = site_options(environment), refused_options(environment)
    args = [_gpu_arg(gpus, site, header), *args] if gpus else args
    requested = names_of(arg for arg in args if arg != "--gres=none")
    if refused := {*never} & requested & {*GPUS}:
        raise InputError(
            f"--{min(refused)}: is refused by this site ({NEVER}); request GPUs as the "
            "site requires, for example through a partition: append `-- --partition=NAME`"
        )
    if "--gres=none" in args:  # Slurm refuses memory per GPU without a GPU
        site.pop("SBATCH_MEM_PER_GPU", None)
    of_site = [f"--{VARIABLES[name]}={value}" for name, value in site.items()]
    always = environment.get(ALWAYS, "").split()
    # With --ntasks=1, sbatch would request only one node. The harness needs a task on each node.
    nodes = [arg.removeprefix("--nodes=") for arg in args if arg.startswith("--nodes=")]
    if nodes and "ntasks" in names_of(always):
        always.append(f"--ntasks={nodes[-1]}")
    return drop(override(override(header, of_site), [*always, *args]), never)


def _gpu_arg(gpus: str, site: Mapping[str, str], header: Sequence[str]) -> str:
    """Return the sbatch option that requests `gpus` on each node.

    The option is `--gpus-per-node` if the site sets SBATCH_GPUS_PER_NODE, else `--gres`. If `gpus`
    has no GPU type, the option requests the type in the site's variables or else in `header`.
    """
    if not int(gpus.rpartition(":")[2]):
        return "--gres=none"
    per_node = site.get("SBATCH_GPUS_PER_NODE")
    of_header = next((arg for arg in header if arg.startswith("--gres=")), "")
    usual = f"gpu:{per_node}" if per_node else site.get("SBATCH_GRES", of_header)
    kind = GPU_TYPE.search(usual)
    if kind and ":" not in gpus:
        gpus = f"{kind[1]}:{gpus}"
    return f"--gpus-per-node={gpus}" if per_node else f"--gres=gpu:{gpus}"


def names_of(args: Iterable[str]) -> set[str]:
    """Return the long names of the options among sbatch arguments."""
    return {*map(option_name, args)} - {""}


def override(options: Iterable[str], by: Sequence[str]) -> list[str]:
    """Return `options` without those that `by` replaces, followed by the options in `by`.

    An option in `by` replaces all options for the same resource in `options`. For example,
    `--gpus-per-node` replaces `--gres`. Otherwise Slurm would obey both options.
    """
    names = names_of(by)
    replaced = {each for group in (GPUS, MEMORY) if names & {*group} for each in group}
    return [*drop(options, names | replaced), *by]


def drop(args: Iterable[str], names: Collection[str]) -> list[str]:
    """Return sbatch arguments without the options `names` and their values."""
    kept: list[str] = []
    is_value = False  # whether the argument is the value of a dropped option, as in `-G 2`
    for arg in args:
        if option_name(arg) in names:
            is_value = "=" not in arg and (arg.startswith("--") or len(arg) == 2)
        else:
            if not is_value or arg.startswith("-"):
                kept.append(arg)
            is_value = False
    return kept


def option_name(arg: str) -> str:
    """Return an option's long name, such as `gpus` for `-G2`.

    The name is empty if `arg` is not an option, or if its option letter is unknown.
    """
    return arg[2:].partition("=")[0] if arg.startswith("--") else LETTERS.get(arg[:2], "")


# The requests of `harness submit`

MAX_SEEDS = 10_000

SEEDS = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?")
WARNING_S = 90  # seconds from Slurm's warning to the time limit; set by --signal in the scripts
SHORT_S = 300  # a time limit of a job below SHORT_S seconds causes a warning


@dataclass(frozen=True)
class Resources:
    """The user's requests; if a field is None, the value of site.sh or of the script remains."""

    gpus: str | None = None  # per node: 2 or a100:2
    nodes: int | None = None
    time: str | None = None
    mem: str | None = None  # per node
    flags: tuple[str, ...] = ()  # sbatch options

    def check(self) -> None:
        """Refuse requests that sbatch would misinterpret, or would refuse with an unclear message.

        Raises:
            InputError: if a request is refused; the message states option, value and reason.
        """
        if self.gpus is not None:
            match = GPU_REQUEST.fullmatch(self.gpus)
            if not match or int(match[2]) > 64:
                raise InputError(
                    f"--gpus {self.gpus}: should be the number of GPUs per node, 0 to 64, "
                    "or their type and number, such as a100:2"
                )
            if twice := names_of(self.flags) & {*GPUS}:
                raise InputError(f"--gpus, --{min(twice)}: both request GPUs; use only one of them")
        # Refuse the first word, a word after `--name=value`, and each job file or script. Another
        # word may be the value of the option before it.
        for before, word in itertools.pairwise(["--=", *self.flags]):
            is_stray = re.match("--.*=", before) or word.endswith((".toml", ".sh"))
            if is_stray and not word.startswith("-"):
                raise InputError(
                    f"{word}: should be an sbatch option, such as --partition=gpu; to submit "
                    "several job files, call harness submit once for each, or use --all"
                )
        for flag in self.flags:
            if (name := option_name(flag)) in OWN_OPTIONS:
                remedy = REMEDIES.get(name, "leave this option out")
                raise InputError(f"{flag}: can't be used with harness submit; {remedy}")
            # sbatch does not refuse these texts: without accounting, it accepts any account.
            if not flag.isprintable() or (name in ("account", "partition", "qos") and ";" in flag):
                raise InputError(f"{flag!r}: should contain no control character and no ;")

    def sbatch_args(self) -> list[str]:
        """Return the options for sbatch, except those for GPUs, which depend on the site."""
        sizes = {"nodes": self.nodes, "time": self.time, "mem": self.mem}
        args = [f"--{name}={value}" for name, value in sizes.items() if value is not None]
        return [*args, *self.flags]

    @property
    def variables(self) -> dict[str, str]:
        """Variables that the job's script exports, so that a later job gets the same `flags`."""
        kept = shlex.join(drop(self.flags, ONCE))
        return {FLAGS: kept} if kept else {}


def short_limit(limit_s: float | None) -> str:
    """Return a warning if a time limit is short; else an empty text."""
    if not limit_s or limit_s >= SHORT_S:  # 0 means no limit
        return ""
    left_s = max(0.0, limit_s - WARNING_S)
    return (
        f"with a time limit of {limit_s:.0f} s, the run saves and the job is requeued after only "
        f"{left_s:.0f} s, because Slurm warns the job {WARNING_S} s before the limit; give at "
        f"least --time={SHORT_S // 60}"
    )


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the sorted seeds of a text such as `1-5`, `1,3,7` or `2`.

    Raises:
        InputError: if the text is malformed, repeats a seed, or has more than ten thousand seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = SEEDS.fullmatch(part.strip())
        if not match:
            raise InputError(f"--seeds {text}: should be numbers and ranges, such as 1-5 or 1,3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise InputError(
                f"--seeds {text}: a range should begin with its smaller number: {last}-{first}"
            )
        seeds += range(first, min(last, first + MAX_SEEDS) + 1)
        if len(seeds) > MAX_SEEDS:
            raise InputError(f"--seeds {text}: should be {MAX_SEEDS:,} seeds at most")
    if twice := {seed for seed, count in Counter(seeds).items() if count > 1}:
        raise InputError(f"--seeds {text}: contains seed {min(twice)} twice; give each seed once")
    return tuple(sorted(seeds))


def array_spec(seeds: Sequence[int]) -> str:
    """Return sorted seeds as a value of `--array`, such as `1-3,7`."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
