"""Trains several jobs and seeds in parallel: `harness train jobs/*.toml --seeds 1-5`."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError, explain_interruption
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.pool import Task, allocate_slots, child_args, run_tasks
from harness.slurm.script import submissions
from harness.system.console import Console, quoted
from harness.system.files import atomic_write
from harness.tracking.run_dir import CANCEL, RunDirectory, remove_empty, reserve_id


@dataclass(frozen=True)
class BatchRequest:
    """The runs that one command trains, and the settings for all of these runs."""

    jobs: tuple[Job, ...]  # the job of each run; a job with several seeds appears several times
    runs: Path  # the folder of all runs
    run_id: str | None = None  # the beginning of the runs' names; by default the date and time
    train_args: tuple[str, ...] = ()  # options of `harness train` for all runs
    devices: str | None = None  # `cpu` trains on CPUs only
    workers: int | None = None  # number of runs at a time; by default as many as the devices allow
    runs_per_gpu: int = 1
    host_gb: tuple[float, ...] = ()  # for each job, the host memory in GB that a run needs
    again: str = ""  # command that continues the runs; empty for the default


def jobs_of(
    files: Sequence[Path], overrides: Sequence[str], seeds: Sequence[int]
) -> tuple[Job, ...]:
    """Load all jobs with all seeds, or with the seed of the job file if `seeds` is empty.

    The jobs are sorted by seed: all jobs with the first seed come before all with the second.

    Raises:
        InputError: if a job is invalid, or if two jobs have the same name.
    """
    jobs = tuple(load_job(file, overrides, seed) for seed in (seeds or (None,)) for file in files)
    names = [job.name for job in jobs[: len(files)]]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"job {name}: is given {names.count(name)} times, so its runs would have the same "
                "names; list each job file once, and set a different name in each job file"
            )
    return jobs


def train_batch(request: BatchRequest, console: Console) -> list[Path]:
    """Train all unfinished runs; interrupted runs continue where they stopped.

    Returns:
        The folders of all runs, in the order of the jobs.

    Raises:
        InputError: if a run refuses its input, or if `request.workers` is more than the devices
            allow.
        Interrupted: after a signal; the runs are saved and can continue.
        RunError: if runs failed; the message names these runs and the reasons.
    """
    known = _runs(request, request.run_id) if request.run_id else []
    num_finished = sum(run.finished() for run in known)
    if known and num_finished == len(known):
        return [run.folder for run in known]
    allocation = SlurmEnvironment.from_environment()
    slots = allocate_slots(
        allocation,
        request.workers,
        workers_per_gpu=request.runs_per_gpu,
        option="--runs-per-gpu",
        devices=request.devices,
        at_most=len(request.jobs) - num_finished,
        process_gb=max(request.host_gb, default=None),
    )
    console.info(
        f"{len(request.jobs)} runs ({num_finished} already finished), {len(slots)} at a time; "
        f"CPUs per run: {slots[0].threads}"
    )
    wanted = [(job.name, f"-seed{job.train.seed}") for job in request.jobs]
    prefix = request.run_id or reserve_id(request.runs, wanted)
    runs = known or _runs(request, prefix)
    folders = [run.folder for run in runs]
    # Each run reads a copy of its job file, so that later edits of the file have no effect. The
    # copies are not in TMPDIR because other nodes read them too.
    parent = submissions(request.runs.absolute())
    again = request.again or f"the same command with --run-id {prefix}"
    # In a job of `harness submit`, name the job instead of the run id, because the job script chose
    # the run id, and the record of the submission lists all seeds.
    if not request.again and allocation and allocation.is_batch and allocation.is_submitted:
        home = quoted(request.runs.absolute())  # the user's default folder may be another one
        again = f"harness submit --resume {allocation.own_id} --runs {home}"
    remedy = f"continue with {again}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as jobs,
            explain_interruption(f"checkpoints saved; {remedy}"),
        ):
            tasks = [
                _task(request, run, job=job, jobs=Path(jobs))
                for run, job in zip(runs, request.jobs, strict=True)
                if not run.finished()
            ]
            run_tasks(tasks, slots, allocation=allocation, console=console)
    finally:
        if not request.run_id:
            remove_empty(folders)
    return folders


def _runs(request: BatchRequest, prefix: str) -> list[RunDirectory]:
    return [
        RunDirectory.new(request.runs, job, f"{prefix}-seed{job.train.seed}")
        for job in request.jobs
    ]


def _task(request: BatchRequest, run: RunDirectory, *, job: Job, jobs: Path) -> Task:
    """Return the task that trains a run; write the run's job file into the folder `jobs`."""
    name = f"{job.name}-{run.folder.name}"
    file = jobs / f"{name}.toml"
    atomic_write(file, job.to_toml(), 0o600)  # the process refuses job files that others can change
    args = child_args("train", str(file), "--runs", str(request.runs.absolute()))
    args += ["--run-id", run.folder.name, *request.train_args]
    return Task(name, args, request.runs / "logs" / f"{name}.out", run.folder / CANCEL)
