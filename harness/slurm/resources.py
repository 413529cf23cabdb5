"""A job's requests to Slurm: GPUs, nodes, time, seeds; checked before sbatch is called."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import InputError
from harness.slurm.environment import FLAGS, RETRY_MEMORY
from harness.slurm.sbatch_options import GPUS, check_gpus, names_in

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
            check_gpus(self.gpus)
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
