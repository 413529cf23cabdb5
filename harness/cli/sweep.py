"""`sweep show`, `best` and `retrain` use the results of a search; `sweep join` adds workers."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
    DataFolder,
    DeviceList,
    Here,
    RunsAtATime,
    TrustCode,
    Workers,
    WorkersPerGpu,
    confirm_here,
    quoted,
)
from harness.system.console import Console, echo

app = typer.Typer(help="Show, use or join a search that harness tune began.")

Sweep = Annotated[
    Path, typer.Argument(metavar="SWEEP", help="folder of a sweep: runs/tune_lstm/slurm-1234")
]


@app.command(epilog="Example: harness sweep show runs/tune_lstm/slurm-1234")
def show(folder: Sweep, trust_code: TrustCode = False) -> None:
    """Print the leaderboard and the importance of keys; draw a plot."""
    from harness.tuning.show import show as show_sweep
    from harness.tuning.sweep_dir import SweepDirectory

    show_sweep(SweepDirectory.open(folder))


@app.command(
    epilog="Example: harness sweep best runs/tune_lstm/slurm-1234 > jobs/tune_lstm_best.toml"
)
def best(folder: Sweep, trust_code: TrustCode = False) -> None:
    """Print the best trial as a job file."""
    from harness.tuning.best_trial import best_trial_toml
    from harness.tuning.sweep_dir import SweepDirectory

    toml = best_trial_toml(SweepDirectory.open(folder))
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")  # job files are UTF-8 in every locale
    echo(toml, end="")


@app.command(epilog="Example: harness sweep retrain runs/tune_lstm/slurm-1234 --seeds 1-5")
def retrain(
    folder: Sweep,
    seeds: Annotated[
        str, typer.Option(metavar="LIST", help="one run per seed: 1-5 or 1,3")
    ] = "1-5",
    workers: RunsAtATime = None,
    devices: DeviceList = None,
    data: DataFolder = None,
    here: Here = False,
    trust_code: TrustCode = False,
) -> None:
    """Train the best trial on all training data and test it."""
    from harness.compute.strategy import one_device_each
    from harness.slurm.resources import parse_seeds
    from harness.tuning.best_trial import retrain as retrain_best
    from harness.tuning.sweep_dir import SweepDirectory

    kind = one_device_each(devices, "run")
    sweep, chosen = SweepDirectory.open(folder), parse_seeds(seeds)
    confirm_here(f"sbatch slurm/tune.sh --retrain {quoted(folder)}", here=here)
    retrain_best(sweep, chosen, data=data, workers=workers, console=Console(), devices=kind)


@app.command(epilog="Example: harness sweep join runs/tune_lstm/slurm-1234 --workers 2")
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
    from harness.cli.tune import run_sweep
    from harness.compute.strategy import one_device_each
    from harness.tuning.pool import WorkerRequest
    from harness.tuning.sweep_dir import SweepDirectory

    kind = one_device_each(devices, "trial")
    request = WorkerRequest(workers, workers_per_gpu, kind, data)
    sweep = SweepDirectory.open(folder)
    confirm_here(f"sbatch slurm/tune.sh --join {quoted(folder)}", here=here)
    run_sweep(sweep, sweep.search(), request)
