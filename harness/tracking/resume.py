"""Prepares Slurm jobs that continue unfinished runs, for `harness submit --resume`.

A new job requests the resources of the run's last job, except where the user requests others.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import InputError, RunError
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.job.search import SEARCH_FILE, SearchSpec, is_search, is_sweep, load_search
from harness.slurm.client import Queue
from harness.slurm.environment import SlurmEnvironment
from harness.slurm.resources import (
    GPUS,
    ONCE,
    Resources,
    drop,
    names_of,
    override,
    refused_options,
)
from harness.slurm.script import Request, Wanted, submissions
from harness.slurm.submit import check_request
from harness.system.console import log, quoted
from harness.system.files import distrust
from harness.system.lenient_json import table, whole
from harness.tracking.records import RunStatus
from harness.tracking.run_dir import RECORD, RunDirectory, check_format, last_start
from harness.tracking.status import select_runs, survey, was_out_of_memory

# Matches an option of `request_args` that requests GPUs, up to the number of GPUs.
NUM_GPUS = re.compile(r"((?:\bgpu:|^--gpus-per-node=)(?:[^:,]+:)?)\d+")

STOPPED = ("interrupted", "lost", "dead")


def resume_request(
    names: Sequence[str], resources: Resources, runs: Path, *, everything: bool = False
) -> Request:
    """Return a request to continue the named runs and sweeps, or all interrupted ones.

    Raises:
        InputError: if a run can't be continued.
        RunError: if Slurm does not answer, because then nobody knows which runs have waiting jobs.
    """
    if everything == bool(names):
        raise InputError("--resume: give runs (folders or ids) or --all-interrupted, but not both")
    queue = Queue()
    chosen = survey(runs, queue) if everything else select_runs(names, runs, queue)
    # In a job script of the harness, Slurm's answer is not needed: the job continues its own run,
    # and no other job waits to continue this run.
    own = SlurmEnvironment.from_environment()
    if queue.problem and not (own and own.is_batch):
        raise RunError(
            f"--resume: {queue.problem}, so harness can't know whether a run already has a waiting "
            "Slurm job; try again"
        )
    if everything and not (chosen := interrupted(chosen)):
        raise InputError(
            f"--all-interrupted: {runs} has no run that is lost, dead or interrupted by Slurm; to "
            "continue a run after SIGTERM or Ctrl-C, use harness submit --resume RUN"
        )
    over = [each for each in chosen if each.state == "finished" or each.will_not_begin]
    if len(over) < len(chosen):
        chosen = [each for each in chosen if each not in over]
        for each in over:
            log(logging.WARNING, f"{each.run}: is not continued, because it is {each.state}")
    resumed: list[Wanted] = []
    for each in chosen:
        try:
            resumed.append(as_job(each, resources))
        except InputError as error:
            if not everything or (each is chosen[-1] and not resumed):
                raise
            log(logging.WARNING, f"{each.run}: is not continued: {error}")
            continue
        if not resources.mem and was_out_of_memory(each):
            line = "the last job ran out of memory; request more with --mem"
            log(logging.WARNING, f"{each.run}: {line}")
    # `harness status --runs` shows a new job only if the job's record is in the folder of runs that
    # contains the continued run.
    homes = {each.folder.resolve().parent.parent for each in chosen}
    is_winner = any(is_sweep(home.parent) for home in homes)
    if len(homes) == 1 and not is_winner and submissions(home := homes.pop()).is_dir():
        runs = home
    return check_request(resumed, runs)


def interrupted(statuses: Iterable[RunStatus]) -> list[RunStatus]:
    """Return this user's stopped, unfinished runs and sweeps that no Slurm job continues.

    Runs that SIGTERM or Ctrl-C ended are left out, and so are runs of other users, because squeue
    does not show other users' jobs.
    """
    return [
        each
        for each in statuses
        if each.is_own
        and each.state in STOPPED
        and each.can_go_on
        and not each.job_lives
        and not each.was_cancelled
    ]


def as_job(status: RunStatus, wanted: Resources) -> Wanted:
    """Return the Slurm job that continues a run or a sweep, or begins a run that never began.

    Args:
        status: the status of the run.
        wanted: the resources that the user requests; the last job's requests are the defaults.

    Raises:
        InputError: if the run is finished, training or waiting, belongs to another user, or if the
            folder is not a run.
    """
    folder = status.folder.absolute()
    if not status.is_own:
        raise InputError(
            f"--resume {status.run}: belongs to another user; train your own run: harness train "
            f"{quoted(folder / 'job.toml')}"
        )
    if status.state == "finished":
        raise InputError(f"--resume {status.run}: is finished; choose an unfinished run")
    # The running Slurm job of a run may submit the next job for the same run. Several jobs may
    # share a search, but the heartbeat of the search names only one of the jobs.
    own = SlurmEnvironment.from_environment()
    is_own = own is not None and (
        own.job_id in (status.reported_job, status.slurm_job) or (own.is_batch and is_sweep(folder))
    )
    if (status.alive or status.job_lives) and not is_own:
        remedy = "first stop the run with harness cancel"
        if not (status.alive or status.shares_job):
            remedy = (
                f"first end Slurm job {status.slurm_job}, which could continue this run: scancel "
                f"{status.slurm_job}"
            )
        if is_sweep(folder):
            remedy = f"add workers with: sbatch slurm/tune.sh --join {quoted(folder)}"
        raise InputError(f"--resume {status.run}: is {status.state}; {remedy}")
    job: Job | SearchSpec
    sent = status.submission
    if sent and sent.job_file and not status.has_begun:
        file = Path(sent.job_file)
        job = load_search(file) if is_search(file) else load_job(file, (), sent.seed)
        return Wanted(job, wanted, resumes=folder, is_begun=False)
    if is_sweep(folder):
        check_format(f"sweep {folder}", RunDirectory(folder).certain_json(RECORD))
        job = load_search(folder / SEARCH_FILE)
    else:
        job = RunDirectory.open(folder).job()
    return Wanted(job, _resources(folder, wanted), resumes=folder)


def _resources(folder: Path, wanted: Resources) -> Resources:
    """Return the resources that the user requests; the run's last job supplies the defaults.

    Raises:
        InputError: if another user could have written the run's record. The record contains options
            of sbatch, which can run code.
    """
    record = folder / RECORD
    if os.path.lexists(record) and (reason := distrust(record)):
        raise InputError(
            f"--resume {folder}: {RECORD}: {reason}; check the options under slurm_asked in the "
            "file, replace the file by a copy that belongs to you, then run: "
            f"chmod go-w {quoted(record)}"
        )
    start = last_start(RunDirectory(folder).read_json(RECORD))
    asked, devices = table(start, "slurm_asked"), start.get("devices") or ()
    options, gpus = asked.get("options"), wanted.gpus
    never = refused_options()  # a plugin of the site may have added a refused option to the job
    last = drop(map(str, options if isinstance(options, list) else []), (*ONCE, *never))
    num_nodes = whole(asked.get("nodes")) or 1
    # Request as many GPUs as the run used: in a job with several seeds, each run uses one GPU. The
    # record lists the devices of all nodes.
    num_gpus = sum("gpu" in str(each).lower() for each in devices) // num_nodes
    if gpus:
        last = drop(last, GPUS)
    elif num_gpus:
        last = [NUM_GPUS.sub(rf"\g<1>{num_gpus}", option) for option in last]
    # A site that refuses --gres gives GPUs in another way, for example through a partition.
    refused = {"gres", "gpus-per-node"} & {*never}
    if devices and not gpus and not (names_of([*last, *wanted.flags]) & {*GPUS} or refused):
        gpus = str(num_gpus)
    sizes = dataclasses.replace(wanted, nodes=None)
    return dataclasses.replace(
        wanted,
        gpus=gpus,
        nodes=wanted.nodes or num_nodes,
        time=None,
        mem=None,
        flags=tuple(override(last, sizes.sbatch_args())),
    )
