"""`compare`: what came of many runs."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import DataFolder, RunsFolder
from harness.errors import InputError

app = typer.Typer()


@app.command(epilog="Example: harness compare runs/lstm runs/gru --out comparison")
def compare(
    named: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN...]", help="runs, folders of runs, patterns; else all under --runs"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="write the report there, with Markdown, CSV and LaTeX"),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    without_yardstick: Annotated[
        bool, typer.Option("--no-baseline", help="leave out TF-IDF with logistic regression")
    ] = False,
    data: DataFolder = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Compare finished runs: test scores by job over seeds, and what the differences show."""
    from harness.report.collect import group_runs, scored_runs
    from harness.report.summary import left_out_lines, make_parts, print_parts, to_markdown

    if out:
        from harness.report.export import check_folder, write_comparison

        check_folder(out)
    if data:
        from harness.data.imdb_sources import open_dataset

        open_dataset(data)  # a typo is refused, also where nothing is read from there in the end
    say = partial(typer.echo, err=True)
    scored, left_out = scored_runs(named or [runs])
    groups, repeated = group_runs(scored)
    left_out += repeated
    for line in left_out_lines(left_out):
        say(line)
    if not groups:
        raise InputError(f"nothing to compare: {len(left_out)} found, none finished and tested")
    if without_yardstick:
        parts = make_parts(groups, lambda group: ())
    else:
        from harness.report.baseline import baselines

        parts = make_parts(groups, lambda group: baselines(group, data, say))
    if markdown:
        typer.echo(to_markdown(parts), nl=False)
    else:
        print_parts(parts)
    if out:
        report = write_comparison(out, parts, left_out, data, say)
        say(f"report       {report}")
