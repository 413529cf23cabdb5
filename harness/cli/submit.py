"""Run a snapshot of the code under Slurm, and restore a run's code: `submit` and `reproduce`.

The hidden commands are for job scripts. Some print bash code, which the job script executes. Others
print whether the job script should requeue the job.
"""

import contextlib
import itertools
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Overrides, RunFolder, RunsFolder, TrustCode
from harness.errors import InputError
from harness.slurm.batch import (
    Counters,
    counters_file,
    decide,
    ending_of,
    faults_file,
    plan,
    shown_values,
)
from harness.slurm.client import seconds
from harness.slurm.environment import (
    BATCH_JOB,
    FIRST_JOB,
    FLAGS,
    OF_GPUS,
    SlurmEnvironment,
    array_seed,
    check_alike,
    check_trusted_network,
    describe_given,
    not_sourced,
    request_args,
    unmet_request,
)
from harness.slurm.resources import (
    Resources,
    array_spec,
    drop,
    override,
    refused_options,
    short_limit,
)
from harness.slurm.script import Request, SbatchJob
from harness.slurm.snapshot import project_folder
from harness.slurm.submit import (
    doubts,
    draft,
    dry_submissions,
    first_look,
    make_request,
    start_times,
)
from harness.slurm.submit import submit as submit_all
from harness.system.console import echo, log, quoted, to_the_end
from harness.tracking.provenance import JOB_FILE
from harness.tracking.provenance import reproduce as restore
from harness.tracking.resume import resume_request
from harness.tracking.run_dir import RunDirectory, default_runs

TEST_ONLY = "--test-only"  # the option with which sbatch only says when a job would start
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
        str | None,
        typer.Option(
            metavar="LIST", help="one run per seed: 1-5 or 1,3,7; 1-200%10 trains ten at a time"
        ),
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
            help="continue all interrupted, lost and dead runs, except those that SIGTERM or "
            "Ctrl-C ended",
        ),
    ] = False,
    all_jobs: Annotated[
        bool, typer.Option("--all", help="train harness's five networks, then compare them")
    ] = False,
    trust_code: TrustCode = False,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Submit a job to Slurm with a snapshot of the code.

    Edits of the code after the submission do not affect the job. The job requeues itself before its
    time limit and continues.
    """
    sbatch_flags = list(flags or ())
    names: list[str] = []
    if job is not None and (all_jobs or resume or all_interrupted):
        # Here `job` is not a job file: `job` holds the first RUN, or the first flag after `--`.
        words = [job, *sbatch_flags]
        names = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
        names = [] if all_jobs else names
        sbatch_flags = words[len(names) :]
    only_tests = TEST_ONLY in sbatch_flags
    sbatch_flags = [flag for flag in sbatch_flags if flag != TEST_ONLY]
    resources = Resources(
        gpus=gpus,
        nodes=nodes,
        time=time,
        mem=mem,
        flags=tuple(sbatch_flags),
    )
    if resume or all_interrupted:
        if all_jobs or overrides or seeds or pack:
            raise InputError(
                "--resume: continues runs with unchanged settings; leave out --all, --set, --seeds "
                "and --pack"
            )

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
    elif only_tests:
        for line in start_times(request):
            echo(line)
    else:
        _submit(request)


@to_the_end()
def _submit(request: Request) -> None:
    submitted = {}
    for job_id, submission in submit_all(request):
        submitted[job_id] = submission
        _print_submitted(job_id, submission)
    first_id, first = next(iter(submitted.items()))
    home = first.request.home
    sizes = [path.stat().st_size for path in home.rglob("*") if path.is_file()]
    echo(f"code  {home} ({len(sizes):,} files, {sum(sizes) / 1e6:,.1f} MB)")
    run = quoted(first.run_folders(first_id)[0])
    is_default = request.runs == default_runs().absolute()
    elsewhere = "" if is_default else f" --runs {quoted(request.runs)}"
    echo(f"next  harness status{elsewhere}")
    echo(f"      harness logs {run} -f")
    echo(f"      harness cancel {run}")
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends only this output, not the jobs
        for line in first_look(submitted):
            echo(f"queue {line}")


def _print_submitted(job_id: str, submission: SbatchJob) -> None:
    seeds = f", seed {array_spec(submission.seeds)}" if submission.seeds else ""
    echo(f"job {job_id}: {submission.name}{seeds}")
    # Show the sbatch options that the job takes over from the run's last job, because the user has
    # not typed these options.
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
    run = RunDirectory.open(run_folder)
    whole = run.folder.absolute()
    folder = to.absolute() if to else whole.with_name(f"{whole.name}-code")
    restored = restore(run, project_folder(), folder, trust_code=trust_code)
    for warning in restored.warnings:
        log(logging.WARNING, warning)
    echo(f"code  {folder}, from {restored.source}")
    echo(f"job   {folder / JOB_FILE}")
    echo(f"next  {restored.command}")


# Hidden commands of the job scripts


def _answer(text: str) -> None:
    """Print a text for the job script; keep bytes of paths that are not valid UTF-8."""
    sys.stdout.buffer.write(os.fsencode(f"{text}\n"))
    sys.stdout.flush()


def _shown() -> str:
    """Read the output of `scontrol show job`, which the job script pipes into this command."""
    return sys.stdin.buffer.read().decode(errors="replace")


def _allocation() -> SlurmEnvironment:
    if allocation := SlurmEnvironment.from_environment():
        return allocation
    raise InputError("this command can be called only by a job script in a Slurm job")


@app.command("job-begin", hidden=True)
def job_begin(
    kind: str,
    words: Annotated[list[str] | None, typer.Argument()] = None,
    runs: RunsFolder = Path("runs"),
    job: Annotated[bool, typer.Option("--job")] = False,
) -> None:
    """Choose the command that a job script runs, and log the resources of its Slurm job.

    Args:
        kind: the purpose of the script; `harness.slurm.batch.plan` lists the purposes.
        words: the script's arguments.
        runs: the folder of the runs.
        job: whether Slurm runs the script as a batch job.
    """
    known = shown_values(_shown())
    allocation = SlurmEnvironment.from_environment()
    if job and allocation:
        check_alike(allocation)
    planned = plan(kind, words or [], str(runs), allocation if job else None, array_seed())
    unmet = unmet_request(allocation, known) if allocation and job else None
    if unmet and allocation:
        log(logging.WARNING, f"{describe_given(allocation)}; {unmet}")
    if job and planned.run and (short := short_limit(seconds(known.get("TimeLimit", "")))):
        log(logging.WARNING, short)
    if planned.step and allocation:
        check_trusted_network(allocation.num_nodes)
    lines = []
    if job and allocation:
        faults = faults_file(Path(planned.runs), allocation)
        faults.parent.mkdir(parents=True, exist_ok=True)
        faults.unlink(missing_ok=True)  # an earlier start of this job may have left the file
        flags = override(shlex.split(allocation.flags), request_args(known, os.environ))
        # Unset the variables in `OF_GPUS`, so that each srun step can use all GPUs of the job.
        lines += [
            f"unset {' '.join(OF_GPUS)}",
            f"export {FLAGS}={shlex.quote(shlex.join(flags))}",
            f"export HARNESS_NODE_FAULTS={quoted(faults)}",
            f"export {BATCH_JOB}={allocation.job_id}",
        ]
        lines += [] if unmet else [f"say {shlex.quote(describe_given(allocation))}"]
    _answer("\n".join((*lines, planned.shell())))


@app.command("job-end", hidden=True)
def job_end(
    code: int,
    signals: str = "",
    run: str = "",
    runs: RunsFolder = Path("runs"),
    begun: Annotated[bool, typer.Option("--begun")] = False,
) -> None:
    """Print what the job script must do next: `stop`, or `requeue` (and nodes to avoid).

    Args:
        code: the exit code of the job's command.
        signals: the names of the signals that the script received.
        run: the folder of the job's run or sweep; empty if unknown.
        runs: the folder of the runs.
        begun: whether `job-begin` succeeded.
    """
    allocation = _allocation()
    ending = ending_of(
        code,
        signals=signals.split(),
        run=run,
        runs=runs,
        allocation=allocation,
        shown=_shown(),
        begun=begun,
    )
    counted = counters_file(runs, allocation, run)
    decision = decide(ending, Counters.read(counted))
    decision.counters.write(counted)
    if decision.reason:
        goes_on = decision.requeue or ending.was_cancelled
        log(logging.WARNING if goes_on else logging.ERROR, decision.reason)
    _answer(decision.line())


@app.command("job-successor", hidden=True)
def job_successor(
    run: str,
    changes: Annotated[list[str] | None, typer.Argument()] = None,
    runs: RunsFolder = Path("runs"),
) -> None:
    """Prepare a new Slurm job that continues a run, and print the new job's sbatch command.

    `slurm/requeue.sh` runs the sbatch command if Slurm refuses to requeue the run's job.

    Args:
        run: the folder of the run or sweep.
        changes: the nodes to avoid, if any, as `job-end` prints them: `ExcNodeList=n1,n2`.
        runs: the folder of the runs.
    """
    allocation = _allocation()
    flags = [change.replace("ExcNodeList", "--exclude") for change in changes or ()]
    flags.append(f"--dependency=afterany:{allocation.own_id}")
    # Repeat the job's own request, because a run that has not begun has no record of the request.
    own = drop(shlex.split(allocation.flags), refused_options())
    resources = Resources(nodes=allocation.num_nodes, flags=tuple(override(own, flags)))
    # With this variable, the new job uses the counters of the first job.
    os.environ[FIRST_JOB] = allocation.first_job_id
    command, record = draft(resume_request([run], resources, runs))
    _answer(f"SUCCESSOR=({shlex.join(command)})\nRECORD={quoted(record)}")
