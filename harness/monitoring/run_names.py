"""The runs that a user means by a name."""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import InputError
from harness.monitoring.survey import look_at, survey
from harness.search_space import SEARCH_FILE
from harness.slurm.queue import Queue
from harness.tracking.records import RunStatus
from harness.tracking.run_folders import leads_to_folder


def select_runs(
    names: Sequence[str], runs: Path, queue: Queue | None, *, many: bool = False
) -> list[RunStatus]:
    """The runs with these names, in the order of `survey`; their folders alone are read.

    A folder of runs may be named too. Jobs that have yet to make a folder there belong to it, so
    all runs are looked at.

    Raises:
        InputError: as `pick` says.
    """
    folders = [folder for name in names for folder in _named(name, runs)]
    if folders and all(map(_is_run, folders)):
        try:
            return _chosen(names, look_at(folders, runs, queue), runs, many=many)
        except InputError:  # one is the id of a job that no folder is named after, or of none
            pass
    paths = [Path(name) for name in names if name.strip()]
    return _chosen(names, survey(runs, queue, paths), runs, many=many)


def _chosen(
    names: Sequence[str], statuses: Sequence[RunStatus], runs: Path, *, many: bool
) -> list[RunStatus]:
    chosen = {id(run) for name in names for run in pick(name, statuses, runs, many=many)}
    return [run for run in statuses if id(run) in chosen]


def _named(name: str, runs: Path) -> Iterator[Path]:
    """The folders that a name may mean: it is their path, or their id below a job's folder."""
    if not name.strip():
        return
    for folder in (Path(name), runs / name):
        if os.path.isdir(folder):  # noqa: PTH112 - never raises
            yield folder
            return
    for job in _folders(runs):
        for run in _folders(job):
            if run.name == name or _is_of_job(run.name, name):
                yield run


def _is_of_job(folder: str, job: str, tasks: str = r"(_\d+)?") -> bool:
    """Whether a folder's name says that a job began the run, or a task or seed of it did."""
    return bool(re.fullmatch(rf"slurm-{re.escape(job)}{tasks}(-\d+)?(-seed\d+)?", folder))


def _is_run(folder: Path) -> bool:
    return any(os.path.lexists(folder / name) for name in ("job.toml", SEARCH_FILE))


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [folder / entry.name for entry in entries if leads_to_folder(entry)]
    except OSError:  # it was removed meanwhile, or may not be read
        return []


def pick(
    name: str, statuses: Sequence[RunStatus], runs: Path, *, many: bool = False
) -> list[RunStatus]:
    """The runs that a user means: by folder, run id, Slurm job id, or the id of a job array.

    Args:
        statuses: from `survey`, which was given the name's folder.
        many: whether a folder of runs, or an id that several share, is allowed.

    Raises:
        InputError: if the name fits none, with similar ones, or several where one is needed.
    """
    if not name.strip():
        raise InputError("run '': give a folder, an id or a Slurm job's id")
    for folder in (Path(name), runs / name):
        real = os.path.realpath(folder)
        paths = [(os.path.realpath(each.folder), each) for each in statuses]
        found = [each for path, each in paths if path == real]
        found = found or [each for path, each in paths if path.startswith(real + os.sep)]
        if found:
            return found if many else [one(name, found)]
    # A folder keeps the id of its first job, also when another job goes on with its run.
    found = [
        each
        for each in statuses
        if name in (each.run, each.folder.name, each.slurm_job)
        or _is_of_job(each.folder.name, name, tasks="")
    ]
    if found:
        is_job = many or all(each.shares_job for each in found)
        return found if is_job else [one(name, found)]
    # All tasks of an array are one job to Slurm.
    array = [
        each
        for each in statuses
        if (each.slurm_job or "").startswith(f"{name}_") or _is_of_job(each.folder.name, name)
    ]
    # Last, the id that logs are named by: a task's own, which for one task is also its array's.
    found = array or [each for each in statuses if each.reported_job == name]
    if found:
        return found
    known = {known for each in statuses for known in (each.run, each.folder.name, each.slurm_job)}
    near = difflib.get_close_matches(name, filter(None, known), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "harness status --all lists them"
    raise InputError(f"run {name}: no run has this folder, id or job below {runs}; {hint}")


def one(name: str, found: Sequence[RunStatus]) -> RunStatus:
    """The only run of those found.

    Raises:
        InputError: if there are several, with their names.
    """
    if len(found) > 1:
        names = ", ".join(each.run for each in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise InputError(f"run {name}: fits {len(found)} runs, name one of them: {names}{more}")
    return found[0]
