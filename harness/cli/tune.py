"""`tune`: KerasTuner searches on any number of workers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.options import DataFolder, DeviceList, Full, Overrides, RunsFolder, quoted
from harness.errors import InputError, explain_interruption

if TYPE_CHECKING:
    from harness.search_space import SearchSpec
    from harness.tuning.sweep_dir import SweepDirectory


app = typer.Typer()


@app.command(
    epilog="Example: harness tune jobs/tune_bilstm.toml --workers 4; "
    "harness tune --show runs/tune_bilstm/20260101-120000"
)
def tune(
    job_file: Annotated[
        Path | None,
        typer.Argument(metavar="JOB", help="a TOML file with [search], jobs/tune_lstm.toml"),
    ] = None,
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="else one a GPU, or one a CPU")
    ] = None,
    workers_per_gpu: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="that share a GPU's memory")
    ] = 1,
    devices: DeviceList = None,
    data: DataFolder = None,
    full: Full = False,
    runs: RunsFolder = Path("runs"),
    sweep_id: Annotated[
        str | None,
        typer.Option("--sweep-id", metavar="ID", help="name the sweep, or go on with that one"),
    ] = None,
    join: Annotated[
        Path | None,
        typer.Option(metavar="SWEEP", help="work for a sweep that runs, from this machine or job"),
    ] = None,
    show: Annotated[
        Path | None, typer.Option(metavar="SWEEP", help="the leaderboard, and what mattered")
    ] = None,
    best: Annotated[
        Path | None, typer.Option(metavar="SWEEP", help="print the winner as a job file")
    ] = None,
    retrain: Annotated[
        Path | None,
        typer.Option(metavar="SWEEP", help="train the winner on all training data, and test it"),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="LIST", help="of --retrain: 1-5 or 1,3,7")] = "1-5",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="of the chief, else a free one")
    ] = 0,
    stall: Annotated[
        float,
        typer.Option(min=5, metavar="SECONDS", help="without progress, then a worker is restarted"),
    ] = 900.0,
) -> None:
    """Search for better settings: a KerasTuner search that loses no trial, whoever dies."""
    from harness.system.console import Console

    named = [option for option in (job_file, join, show, best, retrain) if option is not None]
    if len(named) != 1:
        raise InputError(
            "tune: give one of JOB, --join, --show, --best and --retrain, such as harness tune "
            "jobs/tune_lstm.toml"
        )
    if overrides and job_file is None:
        raise InputError(f"--set {overrides[0]}: goes with a JOB alone")
    from harness.compute.strategy import one_device_each
    from harness.tuning.sweep_dir import SweepDirectory

    console = Console()
    common: dict[str, Any] = {
        "num_workers": workers,
        "workers_per_gpu": workers_per_gpu,
        "devices": one_device_each(devices, "trial"),
        "data": data,
        "stall_s": stall,
        "console": console,
    }
    if show:
        from harness.sweep_report.leaderboard import show as show_sweep

        show_sweep(SweepDirectory.open(show))
    elif best:
        from harness.sweep_report.best_trial import winner_toml

        typer.echo(winner_toml(SweepDirectory.open(best)), nl=False)
    elif retrain:
        from harness.slurm.resources import parse_seeds
        from harness.sweep_report.best_trial import retrain as retrain_winner

        retrain_winner(SweepDirectory.open(retrain), parse_seeds(seeds), data, workers, console)
    elif join:
        from harness.tuning.tune import join as join_sweep

        sweep = SweepDirectory.open(join)
        with explain_interruption(f"trials saved; go on by: harness tune --join {quoted(join)}"):
            join_sweep(sweep, **common)
    else:
        assert job_file is not None  # noqa: S101 - one of them is given
        from harness.search_space import load_search

        search = load_search(job_file, overrides or ())
        sweep = SweepDirectory.new(runs, search, sweep_id)
        go(sweep, search, full=full, port=port, **common)


def go(sweep: "SweepDirectory", search: "SearchSpec", **options: Any) -> None:
    """Begin a sweep or go on with one, and say how it ended."""
    from harness.tuning.tune import tune as run_tune

    console = options["console"]
    result = sweep.read_json("result.json") if sweep.finished() else {}
    if result and search.table.trials == sweep.search().table.trials:
        console.info(f"sweep {sweep.folder}: finished already, nothing to do")
    else:
        with explain_interruption(f"trials saved; go on by: harness resume {quoted(sweep.folder)}"):
            result = run_tune(sweep, search, **options)
    failed = f", {result['num_failed']} failed" if result["num_failed"] else ""
    console.info(
        f"best of {result['num_trials']} trials{failed}: trial {result['best_trial']}, "
        f"{result['objective']} {result['best_score']:.4f}"
    )
    for key, value in result["best_values"].items():
        console.info(f"  {key} = {value}")
    folder = quoted(sweep.folder)
    console.info(f"leaderboard  {sweep.folder / 'leaderboard.csv'}")
    console.info(f"next         harness tune --show {folder}")
    console.info(f"             harness tune --best {folder} > jobs/mine.toml")
    console.info(f"             harness tune --retrain {folder} --seeds 1-5")


def resume_sweep(folder: Path, devices: str | None, data: Path | None) -> None:
    """Go on with a sweep, on all that is given here."""
    from harness.compute.strategy import one_device_each
    from harness.system.console import Console
    from harness.tuning.supervisor import STALL_S
    from harness.tuning.sweep_dir import SweepDirectory

    sweep = SweepDirectory.open(folder)
    sweep.check_format()  # before its search is read, which a later version may write otherwise
    go(
        sweep,
        sweep.search(),
        num_workers=None,
        workers_per_gpu=1,
        devices=one_device_each(devices, "trial"),
        data=data,
        full=False,
        stall_s=STALL_S,
        console=Console(),
    )
