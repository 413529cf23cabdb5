"""A run's folder: its name, its files, and whether this version may go on with it."""

import contextlib
import hashlib
import itertools
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import InputError, RunError, suggest
from harness.files.atomic_file import atomic_write, why_refused
from harness.files.leased_dir import LeasedDirectory, to_json
from harness.files.lenient_json import number
from harness.files.plain_file import is_file, raise_unless_missing
from harness.job import Job
from harness.job_file import load_job
from harness.ownership import owner_name
from harness.tracking.record_format import check_record
from harness.tracking.run_folders import is_ensemble

CANCEL = "cancel.json"
PREDICTIONS, VALIDATION_PREDICTIONS = "predictions.npz", "validation_predictions.npz"
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class RunDirectory(LeasedDirectory):
    """One run's folder, `runs/<job>/<run-id>/`."""

    kind = "run"

    @classmethod
    def new(cls, runs: Path, job: Job, run_id: str | None) -> "RunDirectory":
        """Name the folder of a run; it is made when the lease is taken, without a `run_id` at once.

        With a `run_id` the folder may exist already: then the run goes on if it is of the same
        job, wherever its data and vectors are now; their checksums are compared later.

        Raises:
            InputError: if the id is not a file name, the run there is of another job, or the
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
            InputError: if there is no such folder, or it holds no run.
        """
        run = cls(folder)
        if not os.path.isdir(folder):  # noqa: PTH112 - never raises
            others = [str(p.parent) for p in folder.parent.glob("*/job.toml")]
            near = suggest(str(folder), others[-5:]) or "; harness train makes one"
            raise InputError(f"run {folder}: no such folder{near}")
        if is_ensemble(folder):
            raise InputError(
                f"run {folder}: is an ensemble, which compare and predict take; give a run"
            )
        if not run.exists():
            raise InputError(f"run {folder}: is not a run's folder, it holds no job.toml")
        return run

    def exists(self) -> bool:
        """Whether the run was begun."""
        return is_file(self.folder / "job.toml")

    def finished(self) -> bool:
        """Whether the run ended well: the result is written last."""
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
        """The run's job, every default filled in.

        Raises:
            InputError: if another version wrote the run, or its file is broken.
        """
        self.check_format()
        return load_job(self.folder / "job.toml")

    def check_owner(self) -> None:
        """Refuse to write into another user's run, or through another's link in one's own.

        One's own links are fine, such as `runs` on a scratch disk.

        Raises:
            InputError: for the first folder or link that is another's.
        """
        inside = (self.folder.glob(name) for name in ("*", "tensorboard/*", "checkpoints/*"))
        for path in (self.folder, *itertools.chain.from_iterable(inside)):
            try:
                status = path.stat() if path == self.folder else path.lstat()
            except OSError:  # a new run; what is removed meanwhile
                continue
            owner = status.st_uid
            if owner != os.getuid() and not stat.S_ISREG(status.st_mode):
                raise InputError(
                    f"run {self.folder}: {path} belongs to {owner_name(owner)}, and a run is "
                    f"written by its owner alone; train one of your own: "
                    f"harness train {self.folder / 'job.toml'}"
                )

    def check_format(self) -> None:
        """Refuse a run that another version wrote, or whose record is broken.

        Raises:
            InputError: if one did, with how to get that version, or if it is.
        """
        remedy = f": harness reproduce {self.folder} puts back the code that it was begun with"
        check_record(self, remedy=remedy)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file; one with a diff is its user's alone, since that may hold anything."""
        self.write(name, to_json(content), mode=0o600 if content.get("uncommitted_diff") else 0o666)

    def why_gone(self) -> str:
        """What has become of a lease that is not there: who finishes a run gives it up."""
        if not self.finished():
            return super().why_gone()
        state = self.read_json("state.json")
        return f"process {state.get('process')} on {state.get('host')} took it over and finished it"

    def checkpoints(self) -> list[Path]:
        """The run's checkpoints, oldest first.

        Raises:
            DiskError: if the disk fails; `Path.glob` may then find none.
        """
        folder = self.path("checkpoints")
        try:
            return sorted(path for path in folder.iterdir() if path.match("step-*.npz"))
        except OSError as error:
            raise_unless_missing(error, folder)
            return []

    def leftovers(self) -> Iterator[Path]:
        """The files that a process left half-written when it was killed, checkpoints included."""
        return self.folder.rglob(".*.tmp*")


def ask_to_cancel(folder: Path) -> None:
    """Ask a run that shares its job with others to stop, or not to begin; `resume` takes it back.

    The job reads the file: no signal reaches one run of a job on another node.
    """
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / CANCEL, to_json({"at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}))


def take_back_cancel(folder: Path) -> None:
    """Let a run begin or go on that was asked to stop."""
    (folder / CANCEL).unlink(missing_ok=True)


def check_id(option: str, text: str) -> None:
    """Refuse an id of a run or sweep that is not a file name.

    Raises:
        InputError: if it is not.
    """
    if not RUN_ID.fullmatch(text):
        raise InputError(
            f"{option} {text!r}: should be letters, digits, '.', '_', '-', at most 100"
        )


def reserve_id(runs: Path, wanted: Sequence[tuple[str, str]]) -> str:
    """What the names of new runs or of a sweep begin with.

    Their folders are made, so that no other thread or process begins one there.

    Args:
        runs: folder of the runs.
        wanted: the job of each, and what follows in its name.

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
    """Remove folders that were reserved, unless something is in them."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


def is_whole(result: dict[str, Any]) -> bool:
    """Whether a result is complete: it has test scores, or validation scores if it has no test."""
    score = number(result["accuracy"] if "accuracy" in result else result.get("val_accuracy"))
    classes = result.get("classes")
    is_list = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return score is not None and is_list and isinstance(result.get("dataset_checksum"), str)


def summary_of(result: dict[str, Any]) -> dict[str, Any]:
    """What a look at many runs needs of a result, and the size by which it knows the file."""
    shown = ("job", "architecture", "seed", "accuracy", "val_accuracy")
    found = {name: result[name] for name in shown if name in result}
    return {**found, "bytes": len(to_json(result).encode())}


def run_identity(job: Job, checksum: str) -> str:
    """What a checkpoint belongs to: this job on these data, wherever the data are."""
    return hashlib.sha256(f"{job.identity()}\n{checksum}".encode()).hexdigest()
