"""A job for sbatch as text: its script, its command, the paths of its runs and logs.

Nothing here writes or calls anything.
"""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from glob import escape
from pathlib import Path

from harness.errors import InputError
from harness.job.keys import Job
from harness.job.search import SearchSpec
from harness.slurm import client
from harness.slurm.environment import FIRST_JOB
from harness.slurm.resources import (
    GPUS,
    MEMORY,
    NO_RULES,
    VARIABLES,
    Resources,
    Rules,
    array_spec,
    compose,
    drop,
    without,
)

COMPARISON, SEARCH = "compare", "tune"
DEFAULT_ARRAY_SIZE = 1001  # Slurm's MaxArraySize, where it is not told
OF_OWN_NETWORKS = "lstm"  # the five have the same header but for their names

# The locations of data and caches, exported to the job whatever sbatch's --export says; and words.
CARRIED = ("HARNESS_DATA", "XDG_CACHE_HOME", "KERAS_HOME")
CARRIED_AS_IT_IS = ("HARNESS_TRUST_CODE", FIRST_JOB)


@dataclass(frozen=True)
class Layout:
    """Where a job's code and runs are."""

    runs: Path  # absolute
    snapshot: Path  # the code when the job runs
    code: Path  # the same code now
    variables: Mapping[str, str]  # that the script exports
    site: Mapping[str, str] = field(default_factory=dict)
    array_size: int = DEFAULT_ARRAY_SIZE  # the site's MaxArraySize: indices are below it
    rules: Rules = NO_RULES  # of the site
    first_look_s: float = 0.0  # until Slurm has considered a new job


@dataclass(frozen=True)
class SbatchJob:
    """One job for sbatch, complete, with nothing written yet."""

    name: str
    layout: Layout
    folder: Path  # of the submission
    script: str
    args: tuple[str, ...]  # sbatch's, without the script
    unset: tuple[str, ...]  # variables that sbatch may not see
    architecture: str | None = None  # None for a comparison
    seeds: tuple[int, ...] = ()
    indices: tuple[int, ...] = ()  # of an array's tasks, one per seed; empty if it is none
    is_packed: bool = False  # the seeds side by side in one job
    job_file: Path | None = None
    job_toml: str = ""
    resumes: Path | None = None  # the folder of the run that it goes on with

    @property
    def command(self) -> list[str]:
        """The sbatch command."""
        return [*client.sbatch_args(self.unset), *self.args, str(self.folder / "job.sh")]

    @property
    def asks(self) -> list[str]:
        """What it asks sbatch for, without its names."""
        names = ("--parsable", "--job-name=", "--output=")
        return [arg for arg in self.args if not arg.startswith(names)]

    def run_folders(self, job_id: str) -> list[Path]:
        """The folders of the runs, one per seed."""
        if self.resumes:
            return [self.resumes]
        folder = self.layout.runs / self.name
        return [folder / f"slurm-{job_id}{part}" for part in self._parts()] if self.seeds else []

    def logs(self, job_id: str) -> list[Path]:
        """Their log files."""
        folder, slurm = self.layout.runs / "logs", "slurm-" if self.is_packed else ""
        return [folder / f"{self.name}-{slurm}{job_id}{part}.out" for part in self._parts()]

    def record(self, job_id: str) -> Path:
        """The path of the submission's record."""
        return submissions(self.layout.runs) / f"{job_id}.json"

    def _parts(self) -> list[str]:
        if self.indices:
            return [f"_{index}" for index in self.indices]
        return [f"-seed{seed}" for seed in self.seeds] if self.is_packed else [""]


def _indices(seeds: tuple[int, ...], array_size: int) -> tuple[tuple[int, ...], dict[str, str]]:
    """The indices of an array, and what its script exports for them.

    A seed is its own index unless the site's indices end before it; then the script lists them.

    Raises:
        InputError: if an array of this site does not hold so many.
    """
    if len(seeds) < 2:
        return (), {}
    if len(seeds) >= array_size:
        raise InputError(
            f"--seeds: are {len(seeds):,}, and MaxArraySize of this site is {array_size:,}, so an "
            f"array holds {max(0, array_size - 1):,} at most; give --pack, or submit fewer at once"
        )
    if max(seeds) < array_size:
        return seeds, {}
    return tuple(range(1, len(seeds) + 1)), {"HARNESS_ARRAY_SEEDS": " ".join(map(str, seeds))}


@dataclass(frozen=True)
class Wanted:
    """A job that is asked for: a training or a search, or one that goes on with either."""

    job: Job | SearchSpec
    resources: Resources
    seeds: tuple[int, ...] | None = None  # several make an array; None keeps the job's own
    pack: bool = False  # one job trains all seeds at the same time instead
    resumes: Path | None = None  # the folder of a run or sweep that it goes on with, absolute
    is_begun: bool = True  # otherwise the folder is only named so far


def read_header(code: Path, name: str) -> list[str]:
    """The `#SBATCH` lines of one of the project's own scripts, a site's edits included.

    Raises:
        InputError: if there is no such script.
    """
    path = code / "slurm" / f"{name}.sh"
    try:
        # A site's comments may be in any encoding; the job's script has the same bytes.
        lines = path.read_text("utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise InputError(
            f"{path}: can't be read ({error.strerror}), and has the #SBATCH lines for {name}; "
            "restore it from git"
        ) from None
    header = []
    for line in lines:
        if line.strip() and not line.startswith("#"):
            break  # sbatch stops here too
        if line.startswith("#SBATCH"):
            header.append(line)
    return header


def render_script(
    header: Sequence[str], variables: Mapping[str, str], call: Sequence[str | Path]
) -> str:
    """The job script: header, variables, and the call of `supervise`."""
    exports = {name: f"export {name}={shlex.quote(value)}" for name, value in variables.items()}
    lines = [
        "#!/usr/bin/env bash",
        *header,
        "",
        "# Written by harness submit: the code, the job and the runs as they were then.",
        *(exports.pop(name) for name in ("HARNESS_HOME", "HARNESS_SNAPSHOT")),
        'source "$HARNESS_HOME/slurm/common.sh"',
        "# These replace what slurm/site.sh says; it alone knows the environment of a container.",
        "[[ ${#HARNESS_CONTAINER[@]} != 0 ]] || " + exports.pop("HARNESS_VENV"),
        *exports.values(),
        shlex.join(map(str, call)),
    ]
    return "\n".join(lines) + "\n"


def job_variables(
    project: Path, snapshot: Path, runs: Path, *, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What the job's script exports: code, environment, runs, data and caches."""
    carried = {
        name: str(Path(environment[name]).absolute()) for name in CARRIED if environment.get(name)
    } | {name: environment[name] for name in CARRIED_AS_IT_IS if environment.get(name)}
    return {
        "HARNESS_HOME": str(snapshot),
        "HARNESS_VENV": str(job_environment(project, environment)),
        "HARNESS_RUNS": str(runs),
        "HARNESS_SNAPSHOT": "1",
        **carried,
    }


def job_environment(project: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """The Python environment of a job: HARNESS_VENV, the current one, or .venv."""
    if named := environment.get("HARNESS_VENV"):
        return project / named  # relative to the project, as in the scripts
    prefix = Path(sys.prefix)
    # A conda environment does not look like a virtual one.
    if sys.prefix != sys.base_prefix or (prefix / "bin" / "harness").exists():
        return prefix
    return project / ".venv"


def script_of(job: Job | SearchSpec) -> str:
    """The name of the script in `slurm/` that runs a job."""
    if isinstance(job, SearchSpec):
        return SEARCH
    return OF_OWN_NETWORKS if job.model.is_own else job.model.architecture


def job_submission(wanted: Wanted, layout: Layout) -> SbatchJob:
    """A job for sbatch: one run, an array with one seed per task, or a search, without seeds.

    Raises:
        InputError: if an array of this site does not hold so many seeds.
    """
    job, seeds, resources = wanted.job, wanted.seeds or (), wanted.resources
    is_search = isinstance(job, SearchSpec)
    single = job.job if isinstance(job, SearchSpec) else job
    folder = _new_folder(layout.runs, job.name)
    # Never job.toml: that name marks a run's folder.
    toml = folder / f"{job.name}{'_' if job.name == 'job' else ''}.toml"
    indices, listed = ((), {}) if wanted.pack else _indices(seeds, layout.array_size)
    composed = compose(
        read_header(layout.code, script_of(job)),
        layout.site,
        resources.sbatch_args(),
        gpus=resources.gpus,
        rules=layout.rules,
    )
    args = composed.args
    call: list[str | Path] = ["supervise", "tune" if is_search else "train", toml]
    if wanted.resumes and not wanted.is_begun:
        call += ["--run-id", wanted.resumes.name, "--runs", wanted.resumes.parents[1]]
    elif wanted.resumes:
        call = ["supervise", "resume", "sweep" if is_search else "run", wanted.resumes]
    elif indices:
        args.insert(0, f"--array={array_spec(indices)}")
    elif seeds:
        call += ["--seeds", array_spec(seeds)] if wanted.pack else ["--seed", str(seeds[0])]
    return SbatchJob(
        name=job.name,
        architecture=single.model.architecture,
        seeds=seeds or (single.train.seed,),
        indices=indices,
        is_packed=bool(seeds) and wanted.pack,
        layout=layout,
        folder=folder,
        script=render_script(
            composed.header, {**layout.variables, **listed, **resources.variables}, call
        ),
        job_file=None if wanted.resumes and wanted.is_begun else toml,
        job_toml=job.to_toml(),
        args=_sbatch_args(job.name, layout.runs, args, is_array=bool(indices)),
        unset=tuple(composed.unset),
        resumes=wanted.resumes,
    )


def comparison_submission(
    trainings: Mapping[str, SbatchJob], resources: Resources, layout: Layout
) -> SbatchJob:
    """The comparison, which starts when all trainings have succeeded or failed.

    Args:
        trainings: by their jobs' ids.
        resources: their flags apply here too.
    """
    # The job expands them, since only then it is known which runs were started.
    patterns = [
        f"{escape(str(layout.runs / submission.name))}/slurm-{job_id}{_any_part(submission)}"
        for job_id, submission in trainings.items()
    ]
    # What is asked for the trainings' GPUs and memory is not for this job.
    site = without(layout.site, GPUS, MEMORY)
    flags = drop(resources.flags, (*GPUS, *MEMORY))
    args = [*flags, f"--dependency=afterany:{':'.join(trainings)}"]
    composed = compose(read_header(layout.code, COMPARISON), site, args, rules=layout.rules)
    return SbatchJob(
        name=COMPARISON,
        layout=layout,
        folder=_new_folder(layout.runs, COMPARISON),
        script=render_script(
            composed.header, layout.variables, ["supervise", "compare", *patterns]
        ),
        args=_sbatch_args(COMPARISON, layout.runs, composed.args, is_array=False),
        unset=tuple(name for name in layout.site if VARIABLES[name] in (*GPUS, *MEMORY)),
    )


def _any_part(submission: SbatchJob) -> str:
    return "_*" if submission.indices else "-seed*" if submission.is_packed else ""


def _new_folder(runs: Path, name: str) -> Path:
    # To the microsecond: a shell's loop can submit several in a second.
    return submissions(runs) / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{name}"


def _sbatch_args(name: str, runs: Path, args: Sequence[str], *, is_array: bool) -> tuple[str, ...]:
    logs = str(runs / "logs").replace("%", "%%")
    log = f"{logs}/%x-{'%A_%a' if is_array else '%j'}.out"
    return ("--parsable", f"--job-name={name}", f"--output={log}", *args)


def submissions(runs: Path) -> Path:
    """The folder of submissions and code snapshots, next to the runs."""
    return runs / ".submissions"
