"""`status`, `logs` and `cancel`: what runs, how far it is, and how to stop it."""

import io
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import AsJson, RunsFolder
from harness.errors import InputError, Interrupted, RunError

if TYPE_CHECKING:
    from harness.slurm.queue import Queue
    from harness.tracking.records import RunStatus


app = typer.Typer()

OneRun = Annotated[
    str, typer.Argument(metavar="RUN", help="a run's folder, its id, or its Slurm job's id")
]


@app.command(epilog="Example: harness status runs/lstm --watch")
def status(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="folders, run ids or Slurm job ids; else all runs"),
    ] = None,
    runs: RunsFolder = Path("runs"),
    everything: Annotated[
        bool, typer.Option("--all", help="show every ended run, not the newest 20 alone")
    ] = False,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="draw it anew until nothing runs or waits")
    ] = False,
    every_s: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.5, help="between two looks")
    ] = 5.0,
) -> None:
    """Show what runs, waits and has ended: run folders first, one question to Slurm at most."""
    from harness.monitoring.status import trials_of
    from harness.monitoring.status_table import StatusScreen
    from harness.slurm.queue import Queue

    if watch and as_json:
        raise InputError("--json: is for one look, leave out --watch")
    _encode_anything()
    queue = Queue()
    console = StatusScreen(runs, everything=everything or bool(names))

    def look() -> "list[RunStatus]":
        found = _select(names or (), runs, queue, many=True)
        # A sweep that is named is shown with its trials.
        trials = (trials_of(each) if each.trials and names else () for each in found)
        return [*found, *itertools.chain.from_iterable(trials)]

    try:
        if as_json:
            found = look()
            typer.echo(json.dumps([each.as_json() for each in found], indent=2, allow_nan=False))
            console.complain(queue.problem)
        elif not watch:
            console.show(look(), queue.problem)
        else:
            with console:
                while console.draw(look(), queue.problem):
                    time.sleep(every_s)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        _ignore_broken_pipe()


@app.command(epilog="Example: harness logs 1234_2 -f -n 20")
def logs(
    name: OneRun,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="go on until the run is over, over requeues too")
    ] = False,
    num_lines: Annotated[
        int | None, typer.Option("-n", "--lines", metavar="N", min=0, help="the last lines alone")
    ] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Print a run's log; with -f the exit code tells how the run ended: 0, 1, or 75 resume it."""
    from harness.monitoring.logs import Follower, Look, log_of, read_lines
    from harness.monitoring.logs import follow as follow_log
    from harness.monitoring.status import one
    from harness.slurm.queue import Queue

    _encode_anything()
    queue = Queue()
    try:  # a log that is there is read without the scheduler
        path = log_of(run := one(name, _select([name], runs, None)))
    except InputError:
        path = log_of(run := one(name, _select([name], runs, queue)), yet_to_come=follow)
    try:
        if not follow:
            for line in read_lines(path, num_lines):
                typer.echo(line)
            return
        follower, look = Follower(path), Look(run, queue)
        if num_lines is not None:
            for line in follower.seek_last(num_lines):
                typer.echo(line)
        for line in follow_log(follower, look):
            typer.echo(line)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        _ignore_broken_pipe()
        return
    end = look.status
    if end.state in ("interrupted", "cancelled"):
        raise Interrupted(f"{end.run}: {end.state}; {end.note}")
    if end.state != "finished":
        raise RunError(f"{end.run}: {end.state}; {end.note}")


@app.command(epilog="Example: harness cancel runs/lstm/slurm-1234_2")
def cancel(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="folders, run ids or Slurm job ids"),
    ],
    runs: RunsFolder = Path("runs"),
) -> None:
    """Stop runs: each saves first, stays stopped, and goes on by harness resume."""
    from harness.monitoring.cancel import ask_to_stop, wait_until_saved
    from harness.slurm.queue import Queue

    queue = Queue()
    # All names first: a typo in the last one leaves every run as it is.
    chosen = {each.folder: each for name in names for each in _select([name], runs, queue)}
    told: list[RunStatus] = []
    problems: list[str] = []
    for run in chosen.values():
        try:
            line = ask_to_stop(run)
            typer.echo(line) if line else told.append(run)
        except (InputError, RunError) as error:
            problems.append(str(error))
    for run in told:
        try:
            typer.echo(wait_until_saved(run, queue))
        except RunError as error:
            problems.append(str(error))
    for problem in problems[:-1]:
        typer.echo(f"harness: {problem}", err=True)
    if problems:
        raise RunError(problems[-1])


def _select(
    names: "list[str] | tuple[()]", runs: Path, queue: "Queue | None", *, many: bool = False
) -> "list[RunStatus]":
    """The runs of these names, all without any, in the order of `survey`."""
    from harness.monitoring.status import pick, survey

    folders = [Path(name) for name in names if os.path.isdir(name)]  # noqa: PTH112 - never raises
    found = survey(runs, queue, folders)
    if not names:
        return found
    chosen = {id(run) for name in names for run in pick(name, found, runs, many=many)}
    return [run for run in found if id(run) in chosen]


def _encode_anything() -> None:
    """Print what a terminal's encoding lacks as a question mark, rather than fail."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _ignore_broken_pipe() -> None:
    """Whoever read has read enough; the interpreter's own flush at its end must not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
