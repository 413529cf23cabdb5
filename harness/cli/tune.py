"""`tune`: searches for better settings with KerasTuner and any number of workers."""

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
    quoted,
)
from harness.errors import explain_interruption
from harness.system.console import Console

if TYPE_CHECKING:
    from harness.job.search import SearchSpec
    from harness.tuning.pool import WorkerRequest
    from harness.tuning.sweep_dir import SweepDirectory


app = typer.Typer()


@app.command(epilog="Example: harness tune jobs/tune_bilstm.toml --workers 4")
def tune(
    job_file: Annotated[
        Path, typer.Argument(metavar="JOB", help="job file with [search]: jobs/tune_lstm.toml")
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
            help="name of the sweep; continues an existing sweep of this name",
        ),
    ] = None,
    here: Here = False,
    trust_code: TrustCode = False,
) -> None:
    """Search for better settings, or add workers to a search.

    The same command with the same --sweep-id adds workers, on any node. No trial is lost if a
    worker or a command is killed. harness sweep shows the result.
    """
    from harness.compute.strategy import one_device_each
    from harness.job.search import load_search
    from harness.tuning.pool import WorkerRequest
    from harness.tuning.sweep_dir import SweepDirectory

    kind = one_device_each(devices, "trial")
    request = WorkerRequest(workers, workers_per_gpu, kind, data)
    search = load_search(job_file, overrides or ())
    sweep = SweepDirectory.new(runs, search, sweep_id)
    confirm_here(f"harness submit {quoted(job_file)}", here=here)
    run_sweep(sweep, search, request, full=full)


def run_sweep(
    sweep: "SweepDirectory",
    search: "SearchSpec",
    request: "WorkerRequest",
    *,
    full: bool = False,
    resumes: bool = False,
) -> None:
    """Begin a sweep, or add workers to it, and print its result."""
    from harness.slurm.environment import resume_command
    from harness.tracking.run_dir import RESULT
    from harness.tuning.tune import tune as run_search

    console = Console()
    result = sweep.read_json(RESULT) if sweep.finished() else {}
    if result and search.table.trials == sweep.search().table.trials:
        console.info(f"sweep {sweep.folder}: finished already, nothing to do")
    else:
        with explain_interruption(f"trials saved; continue with: {resume_command(sweep.folder)}"):
            result = run_search(sweep, search, request, console=console, full=full, resumes=resumes)
    if not result:
        console.info(
            f"cancelled, trials saved; continue with: harness resume {quoted(sweep.folder)}"
        )
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


def resume_sweep(folder: Path, devices: str | None, data: Path | None) -> None:
    """Continue a sweep on all devices of this machine or allocation."""
    from harness.compute.strategy import one_device_each
    from harness.tuning.pool import WorkerRequest
    from harness.tuning.sweep_dir import SweepDirectory

    sweep = SweepDirectory.open(folder)
    request = WorkerRequest(devices=one_device_each(devices, "trial"), data=data)
    run_sweep(sweep, sweep.search(), request, resumes=True)
