"""Arguments and options that several commands share."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder under runs/")]
RunsFolder = Annotated[
    Path, typer.Option("--runs", metavar="DIR", envvar="HARNESS_RUNS", help="where runs are kept")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="override a key")
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="folder with the dataset, before HARNESS_DATA"),
]
DeviceList = Annotated[
    str | None, typer.Option("--devices", metavar="KIND:N", help="gpu:2, cpu, cpu:2; else all")
]
Full = Annotated[bool, typer.Option("--full", help="refuse to fall back to the packaged sample")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="how many; default: one a GPU, or one a CPU"),
]
WorkersPerGpu = Annotated[
    int, typer.Option(min=1, max=64, metavar="N", help="that share a GPU and its memory")
]
Stall = Annotated[
    float,
    typer.Option(min=5, metavar="SECONDS", help="restart a worker after so long without progress"),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def quoted(path: Path | str) -> str:
    """A path, quoted for the shell."""
    return shlex.quote(str(path))
