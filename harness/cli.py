"""The command line: parse, call, print. What a command does stands in the rooms below."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from harness import __version__
from harness.errors import InputError, Interrupted, RunError

if TYPE_CHECKING:  # a command imports what it needs, so that --help answers at once
    from harness.imdb import Dataset
    from harness.job import Job
    from harness.run import Run
    from harness.screen import Screen

app = typer.Typer(
    help="Train the notebook's recurrent sentiment models on any devices.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="The dataset: fetch it, check it, put it on a node's own disk.")
app.add_typer(data_app, name="data")

INTERRUPTED = 130  # as shells and Typer count a Ctrl-C

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="a TOML file such as jobs/lstm.toml")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder under runs/")]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="folder with the dataset, before HARNESS_DATA"),
]
DeviceList = Annotated[
    str | None, typer.Option("--devices", metavar="KIND:N", help="gpu:2, cpu, cpu:2; else all")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


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
    print(f"harness: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return code


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(epilog="Example: harness train jobs/lstm.toml --set train.epochs=8 --seed 2")
def train(
    job_file: JobFile,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="override a key")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="train.seed")] = None,
    devices: DeviceList = None,
    data: DataFolder = None,
    full: Annotated[
        bool, typer.Option("--full", help="refuse to fall back to the packaged sample")
    ] = False,
    runs: Annotated[
        Path, typer.Option(metavar="DIR", envvar="HARNESS_RUNS", help="where runs are kept")
    ] = Path("runs"),
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run-id", metavar="ID", help="name the run, or go on with the one of that name"
        ),
    ] = None,
) -> None:
    """Train one model, end to end: data, fit, test, record."""
    from harness.job import load_job
    from harness.run import Run

    job = load_job(job_file, overrides or (), seed)
    _go(Run.new(runs, job, run_id), job, devices=devices, data=data, full=full)


@app.command(epilog="Example: harness resume runs/lstm/20260101-120000-seed1")
def resume(run_folder: RunFolder, devices: DeviceList = None, data: DataFolder = None) -> None:
    """Go on with an unfinished run exactly where it was; a finished one stays as it is."""
    from harness.run import Run

    run = Run.open(run_folder)
    _go(run, run.job(), devices=devices, data=data, full=False)


def _go(run: "Run", job: "Job", *, devices: str | None, data: Path | None, full: bool) -> None:
    from harness.launch import launch
    from harness.screen import Screen

    screen = Screen()
    if run.finished():
        screen.say(f"run {run.folder}: finished already, nothing to do")
        _print_result(run, run.result(), screen)
        return
    try:
        result = launch(run, job, devices=devices, data=data, full=full, screen=screen)
    except Interrupted as signal:
        raise Interrupted(
            f"interrupted by {signal}, checkpoint saved; go on by: harness resume "
            f"{_quoted(run.folder)}"
        ) from None
    _print_result(run, result, screen)


def _print_result(run: "Run", result: dict[str, Any], screen: "Screen") -> None:
    from harness.scores import describe_scores

    folder = run.folder
    screen.say(
        f"{result['architecture']}, seed {result['seed']}, tested on {result['num_test']:,} reviews"
        f" of {result['data']}: {describe_scores(result)}"
    )
    screen.say(f"model        {folder / 'model.keras'}")
    screen.say(f"TensorBoard  {folder / 'tensorboard'}")
    screen.say(f"records      {folder}")
    screen.say(f'next         harness predict {_quoted(folder)} "An excellent movie!"')


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


@app.command(epilog="Example: harness evaluate runs/lstm/20260101-120000-seed1")
def evaluate(run_folder: RunFolder, data: DataFolder = None, as_json: AsJson = False) -> None:
    """Test the model of a finished run again, on the test set that it was tested on."""
    from harness.launch import evaluate_again
    from harness.run import Run
    from harness.scores import describe_scores

    scores = evaluate_again(Run.open(run_folder), data)
    typer.echo(json.dumps(scores) if as_json else describe_scores(scores))


@app.command(epilog='Example: harness predict runs/lstm/my-run "An excellent movie!"')
def predict(
    run_folder: RunFolder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="reviews; without any, lines of standard input"),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="a review a line")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell the sentiment of raw text."""
    from harness.launch import prepare_quietly
    from harness.predict import check_texts, predict, read_texts, split_lines
    from harness.run import Run

    run = Run.open(run_folder)
    if file is not None and texts:
        raise InputError(f"--file {file}: give either texts or a file, not both")
    if file is not None:
        texts = read_texts(file)
    elif not texts:
        content = sys.stdin.buffer.read() if sys.stdin else b""
        texts = split_lines(content, "standard input")
    check_texts(texts)
    prepare_quietly()
    for prediction in predict(run, texts):
        if as_json:
            typer.echo(json.dumps(asdict(prediction)))
        else:
            typer.echo(
                f"{prediction.sentiment}  {prediction.probability:.3f}  {prediction.text[:200]}"
            )


@app.command(epilog="Example: harness compare runs/lstm runs/gru --markdown")
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="runs, or folders that hold runs")
    ],
    markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown")] = False,
) -> None:
    """Compare finished runs: test accuracy by job over seeds, with an interval."""
    from rich.console import Console
    from rich.table import Table

    from harness.compare import HEADINGS, cells, find_runs, make_rows, to_markdown

    results, unfinished = find_runs(folders)
    rows = make_rows(results)
    for run in unfinished:
        typer.echo(f"left out, unfinished: {run}", err=True)
    if len(results) > sum(len(row.seeds) for row in rows):
        typer.echo("some runs are of the same job and seed: each seed counts once", err=True)
    if markdown:
        typer.echo(to_markdown(rows), nl=False)
        return
    for data in dict.fromkeys(row.data for row in rows):
        # Without a frame the whole table stands in 80 columns.
        table = Table(*HEADINGS, title=f"tested on {data}", box=None, padding=(0, 1, 0, 0))
        for row in rows:
            if row.data == data:
                table.add_row(*cells(row))
        Console().print(table)


@data_app.command(epilog="Example: harness data fetch --from /shared/datasets/aclImdb")
def fetch(
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="the raw reviews, aclImdb/, or Keras's files"),
    ] = None,
) -> None:
    """Get the dataset into your cache: by a download, or from what a centre already holds."""
    from harness.imdb_sources import fetch as fetch_dataset

    _print_dataset(fetch_dataset(source))


@data_app.command(epilog="Example: harness data verify --data /scratch/imdb")
def verify(data: DataFolder = None) -> None:
    """Check every byte of the dataset that a run would take."""
    from harness.imdb import verify as find_problems
    from harness.imdb_sources import open_dataset

    dataset = open_dataset(data)
    _print_dataset(dataset)
    problems = find_problems(dataset)
    if problems:
        raise RunError(f"{dataset.folder}: {'; '.join(problems)}; harness data fetch anew")
    typer.echo(f"checksum {dataset.checksum} holds")


@data_app.command(epilog='Example: harness data stage "$TMPDIR/imdb"')
def stage(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder on the node's disk")],
    data: DataFolder = None,
) -> None:
    """Put a copy on a node's own disk; HARNESS_STAGE=DIR makes runs take it."""
    from harness.imdb import save_folder
    from harness.imdb_sources import open_dataset

    dataset = open_dataset(data, full=True)
    written = save_folder(dataset, folder)
    typer.echo(f"{folder}: {'written' if written else 'is there already, left as it is'}")


def _print_dataset(dataset: "Dataset") -> None:
    kind = "the SAMPLE" if dataset.is_sample else "official" if dataset.official else "not official"
    counts = f"{len(dataset.train):,} training and {len(dataset.test):,} test reviews"
    typer.echo(f"{dataset.folder or 'packaged with harness'}: {counts}, {kind}")
    if dataset.note:
        typer.echo(dataset.note)


if __name__ == "__main__":
    sys.exit(main())
