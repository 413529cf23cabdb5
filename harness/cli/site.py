"""Set up a site and its data: `doctor`, `data fetch`, `data verify` and `data describe`."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import AsJson, DataFolder, DeviceList, Here, RunsFolder, confirm_here
from harness.data.locations import named_folder
from harness.job.job_file import data_settings
from harness.slurm.environment import not_sourced
from harness.system.console import echo, log, rich_console

if TYPE_CHECKING:
    from harness.data.dataset import Dataset
    from harness.doctor.doctor import Finding
    from harness.doctor.probe import Estimate


app = typer.Typer()
data_app = typer.Typer(help="Fetch and verify IMDB; check and describe your texts.")
STYLES = {"green": "green", "yellow": "yellow", "red": "bold red"}
ROW = "{:14}{:>10}{:>9}{:>13}{:>12}{:>11}"


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
            help="train the five networks briefly, by default on one GPU; estimate each job's time",
        ),
    ] = False,
    here: Here = False,
) -> None:
    """Check the set-up of this site and print remedies.

    The exit code is 1 if any check is red.
    """
    from harness.compute.strategy import parse_devices, site_devices
    from harness.doctor.doctor import diagnose
    from harness.doctor.probe import probe as measure

    devices = devices or site_devices()
    if devices is not None:
        parse_devices(devices)
    if probe:
        confirm_here(here=here)
        estimates = measure(devices, data)
        is_well = _print_json([*estimates]) if as_json else _print_estimates(estimates)
    else:
        findings = diagnose(data, runs, devices)
        is_well = _print_json([*findings]) if as_json else _print_findings(findings)
    if not is_well:
        raise typer.Exit(1)


def _print_json(found: "Sequence[Finding | Estimate]") -> bool:
    echo(json.dumps([asdict(each) for each in found], indent=2))
    return all(each.is_well for each in found)


def _print_findings(findings: "Iterable[Finding]") -> bool:
    """Print each finding as soon as it is known; return False if a finding is red (an error)."""
    from rich.text import Text

    console = rich_console(soft_wrap=True)
    counts = dict.fromkeys(STYLES, 0)
    for each in findings:
        counts[each.level] += 1
        remedy = f" -> {each.remedy}" if each.remedy else ""
        line = " ".join(f"{each.name:20}{each.found}{remedy}".splitlines())
        console.print(Text.assemble((f"{each.level:7}", STYLES[each.level]), line))
    echo(", ".join(f"{count} {level}" for level, count in counts.items()))
    return not counts["red"]


def _print_estimates(estimates: "Iterable[Estimate]") -> bool:
    """Print each job's estimate as soon as it is measured; return whether all succeeded."""
    known: list[Estimate] = []
    for each in estimates:
        if not known:
            echo(ROW.format("job", "reviews/s", "start s", "whole job s", "--time", "memory GB"))
        if each.error:
            echo(f"{each.job}: {each.error}")
        else:
            figures = f"{each.reviews_per_s:,.0f}", each.first_step_s, f"{each.total_s:,.0f}"
            echo(ROW.format(each.job, *figures, each.time_limit, f"{each.memory_gb:.1f}"))
        known.append(each)
    good = [each for each in known if each.is_well]
    if good:
        echo(f"Measured on {good[0].devices} with {good[0].data}.")
        echo("Column 'whole job s': estimated seconds for all of IMDB, 25,000 reviews per split.")
    return len(good) == len(known)


# The commands `data …`


@data_app.command(epilog="Example: harness data fetch --from /shared/datasets/aclImdb")
def fetch(
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="copy IMDB from this folder: aclImdb/ or a folder that contains imdb.npz",
        ),
    ] = None,
) -> None:
    """Put IMDB into ~/.cache/harness.

    Downloads IMDB if neither HARNESS_DATA nor ~/.cache/harness contains it. With --from, copies
    IMDB and downloads nothing.
    """
    from harness.data.sources import fetch as fetch_dataset

    dataset = fetch_dataset(source)
    _print_dataset(dataset)
    if (named := named_folder()) and named != dataset.folder:
        warning = f"HARNESS_DATA {named}: runs read this folder, not {dataset.folder}"
        log(logging.WARNING, f"{warning}; unset HARNESS_DATA")


@data_app.command(epilog="Example: harness data verify --data /scratch/imdb")
def verify(data: DataFolder = None) -> None:
    """Verify the checksums of the dataset that a run would use."""
    from harness.data.sources import open_dataset

    if not data and (hint := not_sourced(["HARNESS_DATA"])):
        log(logging.WARNING, hint)
    dataset = open_dataset(data)
    _print_dataset(dataset)
    echo(f"checksum {dataset.checksum} is right")


@data_app.command(epilog="Example: harness data describe reviews.csv")
def describe(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="your texts: a table or folder that the job key data.source accepts",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="set a key that describes the texts, such as data.text_column=review; repeat "
            "the option for more keys",
        ),
    ] = None,
) -> None:
    """Check your texts and describe them.

    Prints the classes, splits, vocabulary and lengths of the texts.
    """
    from harness.data.own_texts import describe as describe_texts
    from harness.data.own_texts import open_source

    settings = data_settings(overrides or ())
    for line in describe_texts(open_source(source.absolute(), settings)):
        echo(line)


def _print_dataset(dataset: "Dataset") -> None:
    kind = "the SAMPLE" if dataset.is_sample else "official" if dataset.official else "not official"
    counts = f"{len(dataset.train):,} training and {len(dataset.test):,} test reviews"
    echo(f"{dataset.folder or 'packaged with harness'}: {counts}, {kind}")
    if dataset.note:
        echo(dataset.note)
