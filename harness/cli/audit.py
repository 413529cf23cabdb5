"""`audit`: checks the numbers of runs by training them again."""

import logging
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import (
    DataFolder,
    DeviceList,
    Here,
    RunsFolder,
    TrustCode,
    confirm_here,
    quoted,
)
from harness.errors import DiskError, InputError, NodeFault, RunError
from harness.system.console import echo, log

app = typer.Typer()


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
    data: DataFolder = None,
    runs: RunsFolder = Path("runs"),
    here: Here = False,
    trust_code: TrustCode = False,
) -> None:
    """Check the numbers of finished runs by training them again.

    Never changes the runs. Saves its results in --runs. Exit codes: 0 = equal, or equal within
    rounding; 1 = different; 2 = can't be audited here.
    """
    import pandas

    from harness.report.text_tables import plain_table
    from harness.tracking.audits import DIFFERS, keep_audit
    from harness.training.audit import audit as audit_run

    if quick + full + (epochs is not None) > 1:
        raise InputError("--quick, --epochs, --full: can't be combined; use only one of them")
    confirm_here(f"srun harness audit {quoted(folders[0])}", here=here)
    depth = 0 if quick else None if full else epochs or 1
    problems: list[InputError | RunError] = []
    num_different = 0
    for folder in folders:
        try:
            found = audit_run(
                folder, epochs=depth, data=data, devices=devices, say=partial(echo, err=True)
            )
        except NodeFault:
            raise
        except (InputError, RunError) as error:
            problems.append(error)
            num_different += isinstance(error, RunError)  # for example, the result is broken
            continue
        echo(plain_table(pandas.DataFrame(found.rows, dtype=object)))
        echo(found.sentence)
        num_different += found.outcome == DIFFERS
        try:
            keep_audit(runs, found.result_sha256, found.record())
        except (DiskError, OSError) as error:
            refusal = f"--runs {runs}: the audit can't be saved ({error}); name your own folder"
            problems.append(InputError(refusal))
    for problem in problems[: None if num_different else -1]:
        log(logging.ERROR, str(problem))
    if num_different:
        raise typer.Exit(RunError.exit_code)
    if problems:
        raise problems[-1]
