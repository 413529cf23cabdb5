"""`compare` and `ensemble`: compare several runs, or average their probabilities."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.options import DataFolder, RunsFolder, TrustCode
from harness.system.console import echo, quoted

app = typer.Typer()


@app.command(epilog="Example: harness compare runs/lstm runs/gru --out comparison")
def compare(
    named: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN", help="runs, folders of runs or glob patterns; default: all in --runs"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder for a report in HTML, Markdown, CSV and LaTeX"),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
    baseline: Annotated[
        Literal["ngrams", "none"] | None,
        typer.Option(
            "--baseline",
            help="ngrams: also fit a logistic regression over 1- to 3-grams, and show it here and "
            "in later comparisons; none: skip all baselines",
        ),
    ] = None,
    data: DataFolder = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Compare the test scores of finished runs.

    Prints means over the seeds of each job, and which differences are significant.
    """
    from harness.report.summary import compared, print_parts
    from harness.tracking.run_dir import named_or_all

    if out:
        from harness.report.html import check_folder, write_comparison

        check_folder(out)
    parts, left_out = compared(named_or_all(named, runs), baseline=baseline, data=data)
    try:
        if markdown:
            from harness.report.summary import to_markdown

            echo(to_markdown(parts), end="")
        else:
            print_parts(parts)
    finally:  # printing ends the process if the reader of the output, such as `head`, has ended
        if out:
            report = write_comparison(out, parts, left_out)
            echo(f"report       {report}", err=True)


@app.command(epilog="Example: harness ensemble runs/lstm/seed1 --with ngrams --run-id seed1")
def ensemble(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="folders of finished runs")],
    others: Annotated[
        Literal["ngrams"] | None,
        typer.Option("--with", help="add the linear model over 1- to 3-grams as a member"),
    ] = None,
    weights_from: Annotated[
        Path | None,
        typer.Option(
            "--weights-from",
            metavar="ENSEMBLE",
            help="ensemble to copy the weights from, if the runs have no validation reviews",
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", metavar="ID", help="id of the ensemble, the name of its folder"),
    ] = None,
    data: DataFolder = None,
    runs: RunsFolder = Path("runs"),
    trust_code: TrustCode = False,
) -> None:
    """Average the probabilities of finished runs.

    Chooses the weight of each member on validation reviews. harness compare and predict accept the
    ensemble like a run.
    """
    from harness.report.ensemble import make_ensemble
    from harness.training.metrics import describe_scores

    folder, result, weights = make_ensemble(
        folders,
        runs,
        ngrams=others is not None,
        weights_from=weights_from,
        data=data,
        run_id=run_id,
    )
    for member, weight in zip([*folders, "n-grams"], weights, strict=False):
        echo(f"weight {weight:.4f}  {member}")
    echo(f"tested on {result['num_test']:,} reviews of {result['data']}: {describe_scores(result)}")
    echo(f"records      {folder}")
    echo(f'next         harness predict {quoted(folder)} "An excellent movie!"')
