"""Submit jobs to sbatch with a snapshot of the code.

`<runs>/.submissions/<time>-<job>/` contains a job's script and a job file with every key, so a
waiting job is not affected if the user edits the original files.
`<runs>/.submissions/<job id>.json` lists a job's runs and logs.
"""

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import __version__
from harness.architectures import ARCHITECTURES
from harness.data.locations import missing_in, named_folder
from harness.errors import InputError, RunError
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.job.search import SearchSpec, is_search, load_search
from harness.slurm import client
from harness.slurm.client import ask_about, first_look_s
from harness.slurm.environment import OF_CALLERS, check_trusted_network, not_sourced
from harness.slurm.resources import (
    Resources,
    array_spec,
    parse_seeds,
    short_limit,
    site_options,
)
from harness.slurm.script import (
    DEFAULT_ARRAY_SIZE,
    Request,
    SbatchJob,
    Wanted,
    arrays_of,
    comparison_submission,
    job_environment,
    job_submission,
    read_header,
    script_of,
    submissions,
)
from harness.slurm.snapshot import check_owner, left_out, project_folder, take_snapshot
from harness.system.console import Console, quoted
from harness.system.files import OTHERS_WRITE, atomic_write, others_can_write
from harness.system.leased_dir import to_json
from harness.system.processes import ctrl_c_waits

JOB_ID = "@JOB@"  # placeholder for the job's id in a record


def make_request(
    job_file: Path | None,
    resources: Resources,
    runs: Path,
    *,
    overrides: Sequence[str],
    seeds: str | None,
    pack: bool,
) -> Request:
    """Return a checked request to submit training jobs.

    If `job_file` is None, the jobs train and compare the five networks. If a job trains on the
    user's own texts (`data.source`), this function writes the texts into the user's cache, from
    which the job reads them. The function writes nothing outside of the user's cache.

    Raises:
        InputError: if a value is refused; the message states the value and the remedy.
    """
    chosen, at_most = None, ""
    if seeds is not None:
        listed, percent, num = seeds.partition("%")
        if percent and (pack or not re.fullmatch("[1-9][0-9]{0,4}", num)):
            raise InputError(
                f"--seeds {seeds}: the part after % should be the number of jobs that run at a "
                "time, as in 1-200%10; with --pack, leave this part out"
            )
        chosen, at_most = parse_seeds(listed), percent + num
    if pack and not chosen:
        raise InputError(
            "--pack: trains several seeds in one job; list the seeds, for example: --seeds 1-5"
        )
    project = project_folder()
    files = [job_file] if job_file else [project / f"jobs/{name}.toml" for name in ARCHITECTURES]
    jobs = [
        Wanted(_check_job(file, overrides, chosen), resources, chosen, pack, at_most)
        for file in files
    ]
    return check_request(jobs, runs, compares=job_file is None)


def check_request(jobs: Iterable[Wanted], runs: Path, *, compares: bool = False) -> Request:
    """Check each job, and return a request to submit the jobs.

    Raises:
        InputError: if a value is refused; the message states the value and the remedy.
    """
    project, wanted = project_folder(), tuple(jobs)
    if project.resolve() == runs.resolve():
        raise InputError(f"--runs {runs}: is the project itself; choose another folder")
    check_owner(runs)
    for each in wanted:
        read_header(project, script_of(each.job))
        each.resources.check()
        # A search or a packed job trains each model on a single node. Such a job opens no
        # TensorFlow server to the network, so HARNESS_TRUSTED_NETWORK need not be set.
        if isinstance(each.job, Job) and not each.pack:
            check_trusted_network(each.resources.nodes or 1)
    settings = client.read_settings()
    size = settings.get("MaxArraySize", "")
    array_size = int(size) if size.isdigit() else DEFAULT_ARRAY_SIZE
    return Request(
        project,
        runs.absolute(),
        home=project,
        jobs=tuple(part for each in wanted for part in arrays_of(each, array_size)),
        compares=compares,
        array_size=array_size,
        first_look_s=first_look_s(settings),
    )


def _check_job(
    path: Path, overrides: Sequence[str], seeds: Sequence[int] | None
) -> Job | SearchSpec:
    """Load a job or search with overrides; refuse invalid seeds and unreadable texts."""
    job: Job | SearchSpec
    if is_search(path):
        if seeds:
            raise InputError(
                f"--seeds {array_spec(seeds)}: job {path} is a search; set the number "
                "of seeds per trial by --set search.executions=N"
            )
        job = load_search(path, overrides)
    else:
        if seeds:
            load_job(path, overrides, max(seeds))
        job = load_job(path, overrides)
    single = job.job if isinstance(job, SearchSpec) else job
    if single.data.source:
        from harness.data.sources import open_data

        open_data(single, None)
    return job


def doubts(request: Request) -> Iterator[str]:
    """Yield warnings about jobs that may not train as intended."""
    jobs = [each.job for each in request.jobs if not each.resumes]
    trainings = [job.job if isinstance(job, SearchSpec) else job for job in jobs]
    yield from dict.fromkeys(line for job in jobs for line in job.without_effect())
    if (folders := missing_in()) and not all(job.data.source for job in trainings):
        fate = "use the packaged SAMPLE instead; to get the dataset, run: harness data fetch"
        if named_folder():
            fate = "end with an error; put the dataset into this folder, or unset HARNESS_DATA"
        yield (
            f"found no full dataset in {' or '.join(map(str, folders))}; if the job's node has no "
            f"dataset either, the job will {fate}"
        )
    yield from left_out(request.project, request.runs)
    if request.runs.is_dir() and others_can_write(request.runs.stat()):
        yield (
            f"--runs {request.runs}: {OTHERS_WRITE}, so other users could replace the code of a "
            "waiting job; the folder's owner can prevent this with: "
            f"chmod +t {quoted(request.runs)}"
        )
    program = job_environment(request.project) / "bin" / "harness"
    # With a container, the environment may be in its image, where this process can't look.
    if not program.exists() and not not_sourced(["HARNESS_CONTAINER"], request.project):
        yield (
            f"{program} is missing, and a submitted job installs nothing; run bash "
            "slurm/common.sh --setup, or set HARNESS_VENV to an environment"
        )


def dry_submissions(request: Request) -> list[SbatchJob]:
    """Return the jobs of a request without submitting them.

    Placeholders such as `<hash>` stand for the snapshot's hash and the job ids, which are not known
    yet.
    """
    request = dataclasses.replace(request, home=submissions(request.runs) / "code-<hash>")
    return [job for _, job in _each(request, lambda job: f"<{job.name}>")]


def _each(request: Request, send: Callable[[SbatchJob], str]) -> Iterator[tuple[str, SbatchJob]]:
    """Compose the jobs of a request; yield each with the id that `send` returns for it."""
    trainings: dict[str, SbatchJob] = {}
    for wanted in request.jobs:
        job = job_submission(wanted, request)
        with ctrl_c_waits():  # until the job has its record, and the caller has shown the job's id
            job_id = send(job)
            trainings[job_id] = job
            yield job_id, job
    if request.compares:
        job = comparison_submission(trainings, request)
        with ctrl_c_waits():
            yield send(job), job


def _check_start(planned: SbatchJob) -> str:
    """Ask sbatch whether it accepts a job, before the harness writes into the folder of runs.

    Returns:
        sbatch's answer: when the job would start, or why it would not start now.
    """
    try:
        return client.would_start(planned.script, *planned.args, unset=[*site_options()])
    except client.NoNodesError as error:
        # This is no refusal: if all suitable nodes are down, sbatch accepts the job, although
        # `sbatch --test-only` fails.
        return str(error)
    except (InputError, RunError) as error:
        raise type(error)(f"{planned.name}: {error}") from None


def start_times(request: Request) -> Iterator[str]:
    """Yield one line per training job, which says when the job would start; submit nothing.

    Raises:
        InputError: if sbatch refuses a job; the message states the reason.
        RunError: if Slurm is not available now.
    """
    for wanted in request.jobs:
        planned = job_submission(wanted, request)
        yield f"{planned.name}: {_check_start(planned)}"


def submit(request: Request) -> Iterator[tuple[str, SbatchJob]]:
    """Submit the jobs of a request one after the other; yield each job with its id.

    Raises:
        InputError: if sbatch refuses a job; the message states the reason.
        RunError: if Slurm is not available now.
    """
    for wanted in request.jobs:
        _check_start(job_submission(wanted, request))
    snapshot = take_snapshot(request.project, request.runs)
    yield from _each(dataclasses.replace(request, home=snapshot), _submit)


def draft(request: Request) -> tuple[list[str], Path]:
    """Write a job's files and compose its sbatch command, but do not submit the job.

    This function may run in the site's container, which may lack sbatch and git. So this function
    does not call sbatch; the script of the current job calls sbatch outside of the container. And
    this function makes no new snapshot; the new job uses the snapshot of the current job.

    Returns:
        The sbatch command, and the path of the job's record. The record contains JOB_ID in place of
        the job's id.
    """
    submission = job_submission(request.jobs[0], request)
    _write(submission)
    record = submission.folder / "record.json"
    atomic_write(record, to_json(_record_of(submission, JOB_ID)))
    callers = [f"-u{name}" for name in os.environ if OF_CALLERS.fullmatch(name)]
    return ["env", *callers, *submission.command], record


def first_look(submitted: Mapping[str, SbatchJob]) -> list[str]:
    """Wait until Slurm has tried to start the new jobs; return their states from squeue.

    Returns:
        One line per state. If several jobs were submitted, each line begins with the ids of the
        jobs in this state.
    """
    time.sleep(max(each.request.first_look_s for each in submitted.values()))
    found: dict[str, dict[str, None]] = {}
    for job in ask_about([*submitted]):
        job_id = job.id.partition("_")[0]  # one id for all tasks of an array
        answer = f"pending ({job.why})" if job.waits and job.why else job.state.lower()
        answer = "; ".join(filter(None, (answer, short_limit(job.limit_s))))
        found.setdefault(answer, {})[job_id] = None
    return [
        f"{', '.join(ids)}: {answer}" if len(submitted) > 1 else answer
        for answer, ids in found.items()
    ]


def _submit(submission: SbatchJob) -> str:
    """Submit a job and return its id.

    Raises:
        InputError, RunError: if sbatch refuses the job or Slurm is not available. Before raising
            this error, the function removes the submission's folder.
        RunError: if sbatch prints no id, or does not answer in time. The submission's folder
            remains, because the job may be in the queue.
    """
    _write(submission)
    try:
        done = client.call(*submission.command)
        if done.returncode != 0:
            kind = RunError if client.NO_CONTROLLER.search(done.stderr) else InputError
            raise kind(f"{submission.name}: was not submitted: {client.errors_of(done)}")
        # A site's lines may precede the id; `;` and the cluster's name may follow it.
        ids = re.findall(r"^[ \t]*(\d+)(?:;.*)?[ \t]*$", done.stdout, re.MULTILINE)
        if not ids:
            raise client.NoAnswerError(f"sbatch printed only {done.stdout.strip()[:200]!r}")
        job_id = str(ids[-1])
    except client.NoAnswerError as error:  # the job may be in the queue and need the folder
        raise RunError(
            f"{submission.name}: sbatch printed no job id, but the job may be in the queue; check "
            f"with squeue --me, and cancel the job with scancel ({error})"
        ) from None
    except (OSError, InputError, RunError):
        shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    for line in filter(None, done.stderr.splitlines()):  # a site may let sbatch print messages
        Console().warning(line)
    record = submissions(submission.request.runs) / f"{job_id}.json"
    try:
        atomic_write(record, to_json(_record_of(submission, job_id)))
    except (OSError, RunError) as error:
        raise RunError(
            f"{error}; job {job_id} is in the queue, but without this file harness can't find the "
            f"job; cancel it: scancel {job_id}"
        ) from None
    return job_id


def _write(submission: SbatchJob) -> None:
    """Write the script and the job file into the folder of a submission."""
    # Create the folder `logs`, because without it Slurm drops the log silently.
    (submission.request.runs / "logs").mkdir(parents=True, exist_ok=True)
    # Other users get no write permission: the job refuses code that they could change.
    submission.folder.mkdir(mode=0o755, parents=True)
    # fsencode keeps the bytes of paths in any locale.
    atomic_write(submission.folder / "job.sh", os.fsencode(submission.script))
    if submission.job_file:
        atomic_write(submission.job_file, submission.job_toml)


def _record_of(submission: SbatchJob, job_id: str) -> dict[str, Any]:
    return {
        "harness": __version__,
        "job_id": job_id,
        "job": submission.name,
        "seeds": list(submission.seeds),
        "runs": [str(run) for run in submission.run_folders(job_id)],
        "logs": [str(log) for log in submission.logs(job_id)],
        "resumes": submission.resumes is not None,
        "job_file": str(submission.job_file) if submission.job_file else None,
        "command": submission.command,
        "snapshot": str(submission.request.home),
        "submitted_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
