"""Jobs through sbatch, from a snapshot of the code.

`<runs>/.submissions/<time>-<job>/` holds the script and the job with every default filled in, so
that edits while the job waits change nothing; `<runs>/.submissions/<job id>.json` names its runs
and logs.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import __version__
from harness.data.locations import missing_in
from harness.errors import InputError, RunError
from harness.files.atomic_file import atomic_write
from harness.files.scratch import scratch_directory
from harness.files.trusted_network import check_trusted_network
from harness.job import Job
from harness.job_file import load_job
from harness.search_space import SearchSpec, is_search, load_search
from harness.slurm import client
from harness.slurm.queue import ask_about, first_look_s
from harness.slurm.resources import Resources, array_spec, max_nodes, parse_seeds
from harness.slurm.sbatch_options import site_options
from harness.slurm.script import (
    COMPARISON,
    DEFAULT_ARRAY_SIZE,
    Layout,
    Resumed,
    SbatchJob,
    comparison_submission,
    job_environment,
    job_submission,
    job_variables,
    read_header,
    resume_submission,
    script_of,
    split_seeds,
)
from harness.slurm.snapshot import (
    check_locations,
    project_folder,
    snapshot_path,
    snapshot_warnings,
    take_snapshot,
)
from harness.system.console import Console
from harness.system.git import commit_of, is_checkout

ALL_JOBS = ("rnn", "lstm", "gru", "bilstm", "stacked_lstm")
SBATCH_TIMEOUT_S = 60


@dataclass(frozen=True)
class Request:
    """A checked request to submit jobs."""

    project: Path
    runs: Path  # absolute
    jobs: tuple[Job | SearchSpec, ...]
    seeds: tuple[int, ...] | None  # of each job; None keeps its own
    resources: Resources
    compares: bool = False  # once all have ended
    pack: bool = False  # all seeds at the same time in one job, not an array
    resumed: tuple[Resumed, ...] = ()  # in place of jobs


@dataclass(frozen=True)
class Options:
    """What to train, as the command line has it."""

    job_file: Path | None
    overrides: Sequence[str] = ()
    seeds: str | None = None
    all_jobs: bool = False
    pack: bool = False


def make_request(options: Options, resources: Resources, runs: Path) -> Request:
    """Check the whole request. Nothing is written, except that the user's own texts are read and
    cached, where the job then finds them.

    Raises:
        InputError: one line with the value that is refused, and the remedy.
    """
    job_file, all_jobs, seeds = options.job_file, options.all_jobs, options.seeds
    if job_file is None and not all_jobs:
        raise InputError("submit: no job; give a file such as jobs/lstm.toml, or --all")
    resources.check()
    chosen = parse_seeds(seeds) if seeds is not None else None
    if options.pack and not chosen:
        raise InputError("--pack: puts several seeds into one job; say which by --seeds 1-5")
    project, runs = project_folder(), runs.absolute()
    files = [job_file] if job_file else [project / f"jobs/{name}.toml" for name in ALL_JOBS]
    jobs = [_check_job(file, options.overrides, chosen) for file in files]
    resources.check_retry(one_run=not options.pack and all(isinstance(j, Job) for j in jobs))
    scripts = [script_of(job) for job in jobs]
    check_locations(project, runs, [*scripts, COMPARISON] if all_jobs else scripts)
    if not options.pack:  # otherwise each model is on one node
        for script in {script_of(job) for job in jobs if isinstance(job, Job)}:
            header = [arg for line in read_header(project, script) for arg in line.split()[1:]]
            check_trusted_network(max_nodes([*header, *resources.sbatch_args()]))
    return Request(
        project,
        runs,
        tuple(jobs),
        chosen,
        resources,
        compares=all_jobs,
        pack=options.pack,
    )


def resume_request(resumed: Sequence[Resumed], runs: Path) -> Request:
    """Check a request that goes on with runs and sweeps, one job for each.

    Raises:
        InputError: one line with the value that is refused, and the remedy.
    """
    project, runs = project_folder(), runs.absolute()
    for each in resumed:
        each.resources.check()
        each.resources.check_retry(one_run=isinstance(each.job, Job))
        check_locations(project, runs, [script_of(each.job)])
        if isinstance(each.job, Job):
            check_trusted_network(max_nodes(each.resources.sbatch_args()))
    return Request(project, runs, (), None, Resources(), resumed=tuple(resumed))


def _check_job(
    path: Path, overrides: Sequence[str], seeds: Sequence[int] | None
) -> Job | SearchSpec:
    """The job or search with its overrides, checked for every seed."""
    if is_search(path):
        if seeds:
            raise InputError(
                f"--seeds {array_spec(seeds)}: job {path} is a search; set the number "
                "of seeds per trial by --set search.executions=N"
            )
        search = load_search(path, overrides)
        _check_source(search.job)
        return search
    for seed in seeds or ():
        load_job(path, overrides, seed)
    job = load_job(path, overrides)
    _check_source(job)
    return job


def _check_source(job: Job) -> None:
    """Refuse unusable texts of the user's own now, not after the wait in the queue."""
    if job.data.source:
        from harness.data.resolve import open_data

        open_data(job, None)


def doubts(request: Request) -> Iterator[str]:
    """Warnings about jobs that can be submitted but may not train as intended."""
    for job in request.jobs:
        yield from job.notes if isinstance(job, SearchSpec) else ()
    yield from dict.fromkeys(line for job in _trainings(request) for line in job.without_effect())
    if (folders := missing_in()) and not all(job.data.source for job in _trainings(request)):
        yield (
            f"the full dataset is not in {', '.join(map(str, folders))}: if the job's node does "
            "not find it either, the job will train on the packaged SAMPLE; get it first by: "
            "harness data fetch"
        )
    yield from snapshot_warnings(request.project, request.runs)
    program = job_environment(request.project) / "bin" / "harness"
    if not program.exists():
        yield (
            f"{program} is not there, and a job installs nothing; run bash slurm/common.sh "
            "--setup, or name an environment by HARNESS_VENV"
        )
    if is_checkout(request.project) and not commit_of(request.project):
        yield (
            f"git can't tell the commit of {request.project}; the whole folder is copied, and the "
            "runs will name no commit"
        )


def _trainings(request: Request) -> Iterator[Job]:
    for job in request.jobs:
        yield job.job if isinstance(job, SearchSpec) else job


def dry_submissions(request: Request) -> Iterator[SbatchJob]:
    """All that would be submitted, with the jobs' names in place of their ids."""
    code, snapshot = request.project, snapshot_path(request.project, request.runs)
    layout = _layout(request, snapshot, code, settings=client.read_settings())
    yield from _with_comparison(_plan(request, layout), request, layout)


def _tried(request: Request, layout: Layout) -> Iterator[tuple[SbatchJob, str]]:
    """Each job, and when sbatch would start it; jobs that are alike are tried once."""
    answers: dict[tuple[object, ...], str] = {}
    for each in _with_comparison(_plan(request, layout), request, layout):
        # The comparison waits for jobs that are not there yet.
        asks = [arg for arg in each.asks if not arg.startswith("--dependency=afterany:<")]
        header = [line for line in each.header if "--job-name" not in line]
        alike = (*header, *asks, each.unset)
        if alike not in answers:
            answers[alike] = _expected_start(each, asks)
        yield each, answers[alike]


def _expected_start(planned: SbatchJob, asks: Sequence[str]) -> str:
    with scratch_directory() as folder:
        script = folder / "job.sh"
        script.write_bytes(os.fsencode(planned.script))
        try:
            return client.would_start(
                script, *asks, timeout_s=SBATCH_TIMEOUT_S, unset=planned.unset
            )
        except (InputError, RunError) as error:
            is_refused = str(error).startswith(client.REFUSED)
            asks_for = f"; it asks for {planned.requests}" if is_refused else ""
            raise type(error)(f"{planned.name}: {error}{asks_for}") from None


def submit(request: Request) -> dict[str, SbatchJob]:
    """Submit all or nothing.

    Returns:
        The submitted jobs by their ids.

    Raises:
        InputError: if sbatch refuses a job, with all it says; then nothing stays submitted.
        RunError: if Slurm can't take it now; the same.
    """
    client.check_version("sbatch")  # before anything is written
    settings = client.read_settings()
    draft = _layout(request, request.project, request.project, settings=settings)
    # sbatch itself takes a job whose nodes are all down, and refuses one that no nodes suit.
    with contextlib.suppress(client.NoNodesError):
        for _ in _tried(request, draft):
            pass
    snapshot = take_snapshot(request.project, request.runs)
    layout = _layout(request, snapshot, snapshot, settings=settings)
    submitted: dict[str, SbatchJob] = {}
    try:
        for submission in _plan(request, layout):
            submitted[_submit(submission)] = submission
        if request.compares:
            submission = comparison_submission(submitted, request.resources, layout)
            submitted[_submit(submission)] = submission
    except (InputError, RunError, OSError) as error:
        if not submitted:
            raise
        kind = InputError if isinstance(error, InputError) else RunError
        raise kind(f"{error}; {_withdraw(submitted)}") from None
    except KeyboardInterrupt:
        if submitted:
            _withdraw(submitted)
        raise
    return submitted


def first_look(submitted: Mapping[str, SbatchJob]) -> list[str]:
    """What the queue says of new jobs once Slurm has considered them, from one squeue call.

    Returns:
        A line for each answer.

    Raises:
        InputError: if Slurm would let one of them wait for ever; then none stays submitted.
    """
    time.sleep(max(each.layout.first_look_s for each in submitted.values()))
    found: dict[str, dict[str, None]] = {}
    for job in ask_about([*submitted]):
        job_id = job.id.partition("_")[0]  # of a whole array
        if job.waits_for_ever and job_id in submitted:
            planned = submitted[job_id]
            remedy = "ask for more" if job.reason.startswith("QOSMin") else "give less"
            raise InputError(
                f"{planned.name}: would wait for ever: Slurm says {job.reason}, and it asks for "
                f"{planned.requests}; {remedy}, or name another "
                f"--partition, --qos or --account after --; {_withdraw(submitted)}"
            )
        answer = f"pending ({job.why})" if job.waits and job.why else job.state.lower()
        found.setdefault(answer, {})[job_id] = None
    return [
        f"{', '.join(ids)}: {answer}" if len(submitted) > 1 else answer
        for answer, ids in found.items()
    ]


def _layout(request: Request, snapshot: Path, code: Path, *, settings: Mapping[str, str]) -> Layout:
    variables = job_variables(request.project, snapshot, request.runs)
    size = settings.get("MaxArraySize", "")
    return Layout(
        request.runs,
        snapshot,
        code,
        variables,
        site_options(),
        int(size) if size.isdigit() else DEFAULT_ARRAY_SIZE,
        first_look_s(settings),
    )


def _plan(request: Request, layout: Layout) -> list[SbatchJob]:
    """All jobs but the comparison."""
    resumed = [resume_submission(each, layout) for each in request.resumed]
    return resumed + [
        job_submission(*(job, seeds, request.resources), layout=layout, pack=request.pack)
        for job in request.jobs
        for seeds in split_seeds(request.seeds, layout.array_size, pack=request.pack)
    ]


def _with_comparison(
    planned: Sequence[SbatchJob], request: Request, layout: Layout
) -> list[SbatchJob]:
    """All jobs; the comparison names the others in place of their ids."""
    if not request.compares:
        return [*planned]
    trainings = {f"<{each.name}>": each for each in planned}
    return [*planned, comparison_submission(trainings, request.resources, layout)]


def _submit(submission: SbatchJob) -> str:
    """Submit a planned job, and return its id.

    Raises:
        RunError: if sbatch refuses, with all it says; then the submission's folder is removed. If
            it names no job; then the folder is kept.
    """
    # Without it, Slurm drops the log silently.
    (submission.layout.runs / "logs").mkdir(parents=True, exist_ok=True)
    # Whatever the umask: the job refuses code that others could have changed.
    submission.folder.mkdir(mode=0o755, parents=True)
    try:
        # The bytes of its paths as they are, in any locale.
        atomic_write(submission.folder / "job.sh", os.fsencode(submission.script), 0o644)
        if submission.job_file:
            atomic_write(submission.job_file, submission.job_toml, 0o644)
        done = client.call(*submission.command, timeout_s=SBATCH_TIMEOUT_S)
        job_id = client.submitted_id(submission.name, done)
    except client.NoAnswerError as error:  # a job that was accepted needs the folder
        raise RunError(
            f"{submission.name}: may be in the queue all the same: look by squeue --me, and cancel "
            f"it by scancel ({error})"
        ) from None
    except (OSError, InputError, RunError):
        shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    for line in filter(None, done.stderr.splitlines()):  # what the site has to say
        Console().warning(line)
    try:
        _record(submission, job_id)
    except (OSError, RunError) as error:  # nobody would know of the job
        raise RunError(f"{error}; {_withdraw({job_id: submission})}") from None
    return job_id


def _record(submission: SbatchJob, job_id: str) -> None:
    record: dict[str, Any] = {
        "harness": __version__,
        "job_id": job_id,
        "job": submission.name,
        "architecture": submission.architecture,
        "seeds": list(submission.seeds),
        "runs": [str(run) for run in submission.run_folders(job_id)],
        "logs": [str(log) for log in submission.logs(job_id)],
        "resumes": submission.resumes is not None,
        "command": submission.command,
        "snapshot": str(submission.layout.snapshot),
        "submitted_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    atomic_write(submission.record, json.dumps(record, indent=2) + "\n")
    # It is found by the job's id. An id can come again if Slurm's own state was lost, so the link
    # is renamed over an old one; only files have `atomic_write`.
    link = submission.folder / ".link.tmp"
    link.symlink_to(Path(submission.folder.name) / submission.record.name)
    link.rename(submission.record_by_id(job_id))


def _withdraw(submitted: Mapping[str, SbatchJob]) -> str:
    """Cancel the jobs submitted so far, since a later one was refused; return what was done."""
    ids = ", ".join(submitted)
    try:
        client.ask("scancel", *submitted)
    except (InputError, RunError) as error:
        return f"jobs {ids} could not be cancelled ({error}); cancel them yourself"
    for job_id, submission in submitted.items():
        submission.record_by_id(job_id).unlink(missing_ok=True)
        shutil.rmtree(submission.folder, ignore_errors=True)
    return f"jobs {ids} were cancelled"
