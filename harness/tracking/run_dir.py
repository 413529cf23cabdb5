"""The folder of a run: how to find it, its name, its files, the format of its records.

One number is the format of the records of runs, sweeps and ensembles, and of checkpoints. A change
in what is written, or in a default of a job's key, raises it; a new key does not.
Nothing of another format is converted: the version that wrote it can continue it. `status`, `logs`
and TensorBoard show any format as far as possible.
"""

import contextlib
import hashlib
import itertools
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
from harness.errors import InputError, RunError, suggest
from harness.job.job_file import load_job
from harness.job.keys import Job
from harness.job.search import SEARCH_FILE
from harness.system.files import (
    Record,
    atomic_write,
    foreign_link,
    in_threads,
    is_file,
    owner_name,
    raise_unless_missing,
    read_record,
    why_refused,
)
from harness.system.leased_dir import LeasedDirectory, to_json
from harness.system.lenient_json import number, table, text

MAX_DEPTH = 4  # levels below the searched folder
ENSEMBLE_FILE = "ensemble.toml"
MAKE_AGAIN = "make it again by harness ensemble"
# A new folder first holds the lease, then the job.
MARKS = ("job.toml", "lease.json", "state.json", SEARCH_FILE, ENSEMBLE_FILE)

FORMAT = 6
RECORD = "provenance.json"  # of a run and of a sweep

CANCEL = "cancel.json"
PREDICTIONS, VALIDATION_PREDICTIONS = "predictions.npz", "validation_predictions.npz"
# What a job decides to the byte, and the key of `result.json` with the sha256 of each file.
CHECKSUMS = {
    "vocabulary.txt": "vocabulary_checksum",
    "ngram_ratios.npz": "ngram_ratios_checksum",
    "metrics.jsonl": "metrics_checksum",
    "model.keras": "model_checksum",
    PREDICTIONS: "predictions_checksum",
    VALIDATION_PREDICTIONS: "validation_predictions_checksum",
}
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def is_ensemble(folder: Path) -> bool:
    """Whether a folder is an ensemble's, `harness.report.ensemble`."""
    return os.path.isfile(folder / ENSEMBLE_FILE)  # noqa: PTH113 - never raises


def job_file(folder: Path) -> str:
    """The path of a run's job, or of an ensemble's first member's: all members share the data."""
    return "members/1/job.toml" if is_ensemble(folder) else "job.toml"


class RunFolder(NamedTuple):
    """The folder of a run or a sweep."""

    path: str  # below the searched folder
    real: str  # without links
    heartbeat: Record | None = None  # if the search read it


def find_runs(
    tops: Iterable[Path],
    in_sweeps: Sequence[str] = (),
    refused: dict[str, str] | None = None,
) -> Iterator[Path]:
    """The folders of runs and sweeps at or below some folders, without duplicates, sorted by path.

    Args:
        tops: where to look.
        in_sweeps: parts of a sweep to search for runs, too: `trials`, `winner`.
        refused: collects links of other users, which are not followed then, and unreadable folders:
            the reason by path. None follows all links.
    """
    for found in walk_runs(tops, in_sweeps, refused):
        yield Path(found.path)


def walk_runs(
    tops: Iterable[Path],
    in_sweeps: Sequence[str] = (),
    refused: dict[str, str] | None = None,
) -> list[RunFolder]:
    """Like `find_runs`; with the heartbeats, if runs in sweeps are not searched for."""
    runs: dict[str, RunFolder] = {}
    for top in tops:
        for found in sorted(_below(top, in_sweeps, refused), key=lambda run: Path(run.path).parts):
            runs.setdefault(found.real, found)
    return list(runs.values())


def _below(
    top: Path, in_sweeps: Sequence[str], refused: dict[str, str] | None
) -> Iterator[RunFolder]:
    look = partial(_look, in_sweeps=in_sweeps, refused={} if refused is None else refused)
    level = [(str(top), os.path.realpath(top), MAX_DEPTH)]
    while level:
        looks = in_threads(look, [path for path, _, _ in level])
        below = []
        for (path, real, depth), (heartbeat, entries) in zip(level, looks, strict=True):
            if heartbeat or not entries.keys().isdisjoint(MARKS):
                yield RunFolder(path, real, heartbeat)
                parts = in_sweeps if SEARCH_FILE in entries else ()
                entries = {name: entries[name] for name in parts if name in entries}
                depth = MAX_DEPTH + 1
            for name, entry in entries.items():
                if not depth or name.startswith(".") or not _leads_to_folder(entry):
                    continue
                is_link = entry.is_symlink()
                if is_link and refused is not None and (owner := foreign_link(entry.path)):
                    refused[entry.path] = f"is a link of {owner}"
                    continue
                where = os.path.realpath(entry.path) if is_link else f"{real}/{name}"
                below.append((entry.path, where, depth - 1))
        level = below


def _look(
    folder: str, in_sweeps: Sequence[str], refused: dict[str, str]
) -> tuple[Record | None, dict[str, os.DirEntry[str]]]:
    """The heartbeat of a folder, or else its entries."""
    if not in_sweeps and (heartbeat := read_record(f"{folder}/state.json")):
        return heartbeat, {}
    try:
        with os.scandir(folder) as entries:
            return None, {entry.name: entry for entry in entries}
    except FileNotFoundError:  # it was removed meanwhile
        return None, {}
    except OSError as error:
        refused[folder] = f"can't be read: {error.strerror}"
        return None, {}


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder that may not be entered, or a disk that does not answer
        return False


# The format of records


def stamped(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the number of the format and the version that writes it."""
    rest = {key: value for key, value in record.items() if key not in ("format", "harness")}
    return {"format": FORMAT, "harness": __version__, **rest}


def first_start(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run's first start; empty if it is missing or broken."""
    return _start(record, 0)


def last_start(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run's last start; empty if it is missing or broken."""
    return _start(record, -1)


def _start(record: Mapping[str, Any], index: int) -> dict[str, Any]:
    starts = record.get("starts")
    start = starts[index] if isinstance(starts, list) and starts else None
    return start if isinstance(start, dict) else {}


def began_s(record: Mapping[str, Any]) -> float:
    """The time of a run's first start in seconds since 1970; infinite if unknown."""
    try:
        return datetime.fromisoformat(text(first_start(record).get("at")) or "").timestamp()
    except (ValueError, OverflowError, OSError):  # broken, or an impossible year
        return math.inf


def weights_of(record: Mapping[str, Any]) -> str | None:
    """The folder of the run whose weights a run, or the run it continues, began with."""
    parent = table(first_start(record), "parent")
    return text(parent.get("run" if parent.get("begins_with") == "weights" else "weights_of"))


def check_format(name: str, record: Mapping[str, Any], *, remedy: str = "") -> None:
    """Refuse a record that a version with another format wrote.

    Args:
        name: what the record describes, such as `run runs/lstm/a`.
        record: empty if none exists yet.
        remedy: how to get that version.

    Raises:
        InputError: for another format.
    """
    if not record or record.get("format") == FORMAT:
        return
    version = f"harness {record.get('harness', 'of an unknown version')}"
    raise InputError(
        f"{name}: was written by {version} (format {record.get('format')}), this is harness "
        f"{__version__} (format {FORMAT}); go on with it by that version{remedy}"
    )


def check_record(folder: LeasedDirectory, *, remedy: str = "") -> None:
    """Refuse a run or a sweep with a record of another format, or a broken one.

    Args:
        remedy: how to get that version.

    Raises:
        InputError: for such a record.
        DiskError: if the record is unreadable just now.
    """
    name = f"{folder.kind} {folder.folder}"
    is_there = os.path.lexists(folder.path(RECORD))  # asked first: another start may write it now
    record = folder.certain_json(RECORD)
    if is_there and not record:
        raise InputError(
            f"{name}: {RECORD} is broken, which says what it was begun with; put it back from a "
            "copy, or remove it to begin a new record"
        )
    check_format(name, record, remedy=remedy)


def untimed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without measured times: keys that end in `_s`, including `reviews_per_s`.

    The rest is identical for two runs of a job on the same devices.
    """
    return {key: value for key, value in record.items() if not key.endswith("_s")}


# The folder


class RunDirectory(LeasedDirectory):
    """The folder of a run, `runs/<job>/<run-id>/`."""

    kind = "run"

    @classmethod
    def new(cls, runs: Path, job: Job, run_id: str | None) -> "RunDirectory":
        """Name the folder of a run. `take_lease` makes it; without a `run_id` it is made at once.

        With a `run_id` the folder may exist: then the run continues, if its job is the same,
        wherever data and vectors are now; their checksums are compared later.

        Raises:
            InputError: if the id is not a file name, the folder holds another job, or the
                folder of the runs can't be written.
        """
        if run_id is None:
            end = f"-seed{job.train.seed}"
            return cls(runs / job.name / f"{reserve_id(runs, [(job.name, end)])}{end}")
        check_id("--run-id", run_id)
        run = cls(runs / job.name / run_id)
        if run.exists() and run.job().identity() != job.identity():
            raise InputError(
                f"run {run.folder}: holds another job; choose another --run-id, or go on with it "
                f"by: harness resume {run.folder}"
            )
        return run

    @classmethod
    def open(cls, folder: Path) -> "RunDirectory":
        """An existing run.

        Raises:
            InputError: if there is no such folder, or no run in it.
        """
        run = cls(folder)
        if run.exists():
            return run
        if not os.path.isdir(folder):  # noqa: PTH112 - never raises
            others = [str(p.parent) for p in folder.parent.glob("*/job.toml")]
            near = suggest(str(folder), others[-5:]) or "; harness train makes one"
            raise InputError(f"run {folder}: no such folder{near}")
        if is_ensemble(folder):
            raise InputError(
                f"run {folder}: is an ensemble, which compare and predict take; give a run"
            )
        raise InputError(f"run {folder}: is not a run's folder, it holds no job.toml")

    def exists(self) -> bool:
        """Whether the run has begun."""
        return is_file(self.folder / "job.toml")

    def finished(self) -> bool:
        """Whether the run has finished: the result is written last."""
        return is_file(self.folder / "result.json")

    def result(self) -> dict[str, Any]:
        """The scores of a finished run.

        Raises:
            DiskError: if the disk fails.
            RunError: if the file is broken.
        """
        result = self.certain_json("result.json")
        if not is_whole(result):
            path = self.path("result.json")
            raise RunError(f"{path}: is broken; remove it and run harness resume")
        return result

    def job(self) -> Job:
        """The job of the run, with all defaults filled in.

        Raises:
            InputError: if another version wrote the run, or the file is broken.
        """
        self.check_format()
        return load_job(self.folder / "job.toml")

    def check_owner(self) -> None:
        """Refuse to write into another user's run, or through another user's link.

        This user's own links are fine, such as `runs` on a scratch disk.

        Raises:
            InputError: for the first folder or link of another user.
        """
        inside = (self.folder.glob(name) for name in ("*", "tensorboard/*", "checkpoints/*"))
        for path in (self.folder, *itertools.chain.from_iterable(inside)):
            try:
                status = path.stat() if path == self.folder else path.lstat()
            except OSError:  # a new run, or a file that was just removed
                continue
            owner = status.st_uid
            if owner != os.getuid() and not stat.S_ISREG(status.st_mode):
                raise InputError(
                    f"run {self.folder}: {path} belongs to {owner_name(owner)}, and a run is "
                    f"written by its owner alone; train one of your own: "
                    f"harness train {self.folder / 'job.toml'}"
                )

    def check_format(self) -> None:
        """Refuse a run with a record of another format, or a broken one.

        Raises:
            InputError: for such a record, with the way to get the other version.
        """
        remedy = f": harness reproduce {self.folder} puts back the code that it was begun with"
        check_record(self, remedy=remedy)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file; one with a diff is private, because a diff may hold anything."""
        self.write(name, to_json(content), mode=0o600 if content.get("uncommitted_diff") else 0o666)

    def checkpoints(self) -> list[Path]:
        """The run's checkpoints, oldest first.

        Raises:
            DiskError: if the disk fails, where `Path.glob` might find nothing.
        """
        folder = self.path("checkpoints")
        try:
            return sorted(path for path in folder.iterdir() if path.match("step-*.npz"))
        except OSError as error:
            raise_unless_missing(error, folder)
            return []

    def leftovers(self) -> Iterator[Path]:
        """Half-written files of killed processes, including checkpoints."""
        return self.folder.rglob(".*.tmp*")


def ask_to_cancel(folder: Path) -> None:
    """Ask a run that shares its job with others to stop, or not to begin; `resume` undoes it.

    The job reads the file, because no signal reaches a single run on another node.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / CANCEL, to_json({"at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}))


def take_back_cancel(folder: Path) -> None:
    """Undo `ask_to_cancel`."""
    (folder / CANCEL).unlink(missing_ok=True)


def check_id(option: str, text: str) -> None:
    """Refuse an id of a run or a sweep that is not a file name.

    Raises:
        InputError: for such an id.
    """
    if not RUN_ID.fullmatch(text):
        raise InputError(
            f"{option} {text!r}: should be letters, digits, '.', '_', '-', at most 100"
        )


def reserve_id(runs: Path, wanted: Sequence[tuple[str, str]]) -> str:
    """The beginning of the names of new runs, or the name of a new sweep.

    Makes their folders, so that no other thread or process takes them.

    Args:
        runs: folder of the runs.
        wanted: for each run its job, and the end of its name.

    Raises:
        InputError: if the folder of the runs can't be written.
    """
    first = time.strftime("%Y%m%d-%H%M%S")
    for count in range(1, 1000):
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
                raise InputError(f"runs = {runs}: can't be written: {reason}") from None
        else:
            return name
    raise InputError(f"runs = {runs}: holds a thousand {first}; give a run_id or sweep_id")


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders of `reserve_id` that are still empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


def is_whole(result: dict[str, Any]) -> bool:
    """Whether a result is complete: with test scores or, without a test, validation scores."""
    score = number(result["accuracy"] if "accuracy" in result else result.get("val_accuracy"))
    classes = result.get("classes")
    is_list = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return score is not None and is_list and isinstance(result.get("dataset_checksum"), str)


def summary_of(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a result that `status` shows, and the size of the file, to notice changes."""
    shown = ("job", "architecture", "seed", "accuracy", "val_accuracy")
    found = {name: result[name] for name in shown if name in result}
    return {**found, "bytes": len(to_json(result).encode())}


def run_identity(job: Job, checksum: str) -> str:
    """What a checkpoint belongs to: a job and its data, wherever the data are."""
    return hashlib.sha256(f"{job.identity()}\n{checksum}".encode()).hexdigest()
