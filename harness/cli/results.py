"""Compare, average and check finished runs: `compare`, `ensemble` and `audit`."""

import logging
import subprocess
from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.options import (
    DataFolder,
    DataOfRun,
    DeviceList,
    Here,
    RunsFolder,
    TrustCode,
    confirm_here,
)
from harness.errors import DiskError, InputError, RunError
from harness.slurm.pool import child_args
from harness.system.console import echo, log, quoted, to_the_end
from harness.system.processes import own_code_first
from harness.tracking.audits import DIFFERS, keep_audit
from harness.tracking.run_dir import named_or_all

app = typer.Typer()


@app.command(epilog="Example: harness compare runs/lstm runs/gru --out comparison")
def compare(
    named: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="runs, folders of runs or glob patterns; default: all runs in --runs",
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
            help="ngrams: add a logistic regression over 1- to 3-grams, which later comparisons "
            "will also show; none: omit all baselines",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="KEY=VALUE",
            help="compare only runs with this setting, such as model.units=64; repeat the option "
            "to require several settings",
        ),
    ] = None,
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs",
            help="compare each pair of jobs; by default, if there are more than 12 jobs, each job "
            "is compared only with the best job",
        ),
    ] = False,
    data: DataFolder = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Compare the test scores of finished runs.

    Prints means over the seeds of each job, and which differences are significant.
    """
    from harness.report.summary import compared, print_parts

    if out:
        from harness.report.html import check_folder, write_comparison

        check_folder(out)
    parts, left_out = compared(
        named_or_all(named, runs),
        runs,
        baseline=baseline,
        data=data,
        where=where or (),
        in_pairs=pairs,
    )
    try:
        if markdown:
            from harness.report.summary import to_markdown

            echo(to_markdown(parts), end="")
        else:
            print_parts(parts)
    finally:  # write the report even if printing ends this process, as it can in `… | head`
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
            help="copy the averaging weights from another ensemble of the same jobs; required if "
            "the runs have no validation reviews",
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", metavar="ID", help="id of the ensemble and name of its folder"),
    ] = None,
    data: DataOfRun = None,
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


@app.command(epilog="Example: harness audit /home/a_student/runs/lstm/seed1 --full")
def audit(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="folders of finished runs")],
    quick: Annotated[bool, typer.Option("--quick", help="check without training")] = False,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="train the first N epochs again; default: 1"),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="train the whole run again")] = False,
    devices: DeviceList = None,
    data: DataOfRun = None,
    runs: RunsFolder = Path("runs"),
    here: Here = False,
    trust_code: TrustCode = False,
) -> None:
    """Check the numbers of finished runs by training them again.

    Never changes the runs. Saves its results in --runs, where harness compare reads them. Exit
    codes: 0 = equal, or equal within rounding; 1 = different; 2 = can't be audited here.
    """
    if quick + full + (epochs is not None) > 1:
        raise InputError("--quick, --epochs, --full: can't be combined; use only one of them")
    if not quick:
        confirm_here(here=here)
    if len(folders) == 1:
        depth = 0 if quick else None if full else epochs or 1
        _audit(folders[0], depth, devices=devices, data=data, runs=runs)
        return

    # Audit each run in a separate process, because some settings, such as the number of threads,
    # can't change after TensorFlow has started.
    given = {"--epochs": epochs, "--devices": devices, "--data": data, "--runs": runs}
    words = [f"{name}={value}" for name, value in given.items() if value is not None]
    words += [name for name, is_set in {"--quick": quick, "--full": full}.items() if is_set]
    codes = set[int]()
    for folder in folders:
        args = child_args("audit", *words, "--", str(folder))
        # If this process ends, the pipe closes, and then the child process ends too.
        with subprocess.Popen(args, env=own_code_first(), stdin=subprocess.PIPE) as child:  # noqa: S603
            try:
                codes.add(code := child.wait())
            except KeyboardInterrupt:  # the child received Ctrl-C too, and removes its files
                child.wait()
                raise
        if code < 0:
            log(logging.ERROR, f"run {folder}: the audit was ended by signal {-code}")
    if failed := codes - {0}:
        refused = failed == {InputError.exit_code}
        raise typer.Exit(InputError.exit_code if refused else RunError.exit_code)


@to_the_end()
def _audit(
    folder: Path, depth: int | None, *, devices: str | None, data: Path | None, runs: Path
) -> None:
    """Audit a run in this process, print the result and save it."""
    import pandas

    from harness.report.summary import plain_table
    from harness.training.audit import audit as audit_run

    found = audit_run(folder, epochs=depth, data=data, devices=devices)
    echo(plain_table(pandas.DataFrame(found.rows, dtype=object)))
    echo(found.sentence)
    try:
        keep_audit(runs, found.result_sha256, found.record())
    except (DiskError, OSError) as error:
        text = (
            f"--runs {runs}: the audit can't be saved ({error}); give a folder in which you can "
            "write"
        )
        if found.outcome != DIFFERS:
            raise InputError(text) from None
        log(logging.ERROR, text)  # exit code 2 would say that no audit was possible
    if found.outcome == DIFFERS:
        raise typer.Exit(RunError.exit_code)
