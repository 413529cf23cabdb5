"""A job's requests to Slurm: GPUs, nodes, time, seeds; checked before sbatch is called."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import InputError
from harness.slurm.environment import RETRY_MEMORY
from harness.slurm.sbatch_options import GPUS, check_gpus, names_in

MAX_SEEDS = 10_000

MEMORY = re.compile(r"\d{1,9}[KMGTkmgt]?")
TIME = re.compile(r"\d{1,7}(:\d{1,4}){0,2}|\d{1,5}-\d{1,4}(:\d{1,4}){0,2}")
PLAIN = re.compile(r"[^\x00-\x1f\x7f;'\"`\\]*")  # a value of sbatch's
SEEDS = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?")
NODES = re.compile(r"(?:-N|--(?:nodes|node|nod)(?:=|$))(?P<value>.*)")  # sbatch's own flag
JOB_ID = re.compile(r"\d+(_\d+)?")

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
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None  # nodes
    mail_type: str | None = None
    at_most: int | None = None  # tasks of an array at a time
    retry_memory: bool = False  # half as much again after a kill for want of it
    after: str | None = None  # the id of a job that must succeed first
    flags: tuple[str, ...] = ()  # sbatch's own, as they are

    def check(self) -> None:
        """Raise unless sbatch can accept all of it.

        Raises:
            InputError: one line with the option, its value and the rule.
        """
        if self.gpus is not None:
            check_gpus(self.gpus)
        if self.nodes is not None and not 1 <= self.nodes <= 1000:
            raise InputError(f"--nodes {self.nodes}: should be 1 to 1000")
        if self.time is not None and not TIME.fullmatch(self.time):
            raise InputError(
                f"--time {self.time}: should be minutes, hours:minutes:seconds or days-hours, such "
                "as 30, 2:00:00 or 1-12"
            )
        if self.after is not None and not JOB_ID.fullmatch(self.after):
            raise InputError(f"--after {self.after}: should be a job's id, such as 1234 or 1234_5")
        if self.at_most is not None and self.at_most < 1:
            raise InputError(f"--at-most {self.at_most}: should be 1 or more seeds at a time")
        if self.mem is not None and not MEMORY.fullmatch(self.mem):
            raise InputError(f"--mem {self.mem}: should be a number and a unit, such as 16G")
        for name, value in self._named():
            if not value.strip():
                raise InputError(f"--{name} {value!r}: should have a value; leave the option out")
            if not PLAIN.fullmatch(value):
                raise InputError(
                    f"--{name} {value!r}: should hold no control character, quote or ;, which no "
                    "name in Slurm has"
                )
        self._check_flags()

    def _check_flags(self) -> None:
        if self.gpus is not None and (twice := names_in(self.flags) & {*GPUS}):
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
            if self.after is not None and flag.startswith(("-d", "--dep")):
                raise InputError(f"{flag}: says when to start, and so does --after; give one")
            name = flag.lstrip("-").partition("=")[0]
            for own, letter in OWN_FLAGS.items():
                long = flag.startswith("--") and len(name) > 2 and own.startswith(name)
                if long or (letter and not flag.startswith("--") and name.startswith(letter)):
                    raise InputError(
                        f"{flag}: is what submit decides itself, leave it out"
                        + (" and give --seeds" if own == "array" else "")
                    )

    def check_retry(self, *, one_run: bool) -> None:
        """Refuse a retry where the end of a job does not say what was killed.

        Raises:
            InputError: with the remedy.
        """
        if self.retry_memory and not one_run:
            raise InputError(
                "--retry-memory: is for jobs of one run each; leave it out, and give more --mem"
            )

    def sbatch_args(self) -> list[str]:
        """The flags for sbatch, apart from the one for GPUs, which depends on the site."""
        sizes = {"nodes": self.nodes, "time": self.time, "mem": self.mem}
        args = [f"--{name}={value}" for name, value in sizes.items() if value is not None]
        args += self.site_args()
        if self.after is not None:
            # Without the second flag the job would wait forever if the other one fails.
            args += [f"--dependency=afterok:{self.after}", "--kill-on-invalid-dep=yes"]
        return args + list(self.flags)

    @property
    def variables(self) -> dict[str, str]:
        """What the job's script exports for them."""
        return {RETRY_MEMORY: "1"} if self.retry_memory else {}

    def site_args(self) -> list[str]:
        """The flags that all jobs of this user need."""
        return [f"--{name}={value}" for name, value in self._named()]

    def _named(self) -> list[tuple[str, str]]:
        names = ("partition", "account", "qos", "constraint", "exclude", "mail_type")
        values = [(name.replace("_", "-"), getattr(self, name)) for name in names]
        return [(name, value) for name, value in values if value is not None]


def max_nodes(args: Sequence[str]) -> int:
    """The most nodes that sbatch would give a job with these flags; the last flag counts."""
    num_nodes = 1
    for flag, after in itertools.zip_longest(args, args[1:], fillvalue=""):
        match = NODES.fullmatch(flag)
        if match and (value := match["value"] or after):
            counts = re.findall(r"(\d+)([kK]?)", value)
            num_nodes = max((int(n) * (1024 if k else 1) for n, k in counts), default=num_nodes)
    return num_nodes


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
