"""`bench`: how fast this machine trains, beside what a user would do instead."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import DataFolder
from harness.errors import InputError, RunError

app = typer.Typer()


@app.command(epilog="Example: harness bench --only training --pairs 5 --json bench.json")
def bench(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PART", help="training, pipeline, …; all by default"),
    ] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option("--architecture", metavar="NAME", help="rnn, lstm, …; all five by default"),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, metavar="N", help="turns of each comparison")] = 4,
    reviews: Annotated[
        int, typer.Option(min=200, metavar="N", help="reviews of each split that are used")
    ] = 10_000,
    epochs: Annotated[
        int, typer.Option(min=2, metavar="N", help="epochs, of which the last is measured")
    ] = 2,
    job: Annotated[
        list[Path] | None,
        typer.Option("--job", metavar="FILE", help="measure plans alone, for this job's sizes"),
    ] = None,
    data: DataFolder = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the figures there")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--compare", metavar="FILE", help="hold the ratios against an earlier file"),
    ] = None,
) -> None:
    """Measure start, steps, pipeline, runs side by side and commands, against the notebook's way.

    With --compare it ends with 1 where a ratio is worse than it was, beyond the spread of both.
    """
    from dataclasses import asdict

    from harness.bench import measured
    from harness.bench.bench import check_architectures, check_sections, machine, measure
    from harness.bench.processes import Settings
    from harness.job_file import load_job
    from harness.system.console import Console

    if json_file and not json_file.absolute().parent.is_dir():
        raise InputError(f"--json {json_file}: no such folder {json_file.parent}; make it first")
    before = measured.read_record(reference) if reference else None
    names, sections = check_architectures(architecture or ()), check_sections(only or ())
    jobs = tuple(path.absolute() for path in job or ())
    for path in jobs:
        load_job(path)  # refuse it now, not after the others
    if jobs and only and sections != ("plans",):
        raise InputError(f"--job {jobs[0]}: is measured by --only plans alone; leave --only out")
    if jobs:
        sections = ("plans",)
    folder = data.absolute() if data else None
    settings = Settings(names, pairs, reviews, epochs, folder, jobs)
    here = machine()
    told = {key: value for key, value in asdict(settings).items() if key not in ("data", "jobs")}
    found: list[measured.Measured] = []
    try:
        for each in measure(settings, sections, Console()):
            found.append(each)
            if json_file:
                measured.write_record(measured.to_record(found, here, told), json_file)
    finally:
        if found:  # an interrupted one's figures count too
            measured.print_table(found)
    typer.echo(f"on {here['cpus']} CPUs of {here['processor']}, {here['gpus']} GPUs")
    if before:
        record, then = before
        typer.echo(
            f"reference: {record['machine']['cpus']} CPUs of {record['machine']['processor']}"
        )
        changes = measured.changes(found, then)
        measured.print_changes(changes)
        worse = [change.name for change in changes if change.verdict == "worse"]
        if worse:
            raise RunError(f"worse than {reference}: {', '.join(worse)}")
