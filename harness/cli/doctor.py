"""`doctor`: checks whether this site is set up, and how fast it trains."""

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from harness.cli.options import AsJson, DataFolder, DeviceList, Here, RunsFolder, confirm_here
from harness.errors import InputError, RunError
from harness.system.console import Console, echo, rich_console

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.checks.finding import Finding
    from harness.checks.probe import Estimate


app = typer.Typer()
T = TypeVar("T", "Finding", "Estimate")
STYLES = {"green": "green", "yellow": "yellow", "red": "bold red"}
ACCEPTED_STYLES = {**STYLES, "not run": "dim"}
MAX_MINUTES = 60


@app.command(
    epilog="Examples: harness doctor --runs /scratch/me/runs; harness doctor --probe; "
    "harness doctor --accept --full"
)
def doctor(
    data: DataFolder = None,
    runs: RunsFolder = Path("runs"),
    devices: DeviceList = None,
    as_json: AsJson = False,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="train for a minute: how long a job takes; fills CUDA's cache of kernels",
        ),
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(metavar="N", help="duration of --probe; default: 1")
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="prove this node by real runs, in about ten minutes")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="with --accept: several GPUs and nodes, memory, sharing")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="with --accept: where the JSON file goes")
    ] = None,
    here: Here = False,
) -> None:
    """Check whether this site is set up.

    Prints a remedy for each problem. The exit code is 1 if any check is red.
    """
    if accept and probe:
        raise InputError("--accept and --probe: give one of them")
    if (full or out) and not accept:
        raise InputError(f"{'--full' if full else '--out'}: belongs to --accept; give --accept too")
    if minutes is not None and not probe:
        raise InputError(f"--minutes {minutes:g}: is the duration of --probe; give --probe too")
    if minutes is not None and not 0 < minutes <= MAX_MINUTES:
        raise InputError(f"--minutes {minutes:g}: should be above 0, up to {MAX_MINUTES}")
    try:
        from harness.checks.acceptance import accept as prove
        from harness.checks.acceptance import check_writable, write_report
        from harness.checks.doctor import diagnose
        from harness.checks.probe import describe_kernel_cache, folder_gb
        from harness.checks.probe import probe as measure
        from harness.compute.strategy import parse_devices, site_devices
        from harness.system.cuda import kernel_cache
    except ImportError as error:  # the environment itself is broken
        raise RunError(f"{error}; repair it by: bash slurm/common.sh --setup") from None
    devices = devices or site_devices()
    if devices is not None:
        parse_devices(devices)
    if accept or probe:
        instead = "srun --gres=gpu:1 --cpus-per-task=4 --mem=16G harness doctor --probe"
        confirm_here("sbatch slurm/doctor.sh" if accept else instead, Console(), here=here)
    if accept:
        check_writable(out, runs)
        show = (lambda *_: None) if as_json else _print_check  # the JSON is printed at the end
        report = prove(devices, data, full=full, show=show)
        try:
            file = write_report(report, out, runs)
        except RunError:  # what took minutes is not lost
            echo(json.dumps(report, indent=2))
            raise
        levels = [each["level"] for each in report["checks"]]
        counts = ", ".join(f"{levels.count(each)} {each}" for each in ACCEPTED_STYLES)
        echo(json.dumps(report, indent=2) if as_json else f"{counts}; written to {file}")
        is_well = "red" not in levels
    elif probe:
        cache = kernel_cache()
        before_gb = folder_gb(cache)
        with _waiting("measuring"):
            estimates = measure(minutes or 1.0, devices, data)
        _print(estimates, _print_estimates, as_json=as_json)
        if not as_json and any(each.on_gpu for each in estimates):
            echo(describe_kernel_cache(cache, before_gb))
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


def _print_check(number: int, finding: "Finding") -> None:
    from rich.text import Text

    level = "-" if finding.level == "not run" else finding.level
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    found = " ".join(f"{finding.found}{remedy}".split())
    line = Text(f"{number:3} ")
    line.append(f"{level:7}", ACCEPTED_STYLES[finding.level])
    line.append(f"{finding.name:24} {found}")
    rich_console(soft_wrap=True).print(line)


def _print_estimates(estimates: "list[Estimate]") -> None:
    from rich.table import Table

    console = rich_console(soft_wrap=True)
    heads = ("job", "reviews/s", "start s", "whole job s", "--time", "measured s", "memory GB")
    table = Table(*heads, box=None, padding=(0, 1, 0, 0))
    good = [each for each in estimates if each.total_s]
    for each in good:
        table.add_row(
            each.job,
            f"{each.reviews_per_s:,.0f}",
            f"{each.first_step_s:.1f}",
            f"{each.total_s:,.0f}",
            each.time_limit,
            f"{each.measured_s:.1f}",
            f"{each.peak_memory_gb:.1f}",
        )
    if good:
        console.print(table)
        full = "; the whole job is estimated for the full data" if good[0].is_sample else ""
        console.print(f"Measured on {good[0].devices} with {good[0].data}{full}.", markup=False)
        if not good[0].on_gpu:
            console.print("It holds for machines like this one. To measure a GPU node:")
            console.print("srun --gres=gpu:1 --cpus-per-task=4 --mem=16G harness doctor --probe")
    ratios = [f"{e.job} {e.speed_of_two:.2f}" for e in good if e.speed_of_two is not None]
    ratio = "not measured; needs two GPUs and no --devices"
    if ratios:
        ratio = f"{', '.join(ratios)} times as fast"
    console.print(f"Two GPUs against one: {ratio}.", markup=False)
    for each in estimates:
        if each.error:
            console.print(f"{each.job}: {each.error}", markup=False)
