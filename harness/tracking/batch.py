"""Several jobs and seeds in one command, side by side: `harness train jobs/*.toml --seeds 1-5`."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError, explain_interruption
from harness.job import Job
from harness.job_file import load_job
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.placement import allocate_slots
from harness.slurm.process_pool import Task, child_args, run_tasks
from harness.system.console import Console
from harness.tracking.run_dir import RunDirectory


@dataclass(frozen=True)
class BatchRequest:
    """What is to be trained, and how."""

    jobs: tuple[Job, ...]  # a seed each
    runs: Path
    run_id: str | None  # what the runs' names begin with, by default the time
    options: tuple[str, ...]  # of train, for every run alike
    devices: str | None  # cpu leaves GPUs alone
    workers: int | None  # runs at a time, by default as many as there is room for
    runs_per_gpu: int


def jobs_of(
    files: Sequence[Path], overrides: Sequence[str], seeds: Sequence[int]
) -> tuple[Job, ...]:
    """Every job with every seed, or with its own if there are no seeds; all of them checked.

    Seed by seed, so that all jobs have a result for the first seed before one has for the second.

    Raises:
        InputError: for a job that is refused, or two of one name.
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


def train_several(asked: BatchRequest, console: Console) -> list[Path]:
    """Train all; what is finished stays as it is, the rest goes on.

    Returns:
        The folders of all the runs.

    Raises:
        InputError: for a run that is refused, or more workers than there is room for.
        Interrupted: a signal came; the runs are saved and can go on.
        RunError: some runs failed: which, and why.
    """
    prefix = asked.run_id or time.strftime("%Y%m%d-%H%M%S")
    runs = [
        RunDirectory.new(asked.runs, job, f"{prefix}-seed{job.train.seed}") for job in asked.jobs
    ]
    todo = [(run, job) for run, job in zip(runs, asked.jobs, strict=True) if not run.finished()]
    if todo:
        allocation = SlurmEnvironment.from_environment()
        slots = allocate_slots(
            allocation,
            asked.workers,
            workers_per_gpu=asked.runs_per_gpu,
            devices=asked.devices,
            at_most=len(todo),
        )
        console.info(
            f"{len(runs)} runs, {len(runs) - len(todo)} of them finished already, {len(slots)} at "
            f"a time, on {slots[0].threads} CPU{'s' if slots[0].threads > 1 else ''} each"
        )
        # The jobs as they are now: an edit while a run waits changes nothing.
        with tempfile.TemporaryDirectory(prefix="harness-") as folder:
            tasks = [_task(asked, run, job, Path(folder)) for run, job in todo]
            how = f"go on by the same command with --run-id {prefix}"
            with explain_interruption(f"checkpoints saved; {how}"):
                run_tasks(tasks, slots, allocation=allocation, console=console)
    return [run.folder for run in runs]


def _task(asked: BatchRequest, run: RunDirectory, job: Job, folder: Path) -> Task:
    file = folder / str(job.train.seed) / f"{job.name}.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(job.to_toml())
    name = f"{job.name}-{run.folder.name}"
    args = child_args("train", str(file), "--runs", str(asked.runs.absolute()))
    args += ["--run-id", run.folder.name, *asked.options]
    return Task(name, args, asked.runs / "logs" / f"{name}.out")
