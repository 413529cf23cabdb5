"""Manages the folder of a run: its name, its files, the format of its records. Finds runs.

FORMAT is the version number of checkpoints and of the records of runs, sweeps and ensembles. The
maintainers increase FORMAT if the meaning of a record or the default of a job's key changes, but
not if they add a key. The harness does not convert records of another format: only a version with
the run's FORMAT can continue a run. `status`, `logs` and TensorBoard show runs of any format as far
as possible.
"""

import contextlib
import hashlib
import math
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness import __version__
from harness.errors import InputError, RunError
from harness.job.job_file import load_job, shown
from harness.job.keys import Job
from harness.job.search import SEARCH_FILE, is_sweep
from harness.system.console import quoted
from harness.system.files import (
    MODE,
    Record,
    atomic_write,
    foreign_link,
    is_file,
    owner_name,
    raise_unless_missing,
    read_record,
    why_refused,
)
from harness.system.leased_dir import LeasedDirectory, to_json
from harness.system.lenient_json import number, table, text
from harness.system.processes import in_threads

MAX_DEPTH = 4  # `find_runs` searches this number of levels below a folder
ENSEMBLE_FILE = "ensemble.toml"
MAKE_AGAIN = "make the ensemble again with harness ensemble"
# A folder with one of these files is a run, a sweep or an ensemble. In a new run, the process first
# writes the lease, then the job file.
MARKS = ("job.toml", "lease.json", "state.json", SEARCH_FILE, ENSEMBLE_FILE)

FORMAT = 6
RECORD = "provenance.json"  # the record of a run or a sweep
TIME = "%Y-%m-%dT%H:%M:%S%z"  # the format of times in records
RESULT = "result.json"  # written last, so it marks the run or sweep as finished

CANCEL = "cancel.json"  # `harness cancel` writes this file to ask a run to stop, or not to begin
PREDICTIONS, VALIDATION_PREDICTIONS = "predictions.npz", "validation_predictions.npz"
RATIOS_FILE = "ngram_ratios.npz"
# Files that are bitwise identical in all runs of a job on the same devices. The dictionary's values
# are the keys of the files' sha256 in `result.json`.
CHECKSUMS = {
    "vocabulary.txt": "vocabulary_checksum",
    RATIOS_FILE: "ngram_ratios_checksum",
    "metrics.jsonl": "metrics_checksum",
    "model.keras": "model_checksum",
    PREDICTIONS: "predictions_checksum",
    VALIDATION_PREDICTIONS: "validation_predictions_checksum",
}
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def is_ensemble(folder: Path) -> bool:
    """Whether a folder contains an ensemble, which `harness.report.ensemble` made."""
    # Not `Path.is_file`, which may raise an error.
    return os.path.isfile(folder / ENSEMBLE_FILE)  # noqa: PTH113


def default_runs() -> Path:
    """Return the folder of all runs, which a command uses if `--runs` is not given."""
    return Path(os.environ.get("HARNESS_RUNS") or "runs")


def named_or_all(named: Sequence[Path] | None, runs: Path) -> Sequence[Path]:
    """Return the named folders, or the folder of all runs if no folder is named.

    Raises:
        InputError: if no folder is named and there is no folder of all runs.
    """
    if not named and not os.path.isdir(runs):  # noqa: PTH112 - `Path.is_dir` may raise an error
        raise InputError(
            f"there is no folder {runs} here; change to the folder that contains it, or specify "
            "your folder of runs with --runs or HARNESS_RUNS"
        )
    return named or [runs]


class RunFolder(NamedTuple):
    """The folder of a run or a sweep."""

    path: Path  # begins with the path of the searched folder
    real: str  # the folder's path with symbolic links resolved
    heartbeat: Record | None = None  # the content of `state.json`, if `find_runs` has read it


def find_runs(
    tops: Iterable[Path],
    in_sweeps: Sequence[str] = (),
    refused: dict[str, str] | None = None,
    *,
    foreign_links: bool = True,
) -> list[RunFolder]:
    """Return the folders of runs and sweeps at or below `tops`, sorted, without duplicates.

    Args:
        tops: the folders to search.
        in_sweeps: which subfolders of a sweep to search for runs: `trials`, `winner`, both or none.
            If `in_sweeps` is not empty, the function reads no heartbeats.
        refused: a dictionary that receives each path that can't be searched, with the reason.
        foreign_links: whether to follow the symbolic links of other users; if not, `refused`
            receives these links too.
    """
    refused = {} if refused is None else refused
    runs: dict[str, RunFolder] = {}
    for top in tops:
        at, below = os.path.realpath(top), _below(top, in_sweeps, refused, foreign_links)
        # A run that is also found through a symbolic link keeps its own name.
        by_link = [(f"{at}/{each.path.relative_to(top)}" != each.real, each) for each in below]
        for _, found in sorted(by_link):
            runs.setdefault(found.real, found)
    return list(runs.values())


def _below(
    top: Path, in_sweeps: Sequence[str], refused: dict[str, str], foreign_links: bool
) -> Iterator[RunFolder]:
    look = partial(_look, in_sweeps=in_sweeps, refused=refused)
    level = [(str(top), os.path.realpath(top), MAX_DEPTH)]
    while level:
        looks = in_threads(look, [path for path, _, _ in level])
        below = []
        for (path, real, depth), (heartbeat, entries) in zip(level, looks, strict=True):
            if heartbeat or not entries.keys().isdisjoint(MARKS):
                yield RunFolder(Path(path), real, heartbeat)
                parts = in_sweeps if SEARCH_FILE in entries else ()
                entries = {name: entries[name] for name in parts if name in entries}
                depth = MAX_DEPTH + 1
            for name, entry in entries.items():
                is_link = entry.is_symlink()
                # `DirEntry.is_dir` raises an error if symbolic links form a loop.
                is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()  # noqa: PTH112
                if not depth or name.startswith(".") or not is_folder:
                    continue
                if is_link and not foreign_links and (owner := foreign_link(entry.path)):
                    refused[entry.path] = f"is a symbolic link that belongs to {owner}"
                    continue
                where = os.path.realpath(entry.path) if is_link else f"{real}/{name}"
                below.append((entry.path, where, depth - 1))
        level = below


def _look(
    folder: str, in_sweeps: Sequence[str], refused: dict[str, str]
) -> tuple[Record | None, dict[str, os.DirEntry[str]]]:
    """Return the heartbeat of a folder, or the folder's entries if there is no heartbeat."""
    if not in_sweeps and (heartbeat := read_record(f"{folder}/state.json")):
        return heartbeat, {}
    try:
        with os.scandir(folder) as entries:
            return None, {entry.name: entry for entry in entries}
    # The folder was removed in the meantime, or the user's shell pattern also matched a file.
    except (FileNotFoundError, NotADirectoryError):
        return None, {}
    except OSError as error:
        refused[folder] = f"can't be read: {error.strerror}"
        return None, {}


# The format of records


def stamped(record: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a record, and add FORMAT and the version of the harness to the copy."""
    rest = {key: value for key, value in record.items() if key not in ("format", "harness")}
    return {"format": FORMAT, "harness": __version__, **rest}


def first_start(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a run's first start; empty if it is missing or broken."""
    return _start(record, 0)


def last_start(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a run's last start; empty if it is missing or broken."""
    return _start(record, -1)


def _start(record: Mapping[str, Any], index: int) -> dict[str, Any]:
    starts = record.get("starts")
    start = starts[index] if isinstance(starts, list) and starts else None
    return start if isinstance(start, dict) else {}


def attempt_of(run: Path) -> int:
    """Return the attempt of `<sweep>/trials/<trial>/<attempt>/seed<N>`, 0 for another path."""
    attempt = run.parent
    is_trial = attempt.parent.parent.name == "trials" and attempt.name.isdecimal()
    return int(attempt.name) if is_trial else 0


def began_s(record: Mapping[str, Any]) -> float:
    """Return the time of a run's first start in seconds since 1970; infinite if unknown."""
    try:
        return datetime.fromisoformat(text(first_start(record).get("at")) or "").timestamp()
    except (ValueError, OverflowError, OSError):  # the time is broken, or the year is impossible
        return math.inf


def weights_of(record: Mapping[str, Any]) -> str | None:
    """Return the folder of the run that provided a run's initial weights, or None.

    If a run continued its parent's checkpoint, and the parent began with the weights of a third
    run, return the folder of the third run.
    """
    parent = table(first_start(record), "parent")
    return text(parent.get("run" if parent.get("begins_with") == "weights" else "weights_of"))


def check_format(name: str, record: Mapping[str, Any], *, remedy: str = "") -> None:
    """Refuse a record whose format is not FORMAT.

    Args:
        name: the beginning of the message, such as `run runs/lstm/a`.
        record: the record to check; an empty record is accepted, because a new run has none.
        remedy: the end of the message, which says how to get the version that wrote the record.

    Raises:
        InputError: if the format is not FORMAT.
    """
    if not record or record.get("format") == FORMAT:
        return
    version = f"harness {record.get('harness', 'of an unknown version')}"
    raise InputError(
        f"{name}: was written by {version} (format {record.get('format')}), but this is "
        f"harness {__version__} (format {FORMAT}); use the version that wrote the record{remedy}"
    )


def check_record(folder: LeasedDirectory) -> None:
    """Refuse a run or a sweep whose record is broken, or has a format that is not FORMAT.

    Raises:
        InputError: if the record is broken, or if its format is not FORMAT.
        DiskError: if the disk fails.
    """
    name = f"{folder.kind} {folder.folder}"
    # Check first whether the record exists, then read it. In the reverse order, another process
    # could create the record after the read, and the new record would be reported as broken.
    path = folder.path(RECORD)
    is_there = os.path.lexists(path)
    if is_there and path.lstat().st_uid != os.getuid() and not os.access(path, os.R_OK):
        return  # private to another user, because it contains uncommitted changes
    record = folder.certain_json(RECORD)
    shapes = {"plan": dict, "dataset": dict, "starts": list}
    is_broken = any(not isinstance(record.get(k, kind()), kind) for k, kind in shapes.items())
    if is_there and (not record or is_broken):
        raise InputError(
            f"{name}: {RECORD} is broken; restore this file from a copy, or remove it to begin a "
            "new record of the code and the machine"
        )
    remedy = f": harness reproduce {quoted(folder.folder)} restores its code"
    check_format(name, record, remedy=remedy if folder.kind == "run" else "")


def untimed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without the values whose keys end in `_s`: measured times and speeds.

    The remaining values are identical in all deterministic runs of a job on the same devices.
    """
    return {key: value for key, value in record.items() if not key.endswith("_s")}


# The folder


class RunDirectory(LeasedDirectory):
    """The folder of a run, `runs/<job>/<run-id>/`."""

    kind = "run"

    @classmethod
    def new(cls, runs: Path, job: Job, run_id: str | None) -> "RunDirectory":
        """Return a new run of `job`, or the existing run with this id if its job equals `job`.

        If `run_id` is None, this method creates the folder. If `run_id` is given, `take_lease`
        creates the folder later.

        Raises:
            InputError: if the id is not a file name, if the folder contains another job, or if
                the folder of the runs can't be written.
        """
        if run_id is None:
            end = f"-seed{job.train.seed}"
            return cls(runs / job.name / f"{reserve_id(runs, [(job.name, end)])}{end}")
        check_id("--run-id", run_id)
        run = cls(runs / job.name / run_id)
        if run.exists() and (old := run.job()).identity() != job.identity():
            what = "other [code]"
            if changes := old.changes(job):
                key = changes[0]
                what = f"{key} = {shown(old.value(key))}, not {shown(job.value(key))}"
            raise InputError(
                f"run {run.folder}: contains another job ({what}); choose another --run-id, or "
                f"continue the run: harness resume {quoted(run.folder)}"
            )
        return run

    @classmethod
    def open(cls, folder: Path) -> "RunDirectory":
        """Return an existing run.

        Raises:
            InputError: if the folder does not exist or is not the folder of a run.
        """
        run = cls(folder)
        if run.exists():
            return run
        raise InputError(f"run {folder}: {_why_no_run(folder)}")

    def exists(self) -> bool:
        """Whether the run has begun."""
        return is_file(self.folder / "job.toml")

    def finished(self) -> bool:
        """Whether the run has finished; `result.json` is written last."""
        return is_file(self.folder / RESULT)

    def result(self) -> dict[str, Any]:
        """Read the `result.json` of a finished run.

        Raises:
            DiskError: if the disk fails.
            RunError: if the file is broken.
        """
        result = self.certain_json(RESULT)
        if not is_whole(result):
            path = self.path(RESULT)
            raise RunError(f"{path}: is broken; remove this file and run harness resume")
        return result

    def model_file(self) -> Path:
        """Return the path of the trained model.

        Raises:
            InputError: if the run is unfinished, or its model is missing.
        """
        path = self.path("model.keras")
        if not self.finished():
            raise InputError(
                f"run {self.folder}: is unfinished and has no model yet; wait until the run ends, "
                f"or continue the run with: harness resume {quoted(self.folder)}"
            )
        if not path.is_file():
            raise InputError(
                f"run {self.folder}: has no model.keras (a search keeps only its five best "
                "models); train the run's job again with: harness train "
                f"{quoted(self.path('job.toml'))} --set data.test=true"
            )
        return path

    def job(self) -> Job:
        """Load the job of the run, with all defaults.

        Raises:
            InputError: if the run's record has another format, or if a file of the run is broken.
        """
        check_record(self)
        return load_job(self.folder / "job.toml")

    def check_owner(self) -> None:
        """Refuse to write into another user's run, or through another user's symbolic link.

        This user's links are allowed, such as a link from `runs` to a scratch disk.

        Raises:
            InputError: if a folder or a symbolic link belongs to another user.
        """
        below = ("*", "tensorboard/*", "checkpoints/*")
        inside = [path for pattern in below for path in self.folder.glob(pattern)]
        for path in (self.folder, *inside):
            with contextlib.suppress(OSError):  # in a new run the folder does not exist
                status = path.stat() if path == self.folder else path.lstat()
                if status.st_uid != os.getuid() and not stat.S_ISREG(status.st_mode):
                    raise InputError(
                        f"run {self.folder}: {path} belongs to {owner_name(status.st_uid)}, and "
                        "only this user may write it; train your own run: harness train "
                        f"{quoted(self.path('job.toml'))}"
                    )

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file.

        Only this user can read a file with a diff of the code, because a diff may contain secrets.
        """
        self.write(name, to_json(content), mode=0o600 if content.get("uncommitted_diff") else MODE)

    def checkpoints(self) -> list[Path]:
        """Return the paths of the run's checkpoints, oldest first.

        Raises:
            DiskError: if the disk fails; `Path.glob` would hide this error.
        """
        folder = self.path("checkpoints")
        try:
            return sorted(path for path in folder.iterdir() if path.match("step-*.npz"))
        except OSError as error:
            raise_unless_missing(error, folder)
            return []

    def leftovers(self) -> Iterator[Path]:
        """Yield the incomplete files of killed processes, also in the run's subfolders."""
        return self.folder.rglob(".*.tmp*")


def _why_no_run(folder: Path) -> str:
    """Return why a folder is not the folder of a run, and the remedy."""
    if is_sweep(folder):
        return f"is a search; train its best trial: harness sweep retrain {quoted(folder)}"
    if is_ensemble(folder):
        return "is an ensemble, which only harness predict and compare accept; give one of its runs"
    is_there = os.path.isdir(folder)  # noqa: PTH112 - `Path.is_dir` may raise an error
    no_run = "is not a run's folder, because it contains no job.toml"
    return f"{no_run if is_there else 'no such folder'}; harness status --all lists all runs"


def ask_to_cancel(folder: Path) -> None:
    """Ask a running run to stop, or a queued run not to begin; `harness resume` withdraws this.

    The request is a file, because a signal can't be sent to only one run of a Slurm job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / CANCEL, to_json({"at": time.strftime(TIME)}))


def take_back_cancel(folder: Path) -> None:
    """Undo `ask_to_cancel`."""
    (folder / CANCEL).unlink(missing_ok=True)


def check_id(option: str, text: str) -> None:
    """Refuse an id of a run or a sweep that is not a plain file name.

    Args:
        option: the name of the option, for the message.
        text: the id.

    Raises:
        InputError: if the id is not a plain file name.
    """
    if not RUN_ID.fullmatch(text):
        raise InputError(
            f"{option} {text!r}: should be at most 100 letters, digits, '.', '_' or '-', and begin "
            "with a letter or digit"
        )


def reserve_id(runs: Path, wanted: Sequence[tuple[str, str]]) -> str:
    """Return a new id, made from the current time.

    The id is the name of a sweep, or the beginning of the names of runs. This function creates the
    folders of the runs, so that no other thread or process uses their names.

    Args:
        runs: the folder of all runs.
        wanted: for each run, the name of its job and the text that follows the id in the run's
            name, such as `-seed1`.

    Raises:
        InputError: if the folder of the runs can't be written.
    """
    first, count = time.strftime("%Y%m%d-%H%M%S"), 1
    while True:
        name = first if count == 1 else f"{first}-{count}"
        folders = [runs / job / f"{name}{end}" for job, end in wanted]
        for index, folder in enumerate(folders):
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                is_taken = os.path.lexists(folder)
                remove_empty(folders[:index])
                if is_taken:
                    break
                reason = why_refused(error)
                raise InputError(
                    f"runs = {runs}: can't be written: {reason}; choose another --runs folder"
                ) from None
        else:
            return name
        count += 1


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders that `reserve_id` created and that are still empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


def is_whole(result: dict[str, Any]) -> bool:
    """Whether a result has an accuracy (test or validation), classes and a data checksum."""
    score = number(result["accuracy"] if "accuracy" in result else result.get("val_accuracy"))
    classes = result.get("classes")
    is_list = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return score is not None and is_list and isinstance(result.get("dataset_checksum"), str)


def run_identity(job: Job, checksum: str) -> str:
    """Return the sha256 of a job and its data; a run resumes only a checkpoint with this sha256."""
    return hashlib.sha256(f"{job.identity()}\n{checksum}".encode()).hexdigest()
