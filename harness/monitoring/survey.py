"""The state of every run: from run folders first, from the scheduler's queue second."""

import functools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from harness import PROJECT
from harness.files.lenient_json import read_toml, table, text
from harness.files.plain_file import Record, in_threads
from harness.monitoring.status import infer_state
from harness.slurm.queue import Queue, QueuedJob, training_script
from harness.slurm.script import submissions
from harness.tracking.records import ALIVE, RunStatus, observe, read_submissions
from harness.tracking.run_folders import RunFolder, walk_runs

NUM_NEWEST = 20  # ended runs that `harness status` shows by default


def survey(runs: Path, queue: Queue | None, folders: Sequence[Path] = ()) -> list[RunStatus]:
    """Every run below `runs` and in `folders`: those at work first, then the newest.

    A job that waits in the queue is included: by its record or, given a queue, by its script.

    Args:
        folders: more runs, or folders of runs, also some that a submitted job has yet to make.
    """
    look = _Look(runs, queue)
    here = filter(os.path.isdir, folders)
    found = walk_runs((runs, *here))
    statuses = look.at(found)
    return _sorted(statuses + look.not_begun(statuses, {each.real for each in found}))


def look_at(folders: Sequence[Path], runs: Path, queue: Queue | None) -> list[RunStatus]:
    """Some runs, or the runs in some folders: those at work first, then the newest."""
    top = f"{os.path.realpath(runs)}/"
    found = [
        each._replace(path=str(runs / each.real.removeprefix(top)))
        if each.real.startswith(top)
        else each
        for each in walk_runs(folders)
    ]
    return _sorted(_Look(runs, queue).at(found))


class _Look:
    """One look at runs, at one moment."""

    def __init__(self, runs: Path, queue: Queue | None) -> None:
        self.runs, self.now = runs, time.time()
        self._real_folder = functools.cache(os.path.realpath)
        sent = read_submissions(submissions(runs))
        self.submissions = {self._real(each.folder): each for each in sent}
        self.jobs = queue.jobs() if queue else None
        self.asked_s_ago = self.now - queue.asked_at if queue else 0.0
        self._jobs_by_id: dict[str, list[QueuedJob]] = {}
        for job in self.jobs or ():
            for name in {job.id, job.raw_id}:
                self._jobs_by_id.setdefault(name, []).append(job)

    def at(self, found: Sequence[RunFolder]) -> list[RunStatus]:
        """Runs with their states."""
        return in_threads(
            lambda each: self._status(each.path, _name(each.path, self.runs), each.heartbeat), found
        )

    def not_begun(self, statuses: Sequence[RunStatus], begun: set[str]) -> list[RunStatus]:
        """The runs of submitted jobs that have no folder yet; `begun` are real paths of others."""
        if self.submissions:
            begun = begun | {self._real(each.folder) for each in statuses}  # one that is a link
        top = Path(os.path.realpath(self.runs))
        waiting = [
            (str(sent.folder), _name(real, top))
            for real, sent in self.submissions.items()
            if real not in begun
        ]
        found = in_threads(lambda each: self._status(*each), waiting)
        known = [each.queued for each in (*statuses, *found)]
        return found + list(_unrecorded(self.jobs or [], known, self.runs, now=self.now))

    def _status(self, path: str, name: str, heartbeat: Record | None = None) -> RunStatus:
        folder = Path(path)
        sent = self.submissions.get(self._real(folder)) if self.submissions else None
        status = observe(folder, name, sent, now=self.now, heartbeat=heartbeat)
        self._infer(status)
        return status

    def _real(self, run: Path) -> str:
        """The real path of a run's folder, which itself is no link; many are in few folders."""
        return f"{self._real_folder(run.parent)}/{run.name}"

    def _infer(self, status: RunStatus) -> None:
        jobs = None
        if self.jobs is not None:
            names = dict.fromkeys((status.reported_job or "", status.slurm_job or ""))
            jobs = [job for name in names for job in self._jobs_by_id.get(name, ())]
        infer_state(status, jobs, asked_s_ago=self.asked_s_ago)


def _sorted(statuses: Iterable[RunStatus]) -> list[RunStatus]:
    return sorted(statuses, key=lambda each: (_rank(each), -each.time_s, each.run))


def refresh(status: RunStatus, queue: Queue) -> RunStatus:
    """The same run as it is now."""
    now = time.time()
    fresh = observe(status.folder, status.run, status.submission, now=now)
    infer_state(fresh, queue.jobs(), asked_s_ago=now - queue.asked_at)
    return fresh


def _rank(status: RunStatus) -> int:
    return ALIVE.index(status.state) if status.state in ALIVE else len(ALIVE)


def _name(path: str, runs: Path) -> str:
    return path.removeprefix(f"{str(runs).rstrip('/')}/")


def _unrecorded(
    jobs: Sequence[QueuedJob], known: Sequence[QueuedJob | None], runs: Path, *, now: float
) -> Iterator[RunStatus]:
    """Jobs of this project that were submitted by plain sbatch and have no folder yet."""
    taken = {job.id for job in known if job}
    own = {str(PROJECT), os.path.dirname(os.path.realpath(runs))}  # noqa: PTH120 - as a string
    for queued in jobs:
        project, name = training_script(queued) or ("", "")
        job = read_toml(Path(project, "jobs", f"{name}.toml")) if project in own else {}
        if not job or queued.id in taken or queued.ended:
            continue
        job_name = text(job.get("name")) or name
        task = queued.id.partition("_")[2]
        status = RunStatus(
            run=f"{job_name}/slurm-{queued.id}",
            folder=runs / job_name / f"slurm-{queued.id}",
            job=job_name,
            architecture=text(table(job, "model").get("architecture")),
            seed=int(task) if task.isdigit() else None,
            slurm_job=queued.id,
            time_s=now,
        )
        infer_state(status, [queued], asked_s_ago=0.0)
        yield status
