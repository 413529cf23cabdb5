"""The commands, by what they are about: each parses, calls a room of the house, and prints.

They import what they need when they are called, so that `--help` answers at once.
"""

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
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))
