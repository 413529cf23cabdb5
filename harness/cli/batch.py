"""Hidden commands of the job scripts; a command prints bash code, which its caller evaluates."""

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import RunsFolder
from harness.errors import InputError
from harness.system.console import log, quoted

if TYPE_CHECKING:
    from harness.slurm.environment import SlurmEnvironment


app = typer.Typer()


def _answer(text: str) -> None:
    """Print bash code; a path in the code keeps its bytes, even if they are not valid UTF-8."""
    sys.stdout.buffer.write(os.fsencode(f"{text}\n"))
    sys.stdout.flush()


def _shown() -> str:
    """Read the output of `scontrol show job`, which the job script pipes into this command."""
    return sys.stdin.buffer.read().decode(errors="replace")


def _allocation() -> "SlurmEnvironment":
    from harness.slurm.environment import SlurmEnvironment

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
    from harness.slurm.batch import faults_file, plan, shown_values
    from harness.slurm.client import seconds
    from harness.slurm.environment import (
        BATCH_JOB,
        FLAGS,
        OF_GPUS,
        SlurmEnvironment,
        array_seed,
        check_trusted_network,
        describe_given,
        request_args,
        unmet_request,
    )
    from harness.slurm.resources import override, short_limit

    known = shown_values(_shown())
    allocation = SlurmEnvironment.from_environment()
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
        requested = request_args(known, os.environ) if known else []
        flags = override(shlex.split(allocation.flags), requested)
        # While the variables in `OF_GPUS` are unset, each srun step uses all GPUs of the job.
        lines += [
            f"unset {' '.join(OF_GPUS)}",
            f"export {FLAGS}={shlex.quote(shlex.join(flags))}",
            f"export HARNESS_NODE_FAULTS={quoted(faults)}",
            f"export {BATCH_JOB}={allocation.job_id}",
        ]
        lines += [] if unmet else [f"say {shlex.quote(describe_given(allocation))}"]
    _answer("\n".join((*lines, planned.shell())))


@app.command("job-end", hidden=True)
def job_end(code: int, signals: str = "", run: str = "", runs: RunsFolder = Path("runs")) -> None:
    """Print what the job script does next: `stop`, or `requeue` with changes to the Slurm job.

    Args:
        code: the exit code of the job's command.
        signals: the names of the signals that the script received.
        run: the folder of the job's run or sweep; empty if unknown.
        runs: the folder of the runs.
    """
    from harness.slurm.batch import Counters, counters_file, decide, ending_of

    allocation = _allocation()
    ending = ending_of(
        code,
        signals=signals.split(),
        run=run,
        runs=runs,
        allocation=allocation,
        shown=_shown(),
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

    `slurm/requeue.sh` uses the command if Slurm refuses to requeue the run's job.

    Args:
        run: the folder of the run or sweep.
        changes: changes to the job's request for nodes and memory, such as `MinMemoryNode=8000`, as
            `job-end` prints them.
        runs: the folder of the runs.
    """
    from harness.slurm.environment import FIRST_JOB
    from harness.slurm.resources import Resources
    from harness.slurm.submit import draft
    from harness.tracking.resume import resume_request

    allocation = _allocation()
    options = {"ExcNodeList": "--exclude={}", "MinMemoryNode": "--mem={}M"}
    asked = [change.partition("=") for change in changes or ()]
    flags = [options[name].format(value) for name, _, value in asked]
    flags.append(f"--dependency=afterany:{allocation.own_id}")
    # With this variable the new job's failures count as failures of the first job.
    os.environ[FIRST_JOB] = allocation.first_job_id
    command, record = draft(resume_request([run], Resources(flags=tuple(flags)), runs))
    _answer(f"SUCCESSOR=({shlex.join(command)})\nRECORD={quoted(record)}")
