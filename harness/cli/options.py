"""Arguments and options that several commands share."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run: runs/lstm/my-run")]
RunsFolder = Annotated[
    Path, typer.Option("--runs", metavar="DIR", envvar="HARNESS_RUNS", help="folder of the runs")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="change a key"),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="folder of the dataset, instead of HARNESS_DATA"),
]
DeviceList = Annotated[
    str | None,
    typer.Option(
        "--devices",
        metavar="KIND:N",
        help="gpu:2, cpu, cpu:2; default: all GPUs",
    ),
]
Full = Annotated[bool, typer.Option("--full", help="fail if only the packaged sample is there")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, max=10_000, metavar="N", help="number of workers; default: one per GPU or CPU"
    ),
]
WorkersPerGpu = Annotated[
    int, typer.Option(min=1, max=64, metavar="N", help="number of workers that share a GPU")
]
Stall = Annotated[
    float,
    typer.Option(
        min=5,
        max=604_800,
        metavar="SECONDS",
        help="restart a worker after this time without progress",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def quoted(path: Path | str) -> str:
    """A path, quoted for the shell."""
    return shlex.quote(str(path))
