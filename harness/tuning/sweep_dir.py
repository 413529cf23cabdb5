"""Manages a sweep's folder, `runs/<job>/<sweep-id>/`, with these files:

| file | content | writer |
| --- | --- | --- |
| `search.toml` | the value of every key of the search | commands that start or extend the search |
| `trials/`, `gone/`, `ends/`, `stop.json` | see `harness.tuning.protocol` | all processes |
| `trials/<n>/<k>/seed<N>/` | the run of attempt k at trial n | the worker of the attempt |
| `leaderboard.csv`, `result.json` | computed from the trials | any command |
| `state.json` | progress, as in a run's `state.json` | any command |
| `provenance.json` | code and data at the start, Slurm options of the last job | any command |
| `workers/<name>.log` | output of a worker or a proposer | the same process |
| `parallel_coordinates.png` | a plot of the trials | `harness sweep show` |
| `winner/` | the best trial, retrained on all training data | `harness sweep retrain` |
"""

import os
import shutil
import socket
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DiskError, InputError, TakenOver
from harness.job.own_code import close_folder
from harness.job.search import SEARCH_FILE, SearchSpec, is_sweep, load_search
from harness.slurm.environment import resume_command
from harness.system.files import owner_name, raise_unless_missing, write_refusal
from harness.system.leased_dir import LeasedDirectory, to_json
from harness.system.lenient_json import read_toml, table, text
from harness.tracking.provenance import installed_packages, sources_checksum
from harness.tracking.run_dir import (
    RECORD,
    RESULT,
    RunDirectory,
    check_id,
    check_record,
    reserve_id,
    stamped,
)
from harness.tuning.disk import Disk, execute, make_once
from harness.tuning.protocol import ENDS, GONE, STOP, TRIALS, Stop, Trial, View, change_stop, shown

if TYPE_CHECKING:  # harness.data imports NumPy, which `harness cancel` does not need
    from harness.data.dataset import Dataset

FOLDERS = (TRIALS, GONE, ENDS, "workers")


class VectorsChanged(InputError):  # noqa: N818 - a fact
    """The file of `model.embeddings` has changed since the sweep began."""


class SweepDirectory(LeasedDirectory):
    """Reads and writes the folder of one sweep."""

    kind = "sweep"

    def check_lease(self) -> None:
        """Check that the sweep's folder is still there.

        A sweep has no lease, because all its commands may write its files.

        Raises:
            TakenOver: if the folder was moved or removed.
            DiskError: if the disk fails.
        """
        try:
            self.path(SEARCH_FILE).stat()
        except OSError as error:
            raise_unless_missing(error, self.path(SEARCH_FILE))
            raise TakenOver(
                f"sweep {self.folder}: was moved or removed; this process stops"
            ) from None

    @classmethod
    def new(cls, runs: Path, search: SearchSpec, sweep_id: str | None) -> "SweepDirectory":
        """Choose the folder of a sweep, which `begin` creates.

        If the folder with this `sweep_id` exists, its search continues, perhaps with more trials.
        If `sweep_id` is None, this method creates an empty folder that no other command uses.

        Raises:
            InputError: if `sweep_id` can't be the name of a folder, if the folder belongs to a
                run or to another search, or if the folder of the runs can't be written.
        """
        if sweep_id is None:
            sweep_id = reserve_id(runs, [(search.name, "")])
        check_id("--sweep-id", sweep_id)
        sweep = cls(runs / search.name / sweep_id)
        if sweep.path("job.toml").exists():
            raise InputError(f"{sweep.folder} is a run, not a sweep; choose another --sweep-id")
        sweep.check_search(search)
        return sweep

    @classmethod
    def open(cls, folder: Path) -> "SweepDirectory":
        """Open an existing sweep.

        Raises:
            InputError: if the folder is not the folder of a sweep.
        """
        if not is_sweep(folder):
            raise InputError(
                f"{folder} is not a sweep's folder, because it contains no {SEARCH_FILE}; to begin "
                "a sweep, run: harness tune JOB"
            )
        return cls(folder)

    def begin(self, search: SearchSpec, dataset: "Dataset", vectors: str | None = None) -> None:
        """Begin the sweep, unless another command has begun it.

        Args:
            vectors: the checksum of the word vectors, if the search uses a file of word vectors.

        Raises:
            InputError: if the folder belongs to another user, or contains other files.
            DiskError: if the sweep's folder can't be written to, or if the disk can't be used,
                because a rename on it replaces a non-empty folder instead of failing.
        """
        record = {
            "sources_sha256": sources_checksum(),
            "packages": installed_packages(),
            "dataset": dataset.record(),
            **({"embeddings": vectors} if vectors else {}),
            "starts": [],
        }
        files = {
            SEARCH_FILE: search.to_toml().encode(),
            RECORD: to_json(stamped(record)).encode(),
        }
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            if not is_sweep(self.folder) and make_once(self.folder, files):
                if make_once(self.folder, files):
                    shutil.rmtree(self.folder, ignore_errors=True)
                    raise DiskError(
                        f"{self.folder}: on this disk a rename can replace a non-empty folder, so "
                        "the workers of a search would overwrite each other's files; choose a "
                        "--runs folder on another disk"
                    )
                close_folder(self.folder, search.job.code)
            if (owner := self.folder.stat().st_uid) != os.getuid():
                raise InputError(
                    f"sweep {self.folder} belongs to {owner_name(owner)}, and only its owner may "
                    "write to it; to begin another sweep, run: harness tune JOB"
                )
            if not is_sweep(self.folder):
                raise InputError(
                    f"{self.folder} contains no {SEARCH_FILE}, so no search can continue in it; "
                    "move the folder away, or choose another --sweep-id"
                )
            for name in FOLDERS:
                self.path(name).mkdir(exist_ok=True)
        except OSError as error:
            raise DiskError(write_refusal(self.folder, error)) from None

    def check_search(self, search: SearchSpec) -> None:
        """Check that the sweep, if it exists, belongs to this search.

        Raises:
            InputError: if the search space, job or tuner has changed since the sweep began, or if
                another version of harness wrote the sweep.
        """
        if not is_sweep(self.folder):
            return
        known = self.search()
        if change := next(known.changes(search), None):
            raise InputError(
                f"sweep {self.folder}: the search has changed since the sweep began ({change}); "
                "choose another --sweep-id, or continue the unchanged search with: "
                f"{resume_command(self.folder)}"
            )

    def check_vectors(self, path: Path, checksum: str) -> None:
        """Check that a file of word vectors has not changed since the sweep began.

        Args:
            path: the file.
            checksum: the file's checksum now.

        Raises:
            VectorsChanged: if the file has changed.
            DiskError: if the sweep's record can't be read because the disk fails.
        """
        began = text(self.certain_json(RECORD).get("embeddings")) or ""
        if began != checksum:
            raise VectorsChanged(
                f"sweep {self.folder}: model.embeddings {path} has changed since the sweep began "
                f"(checksum then {began[:12]}, now {checksum[:12]}); restore the file, or begin "
                "another sweep"
            )

    def finished(self) -> bool:
        """Whether `result.json` exists and was computed with the current `search.trials`."""
        if not self.path(RESULT).is_file():
            return False
        search = table(read_toml(self.path(SEARCH_FILE)), "search")
        return "trials" in search and search["trials"] == self.read_json(RESULT).get("trials")

    def search(self) -> SearchSpec:
        """Read the search from its file.

        Raises:
            InputError: if another version of harness wrote the sweep, or its files are broken.
            DiskError: if the disk fails.
        """
        check_record(self)
        return load_search(self.path(SEARCH_FILE))

    def trial_run(self, n: int, k: int, seed: int) -> RunDirectory:
        """Return the run that trains trial n with this seed in attempt k."""
        return RunDirectory(self.path(TRIALS, str(n), str(k), f"seed{seed}"))

    def trials(self) -> list[Trial]:
        """Read all proposed trials, sorted by number.

        Raises:
            DiskError: if the trials can't be read.
        """
        view = View(Disk(self.folder))
        try:
            execute(view.look())
        except OSError as error:
            raise_unless_missing(error, self.path(TRIALS))
        return shown(view)


def stop_now(**fields: Any) -> Stop:
    """Make a `Stop` record with the current user, machine and time, and with `fields`."""
    by, at = f"{owner_name(os.getuid())} on {socket.gethostname()}", datetime.now().astimezone()
    return Stop(by=by, at=at.isoformat(timespec="seconds"), **fields)


def stop_search_in(folder: Path) -> None:
    """Cancel a sweep's search, which `harness resume` can continue later.

    Raises:
        DiskError: if `stop.json` can't be written.
    """
    try:
        execute(change_stop(View(Disk(folder)), stop_now()))
    except OSError as error:
        raise DiskError(write_refusal(folder / STOP, error, "try again")) from None
