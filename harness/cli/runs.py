"""Watch runs, stop them and free disk space: `status`, `logs`, `cancel`, `tensorboard`, `prune`."""

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from harness.cli.options import AsJson, RunsFolder
from harness.errors import InputError, Interrupted, RunError
from harness.slurm.client import Queue
from harness.system.console import echo, log, quoted, rich_console, to_the_end
from harness.tracking.cancel import ask_to_stop, wait_until_saved
from harness.tracking.logs import ASK_EVERY_S, Follower, log_of
from harness.tracking.logs import follow as follow_log
from harness.tracking.records import JOB_ID, RunStatus, one_line
from harness.tracking.run_dir import named_or_all
from harness.tracking.status import format_duration, one, pick, refresh, select_runs, survey
from harness.tuning.sweep_dir import stop_search_in

app = typer.Typer()

WATCH_S = 5.0  # seconds between two refreshes
MAX_LEFT = 5  # the largest number of unchanged folders that `prune` lists
NUM_NEWEST = 20  # number of ended runs that `harness status` shows by default
STYLES = {
    **dict.fromkeys(("running", "starting"), "green"),
    **dict.fromkeys(("pending", "submitted", "suspended", "interrupted"), "yellow"),
    **dict.fromkeys(("stale", "lost", "dead", "failed"), "red"),
}
STATES = (*STYLES, "finished", "cancelled", "gone", "unknown")
FIGURES = ("seed", "state", "epoch", "rev/s", "ETA", "val %", "test %")
RIGHT = {*FIGURES} - {"state"}
GAP = "  "

OneRun = Annotated[
    str, typer.Argument(metavar="RUN", help="a run's folder or id, or the id of its Slurm job")
]


@app.command(
    epilog="Examples: harness status runs/lstm --watch; harness status --state failed --newer 24"
)
def status(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="folders, run ids or Slurm job ids; default: all runs"),
    ] = None,
    runs: RunsFolder = Path("runs"),
    everything: Annotated[
        bool, typer.Option("--all", help="show all runs that have ended, not only the newest 20")
    ] = False,
    states: Annotated[
        list[str] | None,
        typer.Option("--state", metavar="STATE", help="show runs in this state only; repeatable"),
    ] = None,
    newer: Annotated[
        float | None,
        typer.Option(
            "--newer", metavar="HOURS", min=0, help="hide runs that ended more than HOURS ago"
        ),
    ] = None,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="refresh until nothing is running or waiting")
    ] = False,
) -> None:
    """Show which runs are running, waiting or finished.

    Reads the folders of the runs, and asks Slurm at most once in 30 seconds.
    """
    if watch and as_json:
        raise InputError("--json: prints once; leave out --watch")
    for state in states or ():
        if state not in STATES:
            raise InputError(f"--state {state}: should be one of {', '.join(STATES)}")
    queue = Queue()

    try:
        while True:
            found = select_runs(names, runs, queue, many=True) if names else survey(runs, queue)
            goes_on = any(each.alive for each in found)
            since_s = time.time() - 3600 * newer if newer is not None else 0.0
            found = [
                each
                for each in found
                if (not states or each.state in states) and (each.alive or each.time_s >= since_s)
            ]
            if as_json:
                echo(json.dumps([each.as_json() for each in found], indent=2, allow_nan=False))
            else:
                print_table(found, runs, everything=everything or bool(names), clears=watch)
            if queue.problem:
                log(
                    logging.WARNING,
                    f"{queue.problem}; the table shows only what the run folders contain",
                )
            if not (watch and goes_on):
                break
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        if not watch:
            raise


@app.command(epilog="Example: harness logs 1234_2 -f")
def logs(
    name: OneRun,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="follow until the run ends, across requeues")
    ] = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Print or follow the log of a run.

    With -f, the exit code says how the run ended: 0 = finished, 1 = failed, 75 = interrupted.
    After Ctrl-C the exit code is 0.
    """
    queue = Queue()
    if not follow:
        try:  # to read a log that exists, do not wait for Slurm
            path = log_of(one(name, select_runs([name], runs, None)))
        except InputError:
            path = log_of(one(name, select_runs([name], runs, queue)))
        for line in Follower(path).new_lines(at_end=True):
            echo(line)
        return
    run = one(name, select_runs([name], runs, queue))
    queue.every_s = ASK_EVERY_S
    look = partial(refresh, run, queue)
    follower = Follower(Path(run.log) if run.log else None)
    try:
        if run.state == "pending":
            reason = f" ({run.note})" if run.note else ""
            echo(f"harness: run {run.run} is pending{reason}; waiting", err=True)
        for line in follow_log(follower, look):
            echo(line)
    except KeyboardInterrupt:
        return
    end = look()
    if end.state in ("interrupted", "cancelled"):
        raise Interrupted(f"{end.run}: {end.state}; {end.note}")
    if end.state != "finished":
        raise RunError(f"{end.run}: {end.state}; {end.note}")


@app.command(epilog="Example: harness cancel runs/lstm/slurm-1234_2")
@to_the_end()
def cancel(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="folders, run ids or Slurm job ids"),
    ],
    runs: RunsFolder = Path("runs"),
) -> None:
    """Stop runs; each run saves a checkpoint first.

    Slurm does not requeue the job of a stopped run; harness resume continues the run.
    """
    queue = Queue()
    # Resolve all names before any run is stopped, because the last name may have a typo.
    statuses = survey(runs, queue, [Path(name) for name in names if name.strip()])
    selected = [(name, run) for name in names for run in pick(name, statuses, runs)]
    chosen = {run.folder: run for _, run in selected}
    # The id of a job stops all seeds of the job; the name of a run stops only this run.
    by_job = {run.folder for name, run in selected if JOB_ID.fullmatch(name)}
    stopping: list[RunStatus] = []
    problems: list[str] = []
    for folder, run in chosen.items():
        alone = run.shares_job and folder not in by_job
        try:
            line = ask_to_stop(run, stop_search=stop_search_in, alone=alone, problem=queue.problem)
            echo(line) if line else stopping.append(run)
        except (InputError, RunError) as error:
            problems.append(str(error))
    for run in stopping:
        try:
            echo(wait_until_saved(run, queue))
        except RunError as error:
            problems.append(str(error))
    for problem in problems[:-1]:
        log(logging.ERROR, problem)
    if problems:
        raise RunError(problems[-1])


@app.command(epilog="Example: harness tensorboard runs/lstm --hours 2")
def tensorboard(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN",
            help="runs, folders of runs, or ids; default: the newest 200 runs in --runs",
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
    until_finished: Annotated[
        bool, typer.Option("--until-finished", help="stop when all runs have finished")
    ] = False,
    opens_page: Annotated[
        bool, typer.Option("--open", help="open the page in this machine's browser")
    ] = False,
) -> None:
    """Show runs in a TensorBoard that only you can open.

    Prints the ssh command that opens a tunnel from your laptop to TensorBoard.
    """
    from harness.board.tensorboard import Watch, check_roots, serve

    watch = Watch(hours, until_finished=until_finished)
    serve(check_roots(folders or [], runs), runs, watch, login=login, opens_page=opens_page)


@app.command(epilog="Example: harness prune runs/lstm --yes")
def prune(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="runs or folders of runs; default: all runs in --runs"),
    ] = None,
    runs: RunsFolder = Path("runs"),
    really: Annotated[bool, typer.Option("--yes", help="remove the files")] = False,
) -> None:
    """Free disk space of finished runs and searches.

    Removes the checkpoints of runs. In a search, removes the models, checkpoints and status files
    of all trials except the best five; the status files of failed trials remain. Without --yes,
    only prints the sizes.
    """
    from harness.tuning.prune_runs import prune_all

    tops = named_or_all(folders, runs)
    for path in folders or ():
        if not os.path.isdir(path):  # noqa: PTH112 - `Path.is_dir` may raise an error
            raise InputError(
                f"RUN {path}: is not a folder that you can read; give runs, or a folder of runs"
            )
    done = prune_all(tops, really=really)
    if folders and not done.num_runs and not done.left:
        raise InputError(f"RUN {folders[0]}: contains no run; give runs, or a folder of runs")
    for folder, why in done.left[:MAX_LEFT]:
        echo(f"unchanged: {quoted(folder)} {why}")
    if len(done.left) > MAX_LEFT:
        echo(f"unchanged: {len(done.left) - MAX_LEFT} more")
    if not done.num_files:
        echo(f"nothing to remove in {done.num_runs} finished runs")
        return
    files = f"{done.num_bytes / 1e6:,.1f} MB, {done.num_files:,} files"
    again = "to make removed files again, run: harness train RUN/job.toml"
    verb = "removed" if really else "can be removed with --yes"
    echo(f"{files} of {done.num_runs} finished runs {verb}; {again}")


# The table of `harness status`


def split_shown(statuses: Sequence[RunStatus], *, everything: bool) -> tuple[list[RunStatus], str]:
    """Return the runs to show, and a line about the hidden older runs (empty if all are shown)."""
    ended = [each for each in statuses if not each.alive]
    hidden = [] if everything else ended[NUM_NEWEST:]
    left_out = {id(each) for each in hidden}
    counts = Counter(each.state for each in hidden)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    line = f"older runs, not shown: {len(hidden)} ({states}); --all shows them" if hidden else ""
    return [each for each in statuses if id(each) not in left_out], line


def cells(status: RunStatus) -> dict[str, str]:
    """Return the text of each column for a run; the text for an unknown value is empty."""
    goes_on = status.state in ("running", "stale")
    speed = status.reviews_per_s if goes_on else None
    eta = status.eta_s if status.state == "running" else None
    epochs = f"{status.epoch or '-'}/{status.num_epochs}" if status.num_epochs else ""
    texts = {
        "run": status.run,
        "seed": "" if status.seed is None else str(status.seed),
        "state": status.state,
        "epoch": epochs,
        "rev/s": "" if speed is None else f"{speed:.0f}",
        "ETA": "" if eta is None else format_duration(eta),
        "val %": _per_cent(status.val_accuracy),
        "test %": _per_cent(status.test_accuracy),
        "note": "; ".join(_notes(status)),
    }
    return {name: one_line(text) for name, text in texts.items()}


def _per_cent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _notes(status: RunStatus) -> Iterator[str]:
    """Yield the facts about a run that no other column shows."""
    if status.architecture and status.architecture != status.job:
        yield status.architecture
    if status.slurm_job and status.slurm_job not in status.run:
        yield f"Slurm job {status.slurm_job}"
    if status.restarts:
        yield f"restarts: {status.restarts}"
    if status.note:
        yield status.note


def as_lines(
    rows: Sequence[dict[str, str]], names: Sequence[str] = ("run", *FIGURES, "note")
) -> list[str]:
    """Return the headings and one line per row; a column is as wide as its longest text."""
    # Don't use Rich's Table, which takes a second for a thousand runs.
    columns = []
    for name in names:
        texts = [name, *(row[name] for row in rows)]
        width, align = max(map(len, texts)), str.rjust if name in RIGHT else str.ljust
        columns.append([align(text, width) for text in texts])
    return [GAP.join(line).rstrip() for line in zip(*columns, strict=True)]


def as_renderable(statuses: Sequence[RunStatus], width: int) -> RenderableType:
    """Return the table for a terminal, with a line of notes below each run that has notes."""
    rows = [cells(each) for each in statuses]
    figures = [name for name in FIGURES if any(row[name] for row in rows)]
    room = width - len(GAP) - max(map(len, as_lines(rows, figures)))
    # A long name is on a separate line, so that users can copy the name.
    is_long = [len(row["run"]) > room for row in rows]
    shown = [row | {"run": ""} if long else row for row, long in zip(rows, is_long, strict=True)]
    headings, *lines = as_lines(shown, ("run", *figures))
    parts: list[RenderableType] = [Text(headings, "bold", overflow="fold")]
    for status, row, long, line in zip(statuses, rows, is_long, lines, strict=True):
        if long:
            parts.append(Text(row["run"], overflow="fold"))
        parts.append(Text(line, STYLES.get(status.state, ""), overflow="fold"))
        if row["note"]:
            parts.append(Padding(Text(row["note"], "dim"), (0, 0, 0, 4)))
    return Group(*parts)


def print_table(
    statuses: Sequence[RunStatus], runs: Path, *, everything: bool, clears: bool
) -> None:
    """Print the table.

    Args:
        statuses: the status of each run.
        runs: the folder of all runs.
        everything: whether to show all runs that have ended, not only the newest.
        clears: whether to clear a terminal first.
    """
    shown, older = split_shown(statuses, everything=everything)
    none = "" if shown else f"no run to show below {runs}"
    below = [line for line in (none, older) if line]
    console = rich_console()
    if not console.is_terminal:
        echo("\n".join([*(as_lines([*map(cells, shown)]) if shown else []), *below]))
        return
    if clears:
        console.clear()
    if shown:
        console.print(as_renderable(shown, console.width))
    for line in below:
        console.print(Text(line, "dim"))
