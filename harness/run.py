"""The run folder: the one place that writes into it, and what stands where.

Whatever is written is written beside and renamed, so that a reader finds a file whole or not at
all. A run has one writer: the process that took its lease last. An older one that is still alive
finds the lease gone and stops.
"""

import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import InputError, RunError
from harness.job import Job, load_job, nearest

HEARTBEAT_S = 5.0  # between two writings of state.json while a run trains

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class Run:
    """One run's folder, `runs/<job>/<run-id>/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._token: str | None = None
        self._is_new = False  # the folder must be nobody's

    @classmethod
    def new(cls, runs: Path, job: Job, run_id: str | None) -> "Run":
        """Name the folder of a run; it is made when the lease is taken.

        With a `run_id` the folder may be there already: then the run goes on, provided that it
        is the same job.

        Raises:
            InputError: if the id is no file name, or the run there is of another job.
        """
        if run_id is None:
            run = cls(runs / job.name / f"{time.strftime('%Y%m%d-%H%M%S')}-seed{job.train.seed}")
            run._is_new = True
            return run
        if not RUN_ID.fullmatch(run_id):
            raise InputError(
                f"--run-id {run_id!r}: should be letters, digits, '.', '_', '-', at most 100"
            )
        run = cls(runs / job.name / run_id)
        if run.exists() and run.job() != job:
            raise InputError(
                f"run {run.folder}: holds another job; choose another --run-id, or go on with it "
                f"by: harness resume {run.folder}"
            )
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run.

        Raises:
            InputError: if there is no such folder, or it is not a run's.
        """
        run = cls(folder)
        if not _is_dir(folder):
            others = [str(p.parent) for p in folder.parent.glob("*/job.toml")]
            near = nearest(str(folder), others[-5:]) or "; harness train makes one"
            raise InputError(f"run {folder}: no such folder{near}")
        if not run.exists():
            raise InputError(f"run {folder}: is not a run's folder, it holds no job.toml")
        return run

    def exists(self) -> bool:
        """Whether the run was begun."""
        return (self.folder / "job.toml").is_file()

    def finished(self) -> bool:
        """Whether the run ended well: the result is written last."""
        return (self.folder / "result.json").is_file()

    def result(self) -> dict[str, Any]:
        """The scores of a finished run.

        Raises:
            RunError: if the file is broken.
        """
        result = self.read_json("result.json")
        if "accuracy" not in result:
            raise RunError(
                f"{self.path('result.json')}: is broken; remove it and run harness resume"
            )
        return result

    def job(self) -> Job:
        """The run's job, every default filled in."""
        return load_job(self.folder / "job.toml")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the run, empty where it is missing or broken."""
        try:
            content = json.loads((self.folder / name).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def path(self, *parts: str) -> Path:
        """A path inside the folder."""
        return self.folder.joinpath(*parts)

    # Writing

    def take_lease(self) -> None:
        """Become the run's only writer, making the folder first where it is missing.

        Raises:
            RunError: if the folder can't be written.
        """
        self._token = uuid.uuid4().hex
        stem, number = self.folder, 1
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=not self._is_new)
                break
            except FileExistsError:  # another run of this second
                number += 1
                self.folder = stem.with_name(f"{stem.name}-{number}")
            except OSError as error:
                raise RunError(_refusal(self.folder, error)) from None
        self._is_new = False
        holder = {"token": self._token, "host": socket.gethostname(), "process": os.getpid()}
        self._replace("lease.json", lambda file: file.write(json.dumps(holder).encode()))
        for leftover in self.folder.rglob(".*.tmp*"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)

    def check_lease(self) -> None:
        """Raise unless this process is still the run's writer.

        Raises:
            RunError: if a newer process took the run over.
        """
        holder = self.read_json("lease.json")
        if holder.get("token") != self._token:
            raise RunError(
                f"run {self.folder}: process {holder.get('process')} on {holder.get('host')} took "
                "it over; this one stops"
            )

    def write(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        """Write a file of the run, whole or not at all: `fill` gets it open for bytes.

        Raises:
            RunError: if the disk refuses, or the lease is gone.
        """
        self.check_lease()
        self._replace(name, fill)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run, whole or not at all."""
        self.write(name, lambda file: file.write(text.encode()))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the run, whole or not at all."""
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def write_by_path(self, name: str, save: Callable[[Path], object]) -> None:
        """Like `write`, for a library that takes a path and looks at its ending."""
        self.check_lease()
        target = self.path(name)
        beside = target.with_name(f".{os.getpid()}.tmp{target.suffix}")
        try:
            save(beside)
            self._replace(name, lambda file: file.write(beside.read_bytes()))
        except OSError as error:
            raise RunError(_refusal(target, error)) from None
        finally:
            beside.unlink(missing_ok=True)

    def _replace(self, name: str, fill: Callable[[BinaryIO], object]) -> None:
        target = self.path(name)
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            target.parent.mkdir(exist_ok=True)
            with beside.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise RunError(_refusal(target, error)) from None


def submissions(runs: Path) -> Path:
    """The folder, among the runs, of what was submitted and of the code that it runs."""
    return runs / ".submissions"


def run_identity(job: Job, checksum: str) -> str:
    """What a checkpoint belongs to: this very job on these very data."""
    return hashlib.sha256(f"{job.to_toml()}\n{checksum}".encode()).hexdigest()


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name too long, a folder that may not be entered
        raise InputError(f"run {path}: can't be opened: {error.strerror}") from None


def _refusal(path: Path, error: OSError) -> str:
    return f"{path}: can't be written: {error.strerror or error}; free or choose another --runs"
