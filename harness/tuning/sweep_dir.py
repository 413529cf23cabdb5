"""A sweep's folder, `runs/<job>/<sweep-id>/`: its files and who writes them.

| file | what | writer |
| --- | --- | --- |
| `search.toml` | the search with every default filled in | who begins, or asks for more trials |
| `trials/`, `ends/`, `stops/` | see `harness.tuning.records` | its workers |
| `prepared/` | names before they are made; what killed processes left there | anybody |
| `trials/<n>/<k>/seed<N>/` | the run of attempt k at trial n | the worker whose attempt it is |
| `leaderboard.csv`, `result.json` | views of what is accepted | any command |
| `state.json` | progress, as of a run | any command, the latest |
| `commands/<name>/state.json` | the same, of one command | that command |
| `data.json` | what the trials are trained on | who begins |
| `provenance.json` | the version that began, what the last job asked of Slurm | any command |
| `workers/<name>.log` | what a worker or a proposer printed | they |
| `*.png` | plots of `harness sweep show` | that command |
| `winner/` | the best trial, trained again on all training data | `harness sweep retrain` |
"""

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.data.dataset import Dataset
from harness.data.resolve import open_data, reopen_data
from harness.errors import DiskError, InputError
from harness.files.atomic_file import write_refusal
from harness.files.leased_dir import LeasedDirectory, to_json
from harness.files.lenient_json import parse_json, read_toml
from harness.files.plain_file import raise_unless_missing
from harness.files.shared_disk import is_network
from harness.job import Job
from harness.own_code import mode_in
from harness.ownership import owner_name
from harness.search_space import (
    DECIDED,
    SEARCH_FILE,
    SearchSpec,
    is_of_search,
    is_sweep,
    load_search,
)
from harness.tracking.provenance import sources_checksum
from harness.tracking.record_format import RECORD, check_format, stamped
from harness.tracking.run_dir import RunDirectory, check_id
from harness.tuning.course import LOCAL, NETWORK, Terms, View, shown
from harness.tuning.disk import Disk
from harness.tuning.names import check_renames, make_once
from harness.tuning.records import ACCEPTED, ENDS, PREPARED, STOPS, TRIALS, Trial, trial_folder

RESULT = "result.json"
FOLDERS = (TRIALS, ENDS, STOPS, PREPARED, "workers", "commands")


class SweepDirectory(LeasedDirectory):
    """One sweep's folder."""

    kind = "sweep"

    def check_lease(self) -> None:
        """Allow every write: what is written here is a view, the same whoever writes it."""

    def terms(self) -> Terms:
        """The times of a search on its disk: on a local one, to look often costs nothing."""
        return NETWORK if is_network(self.folder) else LOCAL

    @classmethod
    def new(cls, runs: Path, search: SearchSpec, sweep_id: str | None) -> "SweepDirectory":
        """Name the folder of a sweep, which `begin` makes.

        With a `sweep_id` the folder may exist already. Then the sweep continues, if the search is
        the same; it may have more trials.

        Raises:
            InputError: if the id is not a file name, or the existing sweep is of another search.
        """
        if sweep_id is None:
            sweep = cls(runs / search.name / time.strftime("%Y%m%d-%H%M%S"))
            sweep._is_new = True
            return sweep
        check_id("--sweep-id", sweep_id)
        sweep = cls(runs / search.name / sweep_id)
        if sweep.path("job.toml").exists():
            raise InputError(f"{sweep.folder}: is a run, not a sweep; choose another --sweep-id")
        sweep.check_search(search)
        return sweep

    @classmethod
    def open(cls, folder: Path) -> "SweepDirectory":
        """An existing sweep.

        Raises:
            InputError: if the folder is not a sweep's.
        """
        if not is_sweep(folder):
            raise InputError(
                f"sweep {folder}: is not a sweep's folder, it holds no {SEARCH_FILE}; begin a "
                "sweep by: harness tune JOB"
            )
        return cls(folder)

    def begin(self, search: SearchSpec, dataset: Dataset) -> bool:
        """Begin the sweep, unless another command has; of several at once, one does.

        Returns:
            Whether this one has.

        Raises:
            InputError: if the folder is another user's, or holds something else.
            DiskError: if the disk refuses, or can't tell which command was the first.
        """
        record = {"starts": [], "sources_sha256": sources_checksum()}
        files = {
            SEARCH_FILE: search.to_toml().encode(),
            RECORD: to_json(stamped(record)).encode(),
            "data.json": to_json(_record_of(dataset)).encode(),
        }
        stem, number = self.folder, 1
        try:
            stem.parent.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(stem):
                check_renames(stem.parent)
            while not (is_made := make_once(self.folder, files, folders=FOLDERS)) and self._is_new:
                number += 1  # another search was begun in the same second
                self.folder = stem.with_name(f"{stem.name}-{number}")
        except OSError as error:
            raise DiskError(write_refusal(self.folder, error)) from None
        if is_made:
            file = self.path(SEARCH_FILE)
            file.chmod(file.stat().st_mode & mode_in(self.folder, search.job.code))
        self.check_owner()
        if not is_sweep(self.folder):
            raise InputError(
                f"sweep {self.folder}: holds no {SEARCH_FILE}, so it is no search that can go on; "
                "move it away, or choose another --sweep-id"
            )
        return is_made

    def check_owner(self) -> None:
        """Refuse another user's sweep.

        Raises:
            InputError: if it is.
        """
        owner = self.folder.stat().st_uid
        if owner != os.getuid():
            raise InputError(
                f"sweep {self.folder}: belongs to {owner_name(owner)}, and a search is written by "
                "its owner alone; begin one of your own by: harness tune JOB"
            )

    def check_search(self, search: SearchSpec) -> None:
        """Refuse to continue the sweep with another search.

        Raises:
            InputError: if the sweep was begun with another space, job or tuner, or another version
                of harness wrote it.
        """
        if not self.exists():
            return
        self.check_format()
        known = self.search()
        if not search.same_as(known):
            changed = "".join(_first_difference(known.content, search.content))
            raise InputError(
                f"sweep {self.folder}: was begun with another search{changed}; choose another "
                f"--sweep-id, or go on with it by: harness resume {self.folder}"
            )
        limit, before = search.table.trials, known.table.trials
        if 0 < limit < before or (before == 0 < limit):
            raise InputError(
                f"sweep {self.folder}: search.trials = {limit}: was {before or 'all'} before; "
                "give as many or more"
            )

    def check_format(self) -> None:
        """Refuse a sweep that another version wrote, or whose record is broken.

        Raises:
            InputError: if one did, or if it is.
            DiskError: if the record can't be read.
        """
        record = self.certain_json(RECORD)
        if not record and os.path.lexists(self.path(RECORD)):
            raise InputError(
                f"sweep {self.folder}: {RECORD} is broken, which says what version wrote the "
                "sweep; put it back from a copy"
            )
        check_format(f"sweep {self.folder}", record)

    def note_start(self, asked: Mapping[str, str] | None = None) -> None:
        """Record what a job asked of Slurm, for one that goes on.

        Args:
            asked: none outside of a job.
        """
        starts = [] if asked is None else [{"slurm_asked": dict(asked)}]
        self.write_json(RECORD, stamped({**self.certain_json(RECORD), "starts": starts}))

    def is_of_other_code(self) -> bool:
        """Whether the sweep was begun by other sources of this version."""
        known = self.certain_json(RECORD).get("sources_sha256")
        return known is not None and known != sources_checksum()

    def is_readable(self) -> bool:
        """Whether the search can be read; only the disk may hide it."""
        return bool(read_toml(self.path(SEARCH_FILE)))

    def check_readable(self) -> None:
        """Check that the search can be read, as the command could that started this process.

        Raises:
            DiskError: if it can't.
        """
        if not self.is_readable():
            path = self.path(SEARCH_FILE)
            raise DiskError(f"{path}: can't be read; make the disk readable again")

    def exists(self) -> bool:
        """Whether the sweep was begun."""
        return self.path(SEARCH_FILE).is_file()

    def finished(self) -> bool:
        """Whether every trial has ended; the result is written last."""
        is_there = self.path(RESULT).is_file()
        search = read_toml(self.path(SEARCH_FILE)) if is_there else {}
        return is_there and is_of_search(self.read_json(RESULT), search)

    def search(self) -> SearchSpec:
        """The search, read from its file.

        Raises:
            InputError: if another version wrote the sweep, or a file of it is broken.
        """
        self.check_format()
        return load_search(self.path(SEARCH_FILE))

    def trial_run(self, n: int, k: int, seed: int) -> RunDirectory:
        """The folder of a run of attempt k at trial n."""
        return RunDirectory(self.path(TRIALS, str(n), str(k), f"seed{seed}"))

    def accepted(self, n: int) -> Trial | None:
        """A trial with its result, None if it has none.

        Raises:
            OSError: if the disk fails.
        """
        content = self.disk.read(self.path(trial_folder(n), ACCEPTED, "trial.json"))
        return Trial.of(parse_json(content or b""))

    def trials(self) -> list[Trial]:
        """All trials that were begun, in their order.

        Raises:
            DiskError: if they can't be read.
        """
        view = View(time.monotonic, self.terms())
        try:
            Disk(self.folder).run(view.look())
        except OSError as error:
            raise_unless_missing(error, self.path(TRIALS))
        return shown(view)

    def dataset(self, job: Job, data: Path | None, *, full: bool = False) -> Dataset:
        """The sweep's data: what its record names, or for a new sweep what is found.

        Raises:
            InputError: if the data found are not the ones that the sweep was begun with.
            DiskError: if the record can't be read; without it other data could be found.
        """
        record = self.certain_json("data.json")
        if not record:
            return open_data(job, data, full=full)
        return reopen_data(record, job, data, whose=f"sweep {self.folder}")


def _record_of(dataset: Dataset) -> dict[str, Any]:
    """Which data the trials are trained on."""
    folder = str(dataset.folder.absolute()) if dataset.folder else None
    return {
        "checksum": dataset.checksum,
        "is_sample": dataset.is_sample,
        "folder": folder,
        "num_validation": dataset.num_validation,
    }


def _first_difference(
    known: dict[str, Any], requested: dict[str, Any], at: str = ""
) -> Iterator[str]:
    """` (train.epochs was 6 and is 8)`, at most once."""
    for key in {**known, **requested}:
        was, now = known.get(key), requested.get(key)
        is_open = at == "search." and (key == "trials" or (key in DECIDED and not (was and now)))
        if was == now or is_open:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _first_difference(was, now, f"{at}{key}.")
        else:
            yield f" ({at}{key} was {was} and is {now})"
        return
