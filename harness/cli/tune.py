"""`tune` searches for better settings; the commands `sweep …` use or extend a search."""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import (
    DataFolder,
    DeviceList,
    Full,
    Here,
    Overrides,
    RunsFolder,
    TrustCode,
    Workers,
    WorkersPerGpu,
    confirm_here,
)
from harness.job.search import SearchSpec, load_search
from harness.slurm.environment import resume_command
from harness.slurm.resources import parse_seeds
from harness.system.console import Console, echo, quoted
from harness.tracking.run_dir import RESULT, remove_empty
from harness.tuning.sweep_dir import SweepDirectory

if TYPE_CHECKING:
    from harness.tuning.worker import WorkerRequest

app = typer.Typer()
sweep_app = typer.Typer(help="Show, use or join a search that harness tune began.")

Sweep = Annotated[
    Path,
    typer.Argument(metavar="SWEEP", help="folder of a sweep, such as runs/tune_lstm/slurm-1234"),
]


@app.command(epilog="Example: harness tune jobs/tune_bilstm.toml --workers 4")
def tune(
    job_file: Annotated[
        Path,
        typer.Argument(
            metavar="JOB", help="job file with a [search] table, such as jobs/tune_lstm.toml"
        ),
    ],
    overrides: Overrides = None,
    workers: Workers = None,
    workers_per_gpu: WorkersPerGpu = 1,
    devices: DeviceList = None,
    data: DataFolder = None,
    full: Full = False,
    runs: RunsFolder = Path("runs"),
    sweep_id: Annotated[
        str | None,
        typer.Option(
            "--sweep-id",
            metavar="ID",
            help="name of the sweep; continues an existing sweep of this name, unless its search "
            "has failed or was cancelled",
        ),
    ] = None,
    here: Here = False,
    trust_code: TrustCode = False,
) -> None:
    """Search for better settings, or add workers to a search.

    To add workers, repeat the command with the same --sweep-id on any node. No trial is lost if a
    worker or a command is killed. harness sweep show prints the result.
    """
    request = worker_request(devices, data, workers, workers_per_gpu)
    search = load_search(job_file, overrides or ())
    confirm_here(here=here)
    sweep = SweepDirectory.new(runs, search, sweep_id)
    try:
        run_sweep(sweep, search, request, full=full)
    finally:
        if sweep_id is None:
            remove_empty([sweep.folder])


def run_sweep(
    sweep: SweepDirectory,
    search: SearchSpec,
    request: "WorkerRequest",
    *,
    full: bool = False,
    resumes: bool = False,
) -> None:
    """Begin a sweep or add workers to a sweep, and print the sweep's result."""
    from harness.tuning.tune import tune as run_search

    console = Console()
    result = sweep.read_json(RESULT) if sweep.finished() else {}
    # Fewer trials than in the sweep are no error: a requeued job repeats its old command, even if
    # another command has raised the number of trials since then.
    if result and search.trial_limit <= sweep.search().trial_limit:
        console.info(f"sweep {sweep.folder}: finished already, nothing to do")
    else:
        result = run_search(sweep, search, request, console=console, full=full, resumes=resumes)
    if not result:
        console.info(f"cancelled, trials saved; continue with: {resume_command(sweep.folder)}")
        return
    failed = f", {result['num_failed']} failed" if result["num_failed"] else ""
    console.info(
        f"best of {result['num_trials']} trials{failed}: trial {result['best_trial']}, "
        f"{result['objective']} {result['best_score']:.4f}"
    )
    for key, value in result["best_values"].items():
        console.info(f"  {key} = {value}")
    folder = quoted(sweep.folder)
    console.info(f"leaderboard  {sweep.folder / 'leaderboard.csv'}")
    console.info(f"next         harness sweep show {folder}")
    console.info(f"             harness sweep best {folder} > jobs/{search.best_name}.toml")
    console.info(f"             harness sweep retrain {folder} --seeds 1-5")


def worker_request(
    devices: str | None,
    data: Path | None,
    workers: int | None = None,
    workers_per_gpu: int = 1,
) -> "WorkerRequest":
    """Return a request for workers that each train on one device."""
    from harness.compute.strategy import one_device_each
    from harness.tuning.worker import WorkerRequest

    return WorkerRequest(workers, workers_per_gpu, one_device_each(devices, "trial"), data)


# The commands `sweep …`


@sweep_app.command(epilog="Example: harness sweep show runs/tune_lstm/slurm-1234")
def show(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="SWEEP", help="folders of sweeps, such as runs/tune_lstm/a"),
    ],
    trust_code: TrustCode = False,
) -> None:
    """Print the leaderboard and the importance of keys; draw a plot.

    For several sweeps, prints one table that compares the sweeps.
    """
    from harness.tuning.leaderboard import compare
    from harness.tuning.leaderboard import show as show_sweep

    first, *others = [SweepDirectory.open(folder) for folder in dict.fromkeys(folders)]
    if others:
        compare([first, *others])
    else:
        show_sweep(first)


@sweep_app.command(
    epilog="Example: harness sweep best runs/tune_lstm/slurm-1234 > jobs/tune_lstm_best.toml"
)
def best(folder: Sweep, trust_code: TrustCode = False) -> None:
    """Print the best trial as a job file."""
    from harness.tuning.best_trial import best_trial_toml

    job = best_trial_toml(SweepDirectory.open(folder))
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # the encoding of job files, in any locale
    echo(job, end="")


@sweep_app.command(epilog="Example: harness sweep retrain runs/tune_lstm/slurm-1234 --seeds 1-5")
def retrain(
    folder: Sweep,
    seeds: Annotated[
        str, typer.Option(metavar="LIST", help="one run per seed: 1-5 or 1,3")
    ] = "1-5",
    workers: Workers = None,
    devices: DeviceList = None,
    data: DataFolder = None,
    here: Here = False,
    trust_code: TrustCode = False,
) -> None:
    """Train the best trial again, on all training data, and test the models."""
    from harness.compute.strategy import one_device_each
    from harness.tuning.best_trial import retrain as retrain_best

    kind = one_device_each(devices, "run")
    sweep, chosen = SweepDirectory.open(folder), parse_seeds(seeds)
    confirm_here(here=here)
    retrain_best(sweep, chosen, data=data, workers=workers, console=Console(), devices=kind)


@sweep_app.command(epilog="Example: harness sweep join runs/tune_lstm/slurm-1234 --workers 2")
def join(
    folder: Sweep,
    workers: Workers = None,
    workers_per_gpu: WorkersPerGpu = 1,
    devices: DeviceList = None,
    data: DataFolder = None,
    here: Here = False,
    trust_code: TrustCode = False,
) -> None:
    """Add workers to a search, on this machine or in this Slurm job."""
    request = worker_request(devices, data, workers, workers_per_gpu)
    sweep = SweepDirectory.open(folder)
    confirm_here(here=here)
    run_sweep(sweep, sweep.search(), request)
