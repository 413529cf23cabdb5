"""`tensorboard`: shows runs in a browser on this or another machine."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import RunsFolder

app = typer.Typer()


@app.command(epilog="Example: harness tensorboard runs/lstm --hours 2")
def tensorboard(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="runs, folders of runs, or ids; default: the newest 200 in --runs",
        ),
    ] = None,
    runs: RunsFolder = Path("runs"),
    login: Annotated[
        str | None,
        typer.Option(
            metavar="USER@HOST",
            envvar="HARNESS_LOGIN",
            help="login node through which the printed ssh command connects",
        ),
    ] = None,
    hours: Annotated[
        float, typer.Option(metavar="H", min=0.001, max=8760, help="stop after H hours")
    ] = 8,
) -> None:
    """Show runs in a TensorBoard that only you can open.

    Prints the ssh command that your laptop needs to reach it.
    """
    from harness.board.tensorboard import Watch, check_roots, serve

    serve(check_roots(folders or [], runs), runs, Watch(hours), login=login)
