"""The command line: its commands gathered, and every way to end as an exit code."""

import signal
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from harness import __version__
from harness.cli import bench, compare, data, doctor, runs, submit, sweep, tensorboard, train, tune
from harness.errors import InputError, Interrupted, RunError
from harness.system.processes import end_with_parent

app = typer.Typer(
    help="Train the notebook's recurrent sentiment models on any devices.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (train, tune, submit, runs, compare, tensorboard, doctor, bench):
    app.add_typer(commands.app)
app.add_typer(sweep.app, name="sweep")
app.add_typer(data.app, name="data")

INTERRUPTED = 130  # as shells and Typer count a Ctrl-C


def main() -> int:
    """Run the command line; returns the exit code: 0, 1 failed, 2 refused, 75 run me again."""
    try:
        # Typer gives back what typer.Exit was raised with, and 130 for a Ctrl-C.
        code = app(standalone_mode=False)
    except (InputError, RunError, Interrupted) as end:
        return _fail(str(end), end.exit_code)
    except TyperException as refusal:
        return _fail(f"{refusal.format_message()} See harness --help.", refusal.exit_code)
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    if code == INTERRUPTED:
        return _fail("interrupted at once; what was saved before stays", Interrupted.exit_code)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more would replace line and exit code
    print(f"harness: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return code


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", hidden=True)] = False,
) -> None:
    if exit_with_parent:
        end_with_parent()
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
