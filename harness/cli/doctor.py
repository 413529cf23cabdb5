"""`doctor`: checks whether this site is set up, and how fast it trains."""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from harness.cli.options import AsJson, DataFolder, DeviceList, Here, RunsFolder, confirm_here
from harness.errors import RunError
from harness.system.console import Console, echo, rich_console

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.checks.finding import Finding
    from harness.checks.probe import Estimate


app = typer.Typer()
T = TypeVar("T", "Finding", "Estimate")
STYLES = {"green": "green", "yellow": "yellow", "red": "bold red"}
ON_GPU = "srun --gres=gpu:1 --cpus-per-task=4 --mem=16G"


@app.command(epilog="Examples: harness doctor --runs /scratch/me/runs; harness doctor --probe")
def doctor(
    data: DataFolder = None,
    runs: RunsFolder = Path("runs"),
    devices: DeviceList = None,
    as_json: AsJson = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="train for a minute or two: how long a job takes; fills CUDA's cache of kernels",
        ),
    ] = False,
    here: Here = False,
) -> None:
    """Check whether this site is set up.

    Prints a remedy for each problem. The exit code is 1 if any check is red.
    """
    try:
        from harness.checks.doctor import diagnose
        from harness.checks.probe import probe as measure
        from harness.compute.strategy import parse_devices, site_devices
    except ImportError as error:  # the environment itself is broken
        raise RunError(f"{error}; repair it by: bash slurm/common.sh --setup") from None
    devices = devices or site_devices()
    if devices is not None:
        parse_devices(devices)
    if probe:
        confirm_here(f"{ON_GPU} harness doctor --probe", Console(), here=here)
        with _waiting("measuring"):
            estimates = measure(devices, data)
        _print(estimates, _print_estimates, as_json=as_json)
        is_well = not any(each.error for each in estimates)
    else:
        with _waiting("checking"):
            findings = list(diagnose(data, runs, devices))
        _print(findings, _print_findings, as_json=as_json)
        is_well = not any(each.level == "red" for each in findings)
    if not is_well:
        raise typer.Exit(1)


def _print(results: "list[T]", as_text: "Callable[[list[T]], None]", *, as_json: bool) -> None:
    if as_json:
        echo(json.dumps([asdict(each) for each in results], indent=2))
    else:
        as_text(results)


def _waiting(what: str) -> AbstractContextManager[object]:
    """A spinner, on a terminal."""
    console = rich_console(stderr=True)
    return console.status(what) if console.is_terminal else nullcontext()


def _print_findings(findings: "list[Finding]") -> None:
    from rich.table import Table
    from rich.text import Text

    console = rich_console()
    counts = {level: sum(each.level == level for each in findings) for level in STYLES}
    if console.is_terminal:
        table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
        for each in findings:
            text = Text(each.found)
            if each.remedy:
                text.append(f"\n-> {each.remedy}", "bold")
            table.add_row(Text(each.level, STYLES[each.level]), Text(each.name), text)
        console.print(table)
    else:  # a line each, for grep
        for each in findings:
            remedy = f" -> {each.remedy}" if each.remedy else ""
            line = f"{each.level:7}{each.name:20}{each.found}{remedy}"
            echo(" ".join(line.splitlines()))
    echo(", ".join(f"{count} {level}" for level, count in counts.items()))


def _print_estimates(estimates: "list[Estimate]") -> None:
    from rich.table import Table

    console = rich_console(soft_wrap=True)
    heads = ("job", "reviews/s", "start s", "whole job s", "--time", "memory GB")
    table = Table(*heads, box=None, padding=(0, 1, 0, 0))
    good = [each for each in estimates if each.total_s]
    for each in good:
        table.add_row(
            each.job,
            f"{each.reviews_per_s:,.0f}",
            f"{each.first_step_s:.1f}",
            f"{each.total_s:,.0f}",
            each.time_limit,
            f"{each.peak_memory_gb:.1f}",
        )
    if good:
        console.print(table)
        text = "the whole job is estimated for IMDB's 25,000 reviews of each split"
        console.print(f"Measured on {good[0].devices} with {good[0].data}; {text}.", markup=False)
        if not good[0].on_gpu:
            console.print("It holds for machines like this one. To measure a GPU node:")
            console.print(f"{ON_GPU} harness doctor --probe")
    for each in estimates:
        if each.error:
            console.print(f"{each.job}: {each.error}", markup=False)
