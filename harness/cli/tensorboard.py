"""`tensorboard`: a look at runs, from afar."""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import RunsFolder
from harness.errors import InputError

app = typer.Typer()


@app.command(epilog="Example: harness tensorboard runs/lstm --hours 2")
def tensorboard(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[RUN...]", help="runs, or folders of runs; else all under --runs"),
    ] = None,
    runs: RunsFolder = Path("runs"),
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=1024, max=65535, help="the port, else a free one"),
    ] = None,
    use_socket: Annotated[
        bool, typer.Option("--socket", help="listen on a socket that only you can connect to")
    ] = False,
    login: Annotated[
        str | None,
        typer.Option(
            metavar="USER@HOST", envvar="HARNESS_LOGIN", help="the login node, as laptops know it"
        ),
    ] = None,
    hours: Annotated[
        float, typer.Option(metavar="H", min=0, max=8760, help="end after this time")
    ] = 8,
    idle_min: Annotated[
        float,
        typer.Option(
            "--idle-minutes", metavar="M", min=0, max=525600, help="end when nobody looks"
        ),
    ] = 60,
    until_finished: Annotated[
        bool, typer.Option("--until-finished", help="end when all of the runs are finished")
    ] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="open the browser of this desktop")
    ] = False,
) -> None:
    """Show runs in a TensorBoard that only you can open, with the tunnel command to paste."""
    if open_page and use_socket:
        raise InputError("--open: no browser can open a --socket; leave one of them out")
    for name, value in (("--hours", hours), ("--idle-minutes", idle_min)):
        if not value > 0:
            raise InputError(f"{name} {value:g}: should be greater than 0")

    from harness.monitoring.tensorboard import Until, check_roots, serve
    from harness.system.console import Console

    serve(
        check_roots(folders or [], runs),
        runs,
        Until(hours=hours, idle_min=idle_min, finished=until_finished),
        port=port,
        use_socket=use_socket,
        login=login,
        open_page=open_page,
        say=Console().info,
    )
