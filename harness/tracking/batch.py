"""Several jobs and seeds in one command, side by side: `harness train jobs/*.toml --seeds 1-5`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError, explain_interruption
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import Slot, allocate_slots, num_in_memory
from harness.slurm.process_pool import Task, child_args, run_tasks
from harness.slurm.script import submissions
from harness.system.console import Console
from harness.system.files import atomic_write, scratch_directory
from harness.tracking.run_dir import CANCEL, RunDirectory, remove_empty, reserve_id


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
    host_gb: tuple[float, ...] = ()  # of each job, what a run takes of the node's memory
    again: str = ""  # the command that goes on, by default the same one with its run id


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
    known = _runs(request, request.run_id) if request.run_id else []
    num_finished = sum(run.finished() for run in known)
    if known and num_finished == len(known):
        return [run.folder for run in known]
    allocation = SlurmEnvironment.from_environment()
    slots = _slots(request, allocation, len(request.jobs) - num_finished)
    threads = slots[0].threads
    console.info(
        f"{len(request.jobs)} runs, {num_finished} of them finished already, "
        f"{len(slots)} at a time, on {threads} CPU{'s' if threads > 1 else ''} each"
    )
    wanted = [(job.name, _end(job)) for job in request.jobs]
    prefix = request.run_id or reserve_id(request.runs, wanted)
    runs = known or _runs(request, prefix)
    folders = [run.folder for run in runs]
    # A copy of each job, so that an edit while a run waits changes nothing; not in TMPDIR, since
    # other nodes read it too.
    parent = submissions(request.runs.absolute())
    again = request.again or f"the same command with --run-id {prefix}"
    if allocation and allocation.max_requeues is not None:  # nobody typed the command of a job
        again = f"harness submit --resume {allocation.own_id}"
    remedy = f"go on by {again}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with (
            scratch_directory(parent) as jobs,
            explain_interruption(f"checkpoints saved; {remedy}"),
        ):
            tasks = [
                _task(request, run, job=job, jobs=jobs)
                for run, job in zip(runs, request.jobs, strict=True)
                if not run.finished()
            ]
            run_tasks(tasks, slots, allocation=allocation, console=console)
    finally:
        if not request.run_id:
            remove_empty(folders)
    return folders


def _end(job: Job) -> str:
    """What the name of a job's run ends with."""
    return f"-seed{job.train.seed}"


def _runs(request: BatchRequest, prefix: str) -> list[RunDirectory]:
    return [RunDirectory.new(request.runs, job, f"{prefix}{_end(job)}") for job in request.jobs]


def _slots(request: BatchRequest, allocation: SlurmEnvironment | None, num: int) -> list[Slot]:
    """Room for so many runs, or for as many of them at a time as there is."""
    if request.host_gb and not request.workers:
        num = min(num, num_in_memory(allocation, max(request.host_gb)))
    return allocate_slots(
        allocation,
        request.workers,
        workers_per_gpu=request.runs_per_gpu,
        option="--runs-per-gpu",
        devices=request.devices,
        at_most=num,
    )


def _task(request: BatchRequest, run: RunDirectory, *, job: Job, jobs: Path) -> Task:
    """The process of one run, whose job it reads from a file of its own in `jobs`."""
    name = f"{job.name}-{run.folder.name}"
    file = jobs / f"{name}.toml"
    atomic_write(file, job.to_toml(), 0o600)  # a job that others can change is refused
    args = child_args("train", str(file), "--runs", str(request.runs.absolute()))
    args += ["--run-id", run.folder.name, *request.train_args]
    return Task(name, args, request.runs / "logs" / f"{name}.out", run.folder / CANCEL)
