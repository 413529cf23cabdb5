"""`submit` and `reproduce`: a run through Slurm from a snapshot of the code, and its code back."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import Full, Overrides, RunFolder, RunsFolder, quoted

if TYPE_CHECKING:
    from harness.slurm.script import SbatchJob
    from harness.slurm.submit import Request


app = typer.Typer()


@app.command(epilog="Example: harness submit jobs/lstm.toml --seeds 1-5 --gpus 2 --time 4:00:00")
def submit(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="a TOML file such as jobs/lstm.toml")
    ] = None,
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- FLAGS", help="after --: sbatch's own, as they are"),
    ] = None,
    all_jobs: Annotated[
        bool, typer.Option("--all", help="the five jobs, and then their comparison")
    ] = False,
    overrides: Overrides = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="LIST", help="1-5 or 1,3,7: a run for each")
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="of each node, 0 = none")] = None,
    nodes: Annotated[int | None, typer.Option(metavar="N", help="how many")] = None,
    time: Annotated[
        str | None, typer.Option(metavar="T", help="limit: minutes, 2:00:00 or 1-12")
    ] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="where")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="who pays")] = None,
    after: Annotated[
        str | None, typer.Option(metavar="JOBID", help="start when that job has ended well")
    ] = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="the seeds side by side in one job, not a job each")
    ] = False,
    full: Full = False,
    runs: RunsFolder = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print script and command, write nothing")
    ] = False,
    test: Annotated[
        bool, typer.Option("--test", help="ask when it would start, submit nothing")
    ] = False,
) -> None:
    """Submit a job to Slurm, from a snapshot of the code as it is now."""
    from harness.slurm.resources import Resources
    from harness.slurm.submit import doubts, dry_submissions, expected_starts, make_request
    from harness.system.console import Console

    words = list(flags or ())
    if all_jobs and job is not None:
        words.insert(0, job)  # the first word after --, since no job is named
    resources = Resources(gpus, nodes, time, partition, account, after, tuple(words))
    named = None if all_jobs or job is None else Path(job)
    request = make_request(
        named, overrides or (), seeds, resources, runs, full=full, all_jobs=all_jobs, pack=pack
    )
    console = Console()
    for line in doubts(request):
        console.warning(line)
    if dry_run:
        for submission in dry_submissions(request):
            typer.echo(f"{submission.script}\n{shlex.join(submission.command)}\n")
    elif test:
        for line in expected_starts(request):
            typer.echo(line)
    else:
        _submit(request)


def _submit(request: "Request") -> None:
    from harness.slurm.submit import submit as submit_all

    submitted = submit_all(request)
    for job_id, submission in submitted.items():
        _print_submitted(job_id, submission)
    first_id, first = next(iter(submitted.items()))
    run = quoted(first.run_folders(first_id)[0])
    typer.echo("next  harness status")
    typer.echo(f"      harness logs {run} -f")
    typer.echo(f"      harness cancel {run}")


def _print_submitted(job_id: str, submission: "SbatchJob") -> None:
    from harness.slurm.resources import array_spec

    seeds = f", seed {array_spec(submission.seeds)}" if submission.seeds else ""
    typer.echo(f"job {job_id}: {submission.name}{seeds}")
    for run in submission.run_folders(job_id):
        typer.echo(f"run   {run}")
    for log in submission.logs(job_id):
        typer.echo(f"log   {log}")


@app.command(epilog="Example: harness reproduce runs/lstm/slurm-1234 --to ~/lstm-1234")
def reproduce(
    run_folder: RunFolder,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="a new folder; else RUN-code")
    ] = None,
) -> None:
    """Put a run's code and job back into a new folder, and say how to run it again."""
    from harness.slurm.submit import project_folder
    from harness.system.console import Console
    from harness.tracking.reproduce import reproduce as put_back
    from harness.tracking.run_dir import RunDirectory

    run = RunDirectory.open(run_folder)
    at = run.folder.absolute()
    done = put_back(run, project_folder(), (to or at.with_name(f"{at.name}-code")).absolute())
    console = Console()
    for warning in done.warnings:
        console.warning(warning)
    typer.echo(f"code  {done.folder}, from {done.source}")
    typer.echo(f"job   {done.folder / done.job_file}")
    typer.echo(f"next  {done.command}")
