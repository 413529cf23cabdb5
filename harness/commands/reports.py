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
    from rich.console import Console
    from rich.table import Table

    from harness.compare import HEADINGS, cells, find_runs, make_rows, to_markdown

    results, unfinished = find_runs(folders)
    rows = make_rows(results)
    for run in unfinished:
        typer.echo(f"left out, unfinished: {run}", err=True)
    if len(results) > sum(len(row.seeds) for row in rows):
        typer.echo("some runs are of the same job and seed: each seed counts once", err=True)
    if markdown:
        typer.echo(to_markdown(rows), nl=False)
        return
    for data in dict.fromkeys(row.data for row in rows):
        # Without a frame the whole table stands in 80 columns.
        table = Table(*HEADINGS, title=f"tested on {data}", box=None, padding=(0, 1, 0, 0))
        for row in rows:
            if row.data == data:
                table.add_row(*cells(row))
        Console().print(table)
