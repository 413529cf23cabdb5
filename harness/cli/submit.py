"""`submit` and `reproduce`: run a snapshot of the code under Slurm; restore the code of a run."""

import contextlib
import itertools
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import Overrides, RunFolder, RunsFolder, TrustCode
from harness.errors import InputError
from harness.system.console import echo, log, quoted

if TYPE_CHECKING:
    from harness.slurm.script import Request, SbatchJob


MAX_LINES = 3  # if there are more paths of runs or logs, only the first and the last are shown

app = typer.Typer()


@app.command(epilog="Example: harness submit jobs/lstm.toml --seeds 1-5 --gpus 2 --time 4:00:00")
def submit(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="job file, such as jobs/lstm.toml")
    ] = None,
    flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- FLAGS", help="sbatch options, such as: -- --partition=gpu"),
    ] = None,
    overrides: Overrides = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="LIST", help="one run per seed: 1-5 or 1,3,7")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option(metavar="[TYPE:]N", help="GPUs per node: 2, a100:2, 0 = none")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=1000, metavar="N", help="number of nodes")
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(metavar="T", help="time limit: 90 (minutes), 2:00:00 or 1-12 (days-hours)"),
    ] = None,
    mem: Annotated[str | None, typer.Option(metavar="SIZE", help="memory per node: 16G")] = None,
    pack: Annotated[
        bool, typer.Option("--pack", help="train all seeds side by side in one job")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print script and command; submit nothing")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue runs or sweeps; give RUN... instead of JOB")
    ] = False,
    all_interrupted: Annotated[
        bool,
        typer.Option(
            "--all-interrupted",
            help="continue all interrupted, lost and dead runs, except after SIGTERM or Ctrl-C",
        ),
    ] = False,
    all_jobs: Annotated[
        bool, typer.Option("--all", help="train harness's five networks, then compare them")
    ] = False,
    retry_memory: Annotated[
        bool,
        typer.Option(
            "--retry-memory",
            help="if out of memory, requeue with 1.5 times the memory, at most twice",
        ),
    ] = False,
    trust_code: TrustCode = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Submit a job to Slurm with a snapshot of the code.

    Later edits do not affect the job. The job requeues itself before its time limit and continues.
    """
    from harness.slurm.environment import not_sourced
    from harness.slurm.resources import Resources
    from harness.slurm.submit import doubts, dry_submissions, make_request

    sbatch_flags = list(flags or ())
    names: list[str] = []
    if job is not None and (all_jobs or resume or all_interrupted):
        # Here `job` is not a job file: `job` holds the first RUN, or the first flag after `--`.
        words = [job, *sbatch_flags]
        names = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
        names = [] if all_jobs else names
        sbatch_flags = words[len(names) :]
    resources = Resources(
        gpus=gpus,
        nodes=nodes,
        time=time,
        mem=mem,
        retry_memory=retry_memory,
        flags=tuple(sbatch_flags),
    )
    if resume or all_interrupted:
        if all_jobs or overrides or seeds or pack:
            raise InputError(
                "--resume: continues runs unchanged; leave out --all, --set, --seeds and --pack"
            )
        from harness.tracking.resume import resume_request

        request = resume_request(names, resources, runs, everything=all_interrupted)
    elif job is None and not all_jobs:
        raise InputError("submit: no job; give a file such as jobs/lstm.toml, or --all")
    else:
        request = make_request(
            None if all_jobs or job is None else Path(job),
            resources,
            runs,
            overrides=overrides or (),
            seeds=seeds,
            pack=pack,
        )
    if hint := not_sourced():
        log(logging.WARNING, hint)
    for line in doubts(request):
        log(logging.WARNING, line)
    if dry_run:
        for submission in dry_submissions(request):
            echo(f"{submission.script}\n{shlex.join(submission.command)}\n")
    else:
        _submit(request)


def _submit(request: "Request") -> None:
    from harness.slurm.submit import first_look
    from harness.slurm.submit import submit as submit_all
    from harness.tracking.run_dir import default_runs

    submitted = {}
    for job_id, submission in submit_all(request):
        submitted[job_id] = submission
        _print_submitted(job_id, submission)
    first_id, first = next(iter(submitted.items()))
    echo(f"code  {first.request.home}")
    run = quoted(first.run_folders(first_id)[0])
    is_default = request.runs == default_runs().absolute()
    elsewhere = "" if is_default else f" --runs {quoted(request.runs)}"
    echo(f"next  harness status{elsewhere}")
    echo(f"      harness logs {run} -f")
    echo(f"      harness cancel {run}")
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends only this output, not the jobs
        for line in first_look(submitted):
            echo(f"queue {line}")


def _print_submitted(job_id: str, submission: "SbatchJob") -> None:
    from harness.slurm.resources import array_spec

    seeds = f", seed {array_spec(submission.seeds)}" if submission.seeds else ""
    echo(f"job {job_id}: {submission.name}{seeds}")
    # Show the sbatch options that the job takes over from the run's last job: the user has not
    # typed these options.
    if submission.resumes:
        echo(f"asks  {shlex.join(submission.args)}")
    paths_of = {"run": submission.run_folders(job_id), "log": submission.logs(job_id)}
    for name, paths in paths_of.items():
        if len(paths) > MAX_LINES:
            echo(f"{name}s  {paths[0]} to {paths[-1].name}")
        else:
            for path in paths:
                echo(f"{name}   {path}")


@app.command(epilog="Example: harness reproduce runs/lstm/slurm-1234 --to ~/lstm-1234")
def reproduce(
    run_folder: RunFolder,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="new folder; default: RUN-code")
    ] = None,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="also restore a run that other users can change"),
    ] = False,
) -> None:
    """Restore the code and job of a run into a new folder.

    Prints the command that repeats the run.
    """
    from harness.slurm.snapshot import project_folder
    from harness.tracking.reproduce import JOB_FILE
    from harness.tracking.reproduce import reproduce as restore
    from harness.tracking.run_dir import RunDirectory

    run = RunDirectory.open(run_folder)
    whole = run.folder.absolute()
    folder = to.absolute() if to else whole.with_name(f"{whole.name}-code")
    restored = restore(run, project_folder(), folder, trust_code=trust_code)
    for warning in restored.warnings:
        log(logging.WARNING, warning)
    echo(f"code  {folder}, from {restored.source}")
    echo(f"job   {folder / JOB_FILE}")
    echo(f"next  {restored.command}")
