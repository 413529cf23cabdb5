"""`data fetch` and `data verify` handle IMDB; `data describe` checks and describes your texts."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import DataFolder
from harness.system.console import echo, log

if TYPE_CHECKING:
    from harness.data.dataset import Dataset


app = typer.Typer(help="Fetch and verify IMDB; check and describe your texts.")


@app.command(epilog="Example: harness data fetch --from /shared/datasets/aclImdb")
def fetch(
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="folder to copy IMDB from, instead of downloading: aclImdb/, or one with imdb.npz",
        ),
    ] = None,
) -> None:
    """Put IMDB into ~/.cache/harness.

    Downloads IMDB, unless HARNESS_DATA or ~/.cache/harness contains IMDB; or copies IMDB from a
    folder.
    """
    from harness.data.locations import named_folder
    from harness.data.sources import fetch as fetch_dataset

    dataset = fetch_dataset(source)
    _print_dataset(dataset)
    if (named := named_folder()) and named != dataset.folder:
        warning = f"HARNESS_DATA {named}: runs read this folder, not {dataset.folder}"
        log(logging.WARNING, f"{warning}; unset HARNESS_DATA")


@app.command(epilog="Example: harness data verify --data /scratch/imdb")
def verify(data: DataFolder = None) -> None:
    """Verify the checksums of the dataset that a run would use."""
    from harness.data.sources import open_dataset

    dataset = open_dataset(data)
    _print_dataset(dataset)
    echo(f"checksum {dataset.checksum} is right")


@app.command(epilog="Example: harness data describe reviews.csv")
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
            help="describe the table, such as data.text_column=review; repeat it for more keys",
        ),
    ] = None,
) -> None:
    """Check your texts and describe them.

    Prints the classes, splits, vocabulary and lengths of the texts.
    """
    from harness.data.own_texts import describe as describe_texts
    from harness.data.own_texts import open_source
    from harness.job.job_file import data_settings

    settings = data_settings(overrides or ())
    for line in describe_texts(open_source(source.absolute(), settings)):
        echo(line)


def _print_dataset(dataset: "Dataset") -> None:
    kind = "the SAMPLE" if dataset.is_sample else "official" if dataset.official else "not official"
    counts = f"{len(dataset.train):,} training and {len(dataset.test):,} test reviews"
    echo(f"{dataset.folder or 'packaged with harness'}: {counts}, {kind}")
    if dataset.note:
        echo(dataset.note)
