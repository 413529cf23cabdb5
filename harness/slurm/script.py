"""Compose a job for sbatch: its script, the command, and the paths of its runs and logs.

This module writes no file and calls no program.
"""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from glob import escape
from pathlib import Path

from harness.errors import InputError
from harness.job.keys import Job
from harness.job.search import SearchSpec
from harness.slurm import client
from harness.slurm.environment import ARRAY_SEEDS, FIRST_JOB
from harness.slurm.resources import (
    GPUS,
    MEMORY,
    VARIABLES,
    Resources,
    array_spec,
    compose,
    drop,
    site_options,
)

COMPARISON, SEARCH = "compare", "tune"
DEFAULT_ARRAY_SIZE = 1001  # default of Slurm's MaxArraySize
# Jobs with custom networks use the header of this script. The headers of all scripts that train
# differ only in the job's name.
OF_CUSTOM_NETWORKS = "lstm"

# The job's script exports these variables, because sbatch --export=NONE passes no variables on.
FOLDERS = ("HARNESS_DATA", "XDG_CACHE_HOME", "KERAS_HOME")
OTHERS = ("HARNESS_TRUST_CODE", FIRST_JOB)


@dataclass(frozen=True)
class Wanted:
    """A request for a Slurm job that begins or continues runs or a search."""

    job: Job | SearchSpec
    resources: Resources
    seeds: tuple[int, ...] | None = None  # a run for each seed; None means the job file's seed
    pack: bool = False  # whether one job trains all seeds in parallel, without an array
    at_most: str = ""  # %N: at most N tasks of an array run at a time; empty for no limit
    resumes: Path | None = None  # the absolute path of a run or sweep to continue
    is_begun: bool = True  # whether the folder to continue (`resumes`) already exists


@dataclass(frozen=True)
class Request:
    """A checked request to submit jobs."""

    project: Path
    runs: Path  # the absolute path of the folder of runs
    home: Path  # folder of the jobs' code: a snapshot, or the project until the snapshot exists
    jobs: tuple[Wanted, ...] = ()
    compares: bool = False  # whether one more job compares the runs at the end
    array_size: int = DEFAULT_ARRAY_SIZE  # MaxArraySize; each array index must be smaller
    first_look_s: float = 0.0  # seconds until Slurm first tries to start a new job


@dataclass(frozen=True)
class SbatchJob:
    """A complete job for sbatch, whose files are not yet written."""

    name: str
    request: Request
    folder: Path  # the submission's folder
    script: str  # the content of job.sh
    args: tuple[str, ...]  # the sbatch options, without job name, log and output format
    seeds: tuple[int, ...] = ()  # empty for a comparison
    indices: tuple[int, ...] = ()  # the array tasks' indices, one per seed; empty without an array
    is_packed: bool = False  # whether one job trains all seeds in parallel
    job_file: Path | None = None
    job_toml: str = ""
    resumes: Path | None = None  # the folder of the run that the job continues

    @property
    def command(self) -> list[str]:
        """The sbatch command."""
        # Hide the site's variables from sbatch, because `self.args` already contain their options.
        sbatch = client.sbatch_args([*site_options()])
        logs = str(self.request.runs / "logs").replace("%", "%%")
        log = f"{logs}/%x-{'%A_%a' if self.indices else '%j'}.out"
        own = ("--parsable", f"--job-name={self.name}", f"--output={log}")
        return [*sbatch, *own, *self.args, str(self.folder / "job.sh")]

    def run_folders(self, job_id: str) -> list[Path]:
        """Return the folders of the runs, one per seed."""
        if self.resumes:
            return [self.resumes]
        folder = self.request.runs / self.name
        return [folder / f"slurm-{job_id}{part}" for part in self._parts()] if self.seeds else []

    def logs(self, job_id: str) -> list[Path]:
        """Return the log files, one per seed."""
        folder, slurm = self.request.runs / "logs", "slurm-" if self.is_packed else ""
        return [folder / f"{self.name}-{slurm}{job_id}{part}.out" for part in self._parts()]

    def _parts(self) -> list[str]:
        if self.indices:
            return [f"_{index}" for index in self.indices]
        return [f"-seed{seed}" for seed in self.seeds] if self.is_packed else [""]


def arrays_of(wanted: Wanted, array_size: int) -> Iterator[Wanted]:
    """Split a request if its seeds need several arrays at this site; yield the parts.

    Args:
        wanted: the request for all seeds.
        array_size: Slurm's MaxArraySize. If it is 0, arrays are forbidden: each seed becomes a job.
    """
    seeds, most = wanted.seeds or (), max(1, array_size - 1)
    if wanted.pack or len(seeds) <= most:
        yield wanted
        return
    for first in range(0, len(seeds), most):
        yield replace(wanted, seeds=seeds[first : first + most])


def _indices(seeds: tuple[int, ...], array_size: int) -> tuple[tuple[int, ...], dict[str, str]]:
    """Return the indices of an array's tasks, and the variables that the job's script exports.

    If all seeds are below MaxArraySize, the index of a task is its seed. If a seed is not below
    MaxArraySize, the indices are 1, 2, ... and HARNESS_ARRAY_SEEDS lists the seeds.
    """
    if len(seeds) < 2:
        return (), {}
    if max(seeds) < array_size:
        return seeds, {}
    return tuple(range(1, len(seeds) + 1)), {ARRAY_SEEDS: " ".join(map(str, seeds))}


def read_header(code: Path, name: str) -> list[str]:
    """Return the options in the `#SBATCH` lines of a script; a site may have changed the lines.

    Raises:
        InputError: if the script is missing, or a quote in one of the lines is not closed.
    """
    path = code / "slurm" / f"{name}.sh"
    options: list[str] = []
    try:
        # A site's comments may have any encoding.
        for line in path.read_text("utf-8", errors="surrogateescape").splitlines():
            if line.strip() and not line.startswith("#"):
                break  # sbatch reads no options after the first command
            if line.startswith("#SBATCH"):
                options += shlex.split(line.removeprefix("#SBATCH"), comments=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: can't be read ({getattr(error, 'strerror', error)}), but the job needs its "
            "#SBATCH lines; restore the file from git, or set HARNESS_HOME to the project"
        ) from None
    return drop(options, ("job-name", "output"))  # `harness submit` sets these itself


def render_script(
    request: Request, variables: Mapping[str, str], call: Sequence[str | Path]
) -> str:
    """Return the text of a job script.

    Args:
        request: a checked request. The script exports the request's folders as environment
            variables.
        variables: further environment variables to export.
        call: `supervise` and its arguments. `supervise` is a function in slurm/common.sh that runs
            and requeues the job.
    """
    exports = {"HARNESS_RUNS": str(request.runs)}
    for name in (*FOLDERS, *OTHERS):
        if value := os.environ.get(name):
            exports[name] = str(Path(value).absolute()) if name in FOLDERS else value
    exports.update(variables)
    environment = shlex.quote(str(job_environment(request.project)))
    inside = shlex.quote(str(job_environment(request.project, in_container=True)))
    lines = [
        "#!/usr/bin/env bash",
        "# Written by harness for one Slurm job.",
        f"export HARNESS_HOME={shlex.quote(str(request.home))}",
        "export HARNESS_SNAPSHOT=1",
        'source "$HARNESS_HOME/slurm/common.sh"',
        "# These exports override the values from slurm/site.sh.",
        "# Except in a container, where an absolute HARNESS_VENV from slurm/site.sh is kept.",
        f"[[ ${{HARNESS_VENV:-}} == /* ]] || HARNESS_VENV={inside}",
        f"[[ ${{#HARNESS_CONTAINER[@]}} != 0 ]] || HARNESS_VENV={environment}",
        "export HARNESS_VENV",
        *(f"export {name}={shlex.quote(value)}" for name, value in exports.items()),
        shlex.join(map(str, call)),
    ]
    return "\n".join(lines) + "\n"


def job_environment(project: Path, *, in_container: bool = False) -> Path:
    """Return a job's Python environment: HARNESS_VENV, the active environment, or .venv.

    The active environment is not used in a container, which may have another Python.
    """
    if named := os.environ.get("HARNESS_VENV"):
        return project / named  # a relative path starts at the project, as in common.sh
    prefix = Path(sys.prefix)
    # In a conda environment, sys.prefix and sys.base_prefix are equal, so look for bin/harness.
    is_active = sys.prefix != sys.base_prefix or (prefix / "bin" / "harness").exists()
    if is_active and not in_container:
        return prefix
    return project / ".venv"


def script_of(job: Job | SearchSpec) -> str:
    """Return the name of the script in `slurm/` that runs a job."""
    if isinstance(job, SearchSpec):
        return SEARCH
    return OF_CUSTOM_NETWORKS if job.model.is_own else job.model.architecture


def job_submission(wanted: Wanted, request: Request) -> SbatchJob:
    """Compose a job for sbatch: a run, runs with several seeds, or a search."""
    job, seeds, resources = wanted.job, wanted.seeds or (), wanted.resources
    is_search = isinstance(job, SearchSpec)
    single = job.job if isinstance(job, SearchSpec) else job
    folder = _new_folder(request.runs, job.name)
    # The name must not be job.toml, which marks the folder of a run.
    toml = folder / f"{job.name}{'_' if job.name == 'job' else ''}.toml"
    indices, listed = ((), {}) if wanted.pack else _indices(seeds, request.array_size)
    header = read_header(request.project, script_of(job))
    args = compose(header, resources.sbatch_args(), gpus=resources.gpus)
    call: list[str | Path] = ["supervise", "tune" if is_search else "train", toml]
    if wanted.resumes and not wanted.is_begun:
        name = "--sweep-id" if is_search else "--run-id"
        call += [name, wanted.resumes.name, "--runs", wanted.resumes.parents[1]]
    elif wanted.resumes and is_search and os.environ.get(FIRST_JOB):
        # A successor of a job: unlike `resume`, `--join` does not undo `harness cancel`.
        call = ["supervise", "tune", "--join", wanted.resumes]
    elif wanted.resumes:
        call = ["supervise", "resume", "sweep" if is_search else "run", wanted.resumes]
    elif indices:
        args.insert(0, f"--array={array_spec(indices)}{wanted.at_most}")
    elif seeds:
        call += ["--seeds", array_spec(seeds)] if wanted.pack else ["--seed", str(seeds[0])]
    return SbatchJob(
        name=job.name,
        seeds=seeds or (single.train.seed,),
        indices=indices,
        is_packed=bool(seeds) and wanted.pack,
        request=request,
        folder=folder,
        script=render_script(request, listed | resources.variables, call),
        job_file=None if wanted.resumes and wanted.is_begun else toml,
        job_toml=job.to_toml(),
        args=tuple(args),
        resumes=wanted.resumes,
    )


def comparison_submission(trainings: Mapping[str, SbatchJob], request: Request) -> SbatchJob:
    """Compose the comparison job, which starts when all training jobs have ended.

    The comparison job has the sbatch options that the user gave for the first training job, without
    the requests for GPUs and memory. The header of slurm/compare.sh requests the job's memory.

    Args:
        trainings: the training jobs, with their job ids as keys.
        request: the request that contains the training jobs.
    """
    # The comparison job expands these patterns, because the runs' folders do not exist yet.
    patterns = [
        f"{escape(str(request.runs / submission.name))}/slurm-{job_id}{_any_part(submission)}"
        for job_id, submission in trainings.items()
    ]
    hidden = (*GPUS, *MEMORY)
    environment = {n: v for n, v in os.environ.items() if VARIABLES.get(n) not in hidden}
    flags = drop(request.jobs[0].resources.flags, hidden)
    args = [*flags, f"--dependency=afterany:{':'.join(trainings)}"]
    args = compose(read_header(request.project, COMPARISON), args, environment=environment)
    return SbatchJob(
        name=COMPARISON,
        request=request,
        folder=_new_folder(request.runs, COMPARISON),
        script=render_script(request, {}, ["supervise", "compare", *patterns]),
        args=tuple(args),
    )


def _any_part(submission: SbatchJob) -> str:
    return "_*" if submission.indices else "-seed*" if submission.is_packed else ""


def _new_folder(runs: Path, name: str) -> Path:
    # The name includes microseconds, because a shell loop can submit several jobs in a second.
    return submissions(runs) / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{name}"


def submissions(runs: Path) -> Path:
    """Return the folder for submissions and code snapshots, inside the folder of runs."""
    return runs / ".submissions"
