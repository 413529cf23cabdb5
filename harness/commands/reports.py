"""`compare`: what came of many runs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command(epilog="Example: harness compare runs/lstm runs/gru --markdown")
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="runs, or folders that hold runs")
    ],
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
) -> None:
    """Compare finished runs: test accuracy by job over seeds, with an interval."""
    from harness.compare import find_runs, make_rows, print_tables, to_markdown

    results, unfinished, untested = find_runs(folders)
    rows = make_rows(results)
    for run in unfinished:
        typer.echo(f"left out, unfinished: {run}", err=True)
    if untested:
        trials = "trial of a search" if untested == 1 else "trials of searches"
        typer.echo(f"left out, not tested: {untested} {trials}, data.test = false", err=True)
    if len(results) > sum(len(row.seeds) for row in rows):
        typer.echo("some runs are of the same job and seed: each seed counts once", err=True)
    if markdown:
        typer.echo(to_markdown(rows), nl=False)
    else:
        print_tables(rows)
