"""`train`, `resume`, `evaluate`, `predict` and `export`: make runs and use their models."""

import contextlib
import itertools
import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from harness.cli.options import (
    AsJson,
    DataFolder,
    DataOfRun,
    DeviceList,
    Full,
    Here,
    Overrides,
    RunFolder,
    RunsFolder,
    Strict,
    TrustCode,
    Workers,
    confirm_here,
)
from harness.cli.tune import run_sweep, worker_request
from harness.errors import InputError
from harness.job.job_file import load_job
from harness.job.search import is_sweep
from harness.slurm.resources import parse_seeds
from harness.system.console import Console, echo, log, quoted
from harness.tracking.batch import BatchRequest, jobs_of, train_batch
from harness.tracking.run_dir import RunDirectory, remove_empty
from harness.tuning.sweep_dir import SweepDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader


app = typer.Typer()


@app.command(
    epilog="Examples: harness train jobs/lstm.toml --set train.epochs=8 --seed 2; "
    "harness train jobs/lstm.toml jobs/gru.toml --seeds 1-5"
)
def train(
    job_files: Annotated[
        list[Path], typer.Argument(metavar="JOB", help="job files, such as jobs/lstm.toml")
    ],
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="value of train.seed")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="LIST", help="one run per seed: 1-5 or 1,3,7")
    ] = None,
    devices: DeviceList = None,
    data: DataFolder = None,
    full: Full = False,
    runs: RunsFolder = Path("runs"),
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run-id",
            metavar="ID",
            help="name of the run; continues an unfinished run of this name",
        ),
    ] = None,
    workers: Workers = None,
    runs_per_gpu: Annotated[
        int,
        typer.Option(min=1, max=64, metavar="N", help="number of runs that share a GPU"),
    ] = 1,
    parent: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="begin with the last checkpoint of RUN if JOB differs from the job of RUN only in "
            "train.epochs; otherwise begin with the weights of RUN",
        ),
    ] = None,
    strict: Strict = False,
    here: Here = False,
    trust_code: TrustCode = False,
) -> None:
    """Train a model, or train several jobs with several seeds in parallel.

    A run trains and tests one model and records everything in its folder.
    """
    if len(job_files) == 1 and seeds is None:
        if workers or runs_per_gpu > 1:
            raise InputError("--workers, --runs-per-gpu: are for several runs; add --seeds")
        from harness.training.launch import LaunchOptions, launch

        console, job = Console(), load_job(job_files[0], overrides or (), seed)
        has_runs = os.path.lexists(runs)
        run = RunDirectory.new(runs, job, run_id)
        try:
            if not run.finished():
                confirm_here(here=here)
            launched = LaunchOptions(devices, data, full, strict, parent)
            result = launch(run, job, options=launched, console=console)
        finally:
            if run_id is None:
                remove_empty([run.folder])
                if not has_runs:
                    with contextlib.suppress(OSError):  # keep the folder if other runs are in it
                        runs.rmdir()
        _print_result(run, result, console)
        return
    if parent is not None:
        raise InputError(f"--from {parent}: is for a single run; give one JOB without --seeds")
    if seed is not None and seeds is not None:
        raise InputError(f"--seed {seed} --seeds {seeds}: can't be combined; use only one of them")
    from harness.compute.execution_plan import reckoned_gb
    from harness.compute.strategy import one_device_each
    from harness.report.summary import print_runs

    kind = one_device_each(devices, "run")
    chosen = parse_seeds(seeds) if seeds is not None else () if seed is None else (seed,)
    options = [f"--devices={kind}"] if kind else []
    options += [f"--data={data.absolute()}"] if data else []
    options += ["--full"] if full else []
    options += ["--strict"] if strict else []
    jobs = jobs_of(job_files, overrides or (), chosen)
    confirm_here(here=here)
    folders = train_batch(
        BatchRequest(
            jobs=jobs,
            runs=runs,
            run_id=run_id,
            train_args=tuple(options),
            devices=kind,
            workers=workers,
            runs_per_gpu=runs_per_gpu,
            host_gb=tuple(reckoned_gb(job, kind) for job in jobs),
        ),
        Console(),
    )
    print_runs(folders)


@app.command(epilog="Example: harness resume runs/lstm/20260101-120000-seed1")
def resume(
    run_folder: RunFolder,
    devices: DeviceList = None,
    data: DataFolder = None,
    strict: Strict = False,
    here: Here = False,
    trust_code: TrustCode = False,
) -> None:
    """Continue an unfinished run or sweep where it stopped.

    A finished run or sweep is not changed.
    """
    from harness.training.launch import LaunchOptions, launch, moved_job

    if is_sweep(run_folder):
        if strict:
            raise InputError("--strict: is for a run; leave it out for a sweep")
        sweep = SweepDirectory.open(run_folder)
        confirm_here(here=here)
        run_sweep(sweep, sweep.search(), worker_request(devices, data), resumes=True)
        return
    run = RunDirectory.open(run_folder)
    job, data = moved_job(run, data)
    if not run.finished():
        confirm_here(here=here)
    options = LaunchOptions(devices, data, strict=strict, takes_back_cancel=True)
    console = Console()
    _print_result(run, launch(run, job, options=options, console=console), console)


def _print_result(run: RunDirectory, result: dict[str, Any], console: Console) -> None:
    from harness.training.metrics import describe_scores

    folder = run.folder
    scores = f"validation accuracy {result['val_accuracy']}, test set not read"
    if "accuracy" in result:
        scores = (
            f"tested on {result['num_test']:,} reviews of {result['data']}: "
            f"{describe_scores(result)}"
        )
    console.info(f"{result['architecture']}, seed {result['seed']}, {scores}")
    console.info(f"model        {folder / 'model.keras'}")
    console.info(f"TensorBoard  {folder / 'tensorboard'}")
    console.info(f"records      {folder}")
    console.info(f'next         harness predict {quoted(folder)} "An excellent movie!"')


@app.command(epilog="Example: harness evaluate runs/lstm/20260101-120000-seed1")
def evaluate(
    run_folder: RunFolder,
    data: DataOfRun = None,
    as_json: AsJson = False,
    trust_code: TrustCode = False,
) -> None:
    """Test the model of a finished run on its test set again."""
    from harness.training.launch import evaluate_again
    from harness.training.metrics import describe_scores

    scores = evaluate_again(RunDirectory.open(run_folder), data)
    shown = f"tested on {scores['data']}: {describe_scores(scores)}"
    echo(json.dumps(scores) if as_json else shown)


@app.command(epilog='Example: harness predict runs/lstm/my-run "An excellent movie!"')
def predict(
    run_folder: RunFolder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="texts to classify; default: lines of standard input"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="file with one text per line"),
    ] = None,
    is_jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl",
            help='each line is JSON: either "…" or {"text": "…"}; default for .jsonl and .ndjson',
        ),
    ] = False,
    as_json: AsJson = False,
    trust_code: TrustCode = False,
) -> None:
    """Classify raw text with the model of a finished run.

    RUN can also be an ensemble. Classifies each line as soon as it arrives; skips lines without
    words, and ends with an error at the first line that is not valid UTF-8, or not valid JSON if
    the lines are JSON.
    """
    from harness.inference.predict import (
        JSON_LINES,
        Line,
        Remarks,
        check_texts,
        open_lines,
        read_lines,
    )
    from harness.report.ensemble import classifier_of, open_model
    from harness.training.launch import computing

    model = open_model(run_folder)
    if file is not None and texts:
        raise InputError(f"--file {file}: can't be combined with texts as arguments; use only one")
    if is_jsonl and texts:
        raise InputError("--jsonl: is for a file or standard input, not for texts; leave it out")
    remarks = Remarks()
    batches: Iterator[list[Line]] = iter([])
    no_text = "no text: pass one as an argument, with --file, or on standard input"
    if texts:
        batches = iter([[Line(number, text) for number, text in enumerate(check_texts(texts), 1)]])
    elif file is not None:
        no_text = f"--file {file}: contains no text; write one text per line"
        is_json = is_jsonl or file.suffix.lower() in JSON_LINES
        batches = read_lines(open_lines(file), f"--file {file}", remarks, is_json=is_json)
    elif sys.stdin:
        source = cast("BufferedReader", sys.stdin.buffer)
        batches = read_lines(source, "standard input", remarks, is_json=is_jsonl)
    first = next(batches, None)  # refuse bad input before TensorFlow is imported
    if first is None:
        raise InputError(no_text)
    with computing(model.job()):
        classify = classifier_of(model).classify
        try:
            for lines in itertools.chain([first], batches):
                answers = classify([line.text for line in lines])
                for line, answer in zip(lines, answers, strict=True):
                    if as_json:
                        echo(json.dumps({"number": line.number, **answer.as_json()}))
                    else:
                        shown = " ".join(answer.text[:200].split())  # as one line
                        echo(f"{answer.summary}  {shown}")
        finally:
            for warning in remarks.lines():
                log(logging.WARNING, warning)


@app.command(epilog="Example: harness export runs/lstm/my-run --out served/lstm")
def export(
    run_folder: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder of the SavedModel; default: RUN/export"),
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Export a finished model as a SavedModel for raw text.

    TensorFlow and TensorFlow Serving load the SavedModel without this package.
    """
    from harness.training.launch import computing

    run = RunDirectory.open(run_folder)
    folder, job = out or run.folder / "export", run.job()
    with computing(job):
        from harness.inference.export import export as export_model

        written = export_model(run, folder)
    name = job.name
    echo(f"SavedModel   {written}")
    echo(
        f"next         docker run -p 127.0.0.1:8501:8501 -e MODEL_NAME={name} "
        f"-v {quoted(folder.absolute())}:/models/{name} tensorflow/serving"
    )
    url = f"http://localhost:8501/v1/models/{name}:predict"
    instances = '{"instances": ["An excellent movie!"]}'
    echo(f"             curl -d {shlex.quote(instances)} {url}")
