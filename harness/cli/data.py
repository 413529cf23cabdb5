"""`data fetch`, `verify` and `stage` for IMDB, and `data describe` for a user's own texts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import DataFolder
from harness.errors import RunError

if TYPE_CHECKING:
    from harness.data.dataset import Dataset


app = typer.Typer(help="The data: fetch, check and stage IMDB, describe texts of your own.")


@app.command(epilog="Example: harness data fetch --from /shared/datasets/aclImdb")
def fetch(
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="the raw reviews, aclImdb/, or Keras's files"),
    ] = None,
) -> None:
    """Get the dataset into your cache: by a download, or from what a centre already holds."""
    from harness.data.imdb_sources import fetch as fetch_dataset

    _print_dataset(fetch_dataset(source))


@app.command(epilog="Example: harness data verify --data /scratch/imdb")
def verify(data: DataFolder = None) -> None:
    """Check every byte of the dataset that a run would take."""
    from harness.data.imdb import verify as find_problems
    from harness.data.imdb_sources import open_dataset

    dataset = open_dataset(data)
    _print_dataset(dataset)
    problems = find_problems(dataset)
    if problems:
        raise RunError(f"{dataset.folder}: {'; '.join(problems)}; harness data fetch anew")
    typer.echo(f"checksum {dataset.checksum} holds")


@app.command(epilog='Example: harness data stage "$TMPDIR/imdb"')
def stage(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder on the node's disk")],
    data: DataFolder = None,
) -> None:
    """Put a copy on a node's own disk; HARNESS_STAGE=DIR makes runs take it."""
    from harness.data.dataset import save_folder
    from harness.data.imdb_sources import open_dataset

    dataset = open_dataset(data, full=True)
    written = save_folder(dataset, folder)
    typer.echo(f"{folder}: {'written' if written else 'is there already, left as it is'}")


@app.command(epilog="Example: harness data describe reviews.csv")
def describe(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="a CSV or TSV file or a folder, as for data.source"),
    ],
) -> None:
    """Check texts of your own, and tell their classes, split, words and lengths."""
    from harness.data.text_dataset import describe as tell
    from harness.data.text_dataset import open_source

    for line in tell(open_source(source.absolute())):
        typer.echo(line)


def _print_dataset(dataset: "Dataset") -> None:
    kind = "the SAMPLE" if dataset.is_sample else "official" if dataset.official else "not official"
    counts = f"{len(dataset.train):,} training and {len(dataset.test):,} test reviews"
    typer.echo(f"{dataset.folder or 'packaged with harness'}: {counts}, {kind}")
    if dataset.note:
        typer.echo(dataset.note)
