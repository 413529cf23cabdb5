"""`bench`: how fast this machine trains, compared with the notebook's code."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import DataFolder, Here, confirm_here
from harness.errors import InputError, RunError
from harness.system.console import echo

app = typer.Typer()


@app.command(epilog="Example: harness bench --only training --pairs 5 --json bench.json")
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PART", help="training, pipeline, …; default: all"),
    ] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option("--architecture", metavar="NAME", help="rnn, lstm, …; default: all five"),
    ] = None,
    pairs: Annotated[
        int, typer.Option(min=1, max=100, metavar="N", help="pairs in each comparison")
    ] = 4,
    reviews: Annotated[
        int, typer.Option(min=200, max=25_000, metavar="N", help="number of reviews of each split")
    ] = 10_000,
    epochs: Annotated[
        int,
        typer.Option(min=2, max=100, metavar="N", help="number of epochs; the first is left out"),
    ] = 2,
    job: Annotated[
        list[Path] | None,
        typer.Option("--job", metavar="FILE", help="measure execution plans for this job"),
    ] = None,
    data: DataFolder = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the measurements there")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--compare", metavar="FILE", help="compare the ratios with an earlier file"),
    ] = None,
    here: Here = False,
) -> None:
    """Measure how fast this machine trains.

    Compares start, steps, input pipeline, parallel runs and commands with the notebook's code. With
    --compare the exit code is 1 if a ratio is worse than before by more than the spread of both, or
    if the file has none of them.
    """
    from dataclasses import asdict

    from harness.bench import measured
    from harness.bench.bench import SECTIONS, check_names, machine, measure
    from harness.bench.processes import Settings
    from harness.checks.probe import ARCHITECTURES
    from harness.data.imdb_sources import open_dataset
    from harness.data.resolve import open_data
    from harness.job_file import load_job
    from harness.system.console import Console

    if json_file and not json_file.absolute().parent.is_dir():
        raise InputError(f"--json {json_file}: no such folder {json_file.parent}; make it first")
    if json_file and json_file.is_dir():
        raise InputError(f"--json {json_file}: is a folder; name a file, {json_file}/bench.json")
    before = measured.read_record(reference) if reference else None
    if before and reference:
        measured.check_sizes(reference, before[0], reviews=reviews, epochs=epochs)
    names = check_names("--architecture", architecture or (), ARCHITECTURES, fault="unknown")
    sections = check_names("--only", only or (), SECTIONS, fault="is not measured")
    jobs = tuple(path.absolute() for path in job or ())
    loaded = [load_job(path) for path in jobs]  # refuse a bad one now, not after the others
    if jobs and only and sections != ("plans",):
        raise InputError(f"--job {jobs[0]}: is for --only plans; leave --only out")
    if jobs:
        sections = ("plans",)
    console = Console()
    confirm_here("srun --cpus-per-task=4 --mem=16G harness bench", console, here=here)
    folder, dataset = data.absolute() if data else None, None
    for chosen in loaded:
        open_data(chosen, folder)
    if not jobs:
        dataset = open_dataset(folder)
        if dataset.folder and not dataset.is_sample:
            folder = dataset.folder.absolute()  # not each process has this cache
    about = {"is_sample": dataset.is_sample, "checksum": dataset.checksum} if dataset else {}
    if before and reference:
        measured.check_data(reference, before[0], about)
    settings = Settings(names, pairs, reviews, epochs, folder, jobs)
    this = machine()
    recorded = {k: v for k, v in asdict(settings).items() if k not in ("data", "jobs")} | about
    results: list[measured.Measured] = []
    try:
        for each in measure(settings, sections, console):
            results.append(each)
            if json_file:
                measured.write_record(measured.to_record(results, this, recorded), json_file)
    finally:
        if results:  # also those of an interrupted benchmark
            measured.print_table(results)
    where = f"; data: {dataset.title}" if dataset else ""
    echo(f"on {this['cpus']} CPUs of {this['processor']}, {this['gpus']} GPUs{where}")
    if before:
        record, earlier = before
        there = record["machine"]
        echo(f"reference: {there['cpus']} CPUs of {there['processor']}")
        changes = measured.changes(results, earlier)
        if not changes:
            raise RunError(f"nothing was compared: {reference} has none of these ratios")
        measured.print_changes(changes)
        if worse := [change.name for change in changes if change.verdict == "worse"]:
            raise RunError(f"worse than {reference}: {', '.join(worse)}")
