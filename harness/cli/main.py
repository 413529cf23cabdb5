"""The command line: collects the commands and turns errors into exit codes."""

import logging
import os
import signal
import sys
from typing import Annotated

import typer
from typer.core import TyperArgument
from typer.exceptions import TyperException

from harness import __version__
from harness.cli import results, runs, site, submit, train, tune
from harness.errors import InputError, Interrupted, RunError
from harness.slurm.pool import take_own_gpu
from harness.system import processes
from harness.system.console import echo, log, settle_output, take_any_text

app = typer.Typer(
    help="Train, test and compare text classifiers on this machine or on a Slurm cluster.",
    epilog="First steps: harness doctor; harness train jobs/lstm.toml; harness status; "
    "harness COMMAND --help",
    context_settings={"max_content_width": 100},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (train, tune, submit, runs, results, site):
    app.add_typer(commands.app)
app.add_typer(tune.sweep_app, name="sweep")
app.add_typer(site.data_app, name="data")

# Without the next line, the help would show the types of arguments, such as `<list[Path]>`.
TyperArgument.display_type_rich = lambda self, ctx: None  # type: ignore[method-assign]

INTERRUPTED = 130  # Typer's exit code after Ctrl-C


def main() -> int:
    """Run the command line.

    Returns:
        The exit code: 0 = success, 1 = failed, 2 = input refused, 75 = interrupted, can be resumed.
    """
    take_any_text()
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the user's shell may name another backend
    try:
        # An empty path would mean the current folder, of which `prune` would remove checkpoints.
        # The job scripts pass empty arguments to the commands job-begin, job-end and job-successor.
        if "" in sys.argv[1:] and not sys.argv[1].startswith("job-"):
            raise InputError("an argument is empty; check the variables of your shell")
        # `app` returns the exit code of typer.Exit, or INTERRUPTED.
        code = app(prog_name="harness", standalone_mode=False)
        if code == INTERRUPTED:
            raise Interrupted("interrupted by Ctrl-C and ended at once; saved files are kept")
    except (InputError, RunError, Interrupted) as end:
        code = _fail(str(end), end.exit_code)
    except TyperException as refusal:
        context = getattr(refusal, "ctx", None)
        command = context.command_path if context else "harness"
        line = refusal.format_message().rstrip(".")
        line += "; sbatch options go after --" if command == "harness submit" else ""
        stop = "" if line.endswith("?") else "."
        code = _fail(f"{line}{stop} See {command} --help.", refusal.exit_code)
    except ImportError as error:
        code = _fail(f"{error}; to repair the environment: bash slurm/common.sh --setup", 1)
    except MemoryError:
        code = _fail("out of memory; request more with --mem, or see ulimit -v", 1)
    except OSError as error:
        code = _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    code = code if isinstance(code, int) else 0
    settle_output()
    if processes.kept:
        processes.leave(code)
    return code


def _fail(message: str, code: int) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C would change the exit code
    log(logging.ERROR, " ".join(message.split()))
    return code


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", hidden=True)] = False,
) -> None:
    if exit_with_parent:
        processes.end_with_parent()
        take_own_gpu()
    if version:
        echo(__version__)
    elif context.invoked_subcommand is None:
        echo(context.get_help())
