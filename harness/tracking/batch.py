"""Several jobs and seeds in one command, side by side: `harness train jobs/*.toml --seeds 1-5`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError, explain_interruption
from harness.files.scratch import scratch_directory
from harness.job import Job
from harness.job_file import load_job
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import allocate_slots, check_memory, num_in_memory
from harness.slurm.process_pool import Task, child_args, run_tasks
from harness.system.console import Console
from harness.tracking.run_dir import CANCEL, RunDirectory


@dataclass(frozen=True)
class BatchRequest:
    """Which runs to train, and with what."""

    jobs: tuple[Job, ...]  # one for each run: a job with several seeds is there several times
    runs: Path
    run_id: str | None = None  # what the runs' names begin with, by default the time
    train_args: tuple[str, ...] = ()  # for `harness train`, the same for every run
    devices: str | None = None  # cpu leaves GPUs alone
    workers: int | None = None  # runs at a time, by default as many as there is room for
    runs_per_gpu: int = 1
    gpu_gb: tuple[float | None, ...] = ()  # of each job, what a run took of such a GPU before
    host_gb: tuple[float, ...] = ()  # of each job, what a run takes of the node's memory


def jobs_of(
    files: Sequence[Path], overrides: Sequence[str], seeds: Sequence[int]
) -> tuple[Job, ...]:
    """Each job with each seed, or with its own seed if none is given; all of them checked.

    Ordered by seed, so that all jobs have a result for the first seed before any has for the
    second.

    Raises:
        InputError: if a job is invalid, or two have the same name.
    """
    jobs = tuple(load_job(file, overrides, seed) for seed in (seeds or (None,)) for file in files)
    names = [job.name for job in jobs[: len(files)]]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"job {name}: is given {names.count(name)} times, and its runs would have the same "
                "names; give each once, or rename a file"
            )
    return jobs


def train_batch(request: BatchRequest, console: Console) -> list[Path]:
    """Train every run that is not finished yet; a run that was begun goes on.

    Returns:
        The folders of all the runs, in the order of the jobs.

    Raises:
        InputError: if a run is refused, or there is no room for so many workers.
        Interrupted: a signal came; the runs are saved and can go on.
        RunError: some runs failed: which, and why.
    """
    prefix = request.run_id or time.strftime("%Y%m%d-%H%M%S")
    pairs = [
        (RunDirectory.new(request.runs, job, f"{prefix}-seed{job.train.seed}"), job)
        for job in request.jobs
    ]
    folders = [run.folder for run, _ in pairs]
    unfinished = [(run, job) for run, job in pairs if not run.finished()]
    if not unfinished:
        return folders
    allocation = SlurmEnvironment.from_environment()
    at_most = len(unfinished)
    if request.host_gb and not request.workers:
        at_most = min(at_most, num_in_memory(allocation, max(request.host_gb)))
    slots = allocate_slots(
        allocation,
        request.workers,
        workers_per_gpu=request.runs_per_gpu,
        option="--runs-per-gpu",
        devices=request.devices,
        at_most=at_most,
    )
    names = [job.name for job in request.jobs]
    check_memory(slots, list(zip(names, request.gpu_gb, strict=True)), warn=console.warning)
    threads = slots[0].threads
    console.info(
        f"{len(pairs)} runs, {len(pairs) - len(unfinished)} of them finished already, "
        f"{len(slots)} at a time, on {threads} CPU{'s' if threads > 1 else ''} each"
    )
    # A copy of each job, so that an edit while a run waits changes nothing.
    with scratch_directory() as folder:
        tasks = [_task(request, run, job=job, jobs=folder) for run, job in unfinished]
        remedy = f"go on by the same command with --run-id {prefix}"
        with explain_interruption(f"checkpoints saved; {remedy}"):
            run_tasks(tasks, slots, allocation=allocation, console=console)
    return folders


def _task(request: BatchRequest, run: RunDirectory, *, job: Job, jobs: Path) -> Task:
    """The process of one run, whose job it reads from a file of its own below `jobs`."""
    file = jobs / str(job.train.seed) / f"{job.name}.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(job.to_toml())
    name = f"{job.name}-{run.folder.name}"
    args = child_args("train", str(file), "--runs", str(request.runs.absolute()))
    args += ["--run-id", run.folder.name, *request.train_args]
    return Task(name, args, request.runs / "logs" / f"{name}.out", run.folder / CANCEL)
