"""A sweep's folder, `runs/<job>/<sweep-id>/`: its files and who writes them.

| file | what | writer |
| --- | --- | --- |
| `search.toml` | the search with every default filled in | `harness tune` |
| `journal/`, `workers/<uuid>/` | what supervisor and workers write to each other | see there |
| `trials/<trial>/<attempt>/seed<N>/` | the run of an attempt at a trial | its worker |
| `leaderboard.csv` | every trial, the best first | supervisor |
| `state.json`, `result.json` | as of a run: progress; best trial, written last | supervisor |
| `cancel.json` | that the search shall end | `harness cancel`, from another machine |
| `data.json` | what the trials are trained on | `harness tune` |
| `provenance.json` | the version that wrote last, `visible_s` of the disk | `harness tune` |
| `workers/<name>.log`, `oracle.log` | what a worker printed, what the oracle printed | they |
| `*.png` | plots of `harness sweep show` | that command |
| `winner/` | the best trial, trained again on all training data | `harness sweep retrain` |
"""

import csv
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.dataset import Dataset
from harness.data.resolve import open_data, reopen_data
from harness.errors import DiskError, InputError
from harness.files.leased_dir import LeasedDirectory
from harness.files.lenient_json import read_toml, table, text
from harness.files.plain_file import raise_unless_missing
from harness.files.shared_disk import is_network
from harness.job import Job
from harness.report.text_tables import defused
from harness.search_space import (
    DECIDED,
    SEARCH_FILE,
    SearchSpec,
    is_of_search,
    is_sweep,
    load_search,
    rounded,
)
from harness.sweep_protocol.journal import Ledger, Proposal
from harness.sweep_protocol.mailbox import (
    LOCAL_VISIBLE_S,
    NETWORK_VISIBLE_S,
    RESULT,
    Clock,
    SharedFolder,
    Terms,
)
from harness.tracking.record_format import RECORD, check_format, stamped
from harness.tracking.run_dir import RunDirectory, check_id

LEADERBOARD = "leaderboard.csv"
VISIBLE = "visible_s"  # in the record: for how long a node may see an older state of a file


class SweepDirectory(LeasedDirectory):
    """One sweep's folder."""

    kind = "sweep"

    def check_lease(self) -> None:
        """Allow every write: the journal decides which supervisor is the newest."""

    def _write_leased(self, write: Callable[[], None]) -> None:
        try:
            write()
        except DiskError:
            write()  # another supervisor, which began just now, removed what was half-written

    def terms(self) -> Terms:
        """The times of the sweep's protocol, which its first process decided for all.

        Raises:
            DiskError: if the record can't be read.
        """
        visible_s = self.certain_json(RECORD).get(VISIBLE)
        return Terms.of(visible_s if isinstance(visible_s, float) else LOCAL_VISIBLE_S)

    def shared(self, clock: Clock | None = None, terms: Terms | None = None) -> SharedFolder:
        """The folder as supervisor and workers meet in it, who may have read the terms."""
        return SharedFolder(self.folder, self.disk, clock or Clock(), terms or self.terms())

    @classmethod
    def new(cls, runs: Path, search: SearchSpec, sweep_id: str | None) -> "SweepDirectory":
        """Name the folder of a sweep; it is made when the lease is taken.

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

    def write_format(self, asked: Mapping[str, str] | None = None) -> None:
        """Record that this version writes the sweep from here on, and once, what its disk is like.

        Args:
            asked: of Slurm, by this job: what a job that goes on asks for; none outside of a job.
        """
        starts = [] if asked is None else [{"slurm_asked": dict(asked)}]
        visible_s = NETWORK_VISIBLE_S if is_network(self.folder) else LOCAL_VISIBLE_S
        known = self.certain_json(RECORD).get(VISIBLE, visible_s)
        self.write_json(RECORD, stamped({"starts": starts, VISIBLE: known}))

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

    def trial_run(self, attempt: str, seed: int) -> RunDirectory:
        """The folder of an attempt's run."""
        return RunDirectory(self.path("trials", attempt, f"seed{seed}"))

    def write_data(self, dataset: Dataset) -> None:
        """Record which data the trials are trained on."""
        folder = str(dataset.folder.absolute()) if dataset.folder else None
        record = {
            "checksum": dataset.checksum,
            "is_sample": dataset.is_sample,
            "folder": folder,
            "num_validation": dataset.num_validation,
        }
        self.write_json("data.json", record)

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

    def leaderboard(self) -> list[dict[str, str]]:
        """The rows of `leaderboard.csv`, the best first; empty before the first trial.

        Raises:
            InputError: if the file is broken, or a score or a time is no number.
            DiskError: if it can't be read.
        """
        path = self.path(LEADERBOARD)
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            if rows and not {"trial", "status"} <= rows[0].keys():
                raise ValueError("it has no columns trial and status")
            search = table(read_toml(self.path(SEARCH_FILE)), "search")
            for row in rows:
                _check_row(row, text(search.get("objective")))
        except OSError as error:
            raise_unless_missing(error, path)
            return []
        except (ValueError, csv.Error) as error:
            raise InputError(
                f"{path}: is broken ({error}); put it back from a copy of the sweep"
            ) from None
        return rows


def _check_row(row: Mapping[str, str], objective: str | None) -> None:
    """Refuse a row that was cut, or whose score or time is no number."""
    if None in row.values():
        raise ValueError(f"the row of trial {row['trial']} has too few cells")
    for name in filter(None, (objective, "training_s")):
        cell, is_needed = row.get(name), name == objective and row["status"] == "finished"
        try:
            float(cell or ("" if is_needed else "0"))
        except ValueError:
            raise ValueError(
                f"trial {row['trial']} has {name} {cell!r}, should be a number"
            ) from None


def ranked_rows(sweep: SweepDirectory) -> list[dict[str, str]]:
    """The leaderboard's rows, without those of trials that never began."""
    return [row for row in sweep.leaderboard() if row.get("trial")]


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


# The leaderboard


@dataclass(frozen=True)
class Trial:
    """A trial as the leaderboard shows it."""

    trial: str
    status: str  # finished, failed, running or waiting
    score: float | None  # the objective, mean over its runs
    values: dict[str, Any]  # by the job's keys
    epochs: int | None  # trained
    kept_epoch: float | None  # of the best weights, mean over its runs
    training_s: float | None  # of all its runs
    parameters: int | None
    worker: str
    error: str
    attempt: str = ""  # the accepted one: its folder below `trials/`


def ranked(trials: Sequence[Trial], goal: str) -> list[Trial]:
    """The finished trials, best first, then the running, waiting and failed ones."""
    order = ("finished", "running", "waiting", "failed")
    sign = -1 if goal == "max" else 1
    return sorted(
        trials,
        key=lambda t: (order.index(t.status), sign * (t.score or 0), len(t.trial), t.trial),
    )


def gather(search: SearchSpec, ledger: Ledger, running: Mapping[int, str]) -> list[Trial]:
    """The trials of a ledger; `running` has the workers of those that are being trained."""
    return [
        trial_of(search, ledger, each, worker=running.get(each.n, "")) for each in ledger.proposals
    ]


def trial_of(search: SearchSpec, ledger: Ledger, proposal: Proposal, *, worker: str = "") -> Trial:
    """A trial as the leaderboard shows it."""
    attempt, report = ledger.accepted.get(proposal.n, ("", None))
    figures = report.figures if report else {}
    epochs, parameters = figures.get("epochs"), figures.get("parameters")
    status = "running" if worker else "waiting"
    if report:
        status = "failed" if report.error else "finished"
    return Trial(
        trial=str(proposal.n),
        status=status,
        score=report.scores.get(search.table.objective) if report else None,
        values={key: rounded(value) for key, value in proposal.values.items()},
        epochs=None if epochs is None else int(epochs),
        kept_epoch=figures.get("kept_epoch"),
        training_s=figures.get("training_s"),
        parameters=None if parameters is None else int(parameters),
        worker="" if report else worker,
        error=" ".join(report.error.split()) if report else "",
        attempt=attempt,
    )


def leaderboard_csv(trials: Sequence[Trial], search: SearchSpec) -> bytes:
    """The ranked trials as CSV; a key that a trial does not have is empty."""
    keys = [parameter.key for parameter in search.space]
    fields = ("epochs", "kept_epoch", "training_s", "parameters", "worker", "error", "attempt")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rank", "trial", "status", search.table.objective, *keys, *fields])
    for rank, trial in enumerate(ranked(trials, search.goal), 1):
        score = None if trial.score is None else repr(trial.score)
        values = [trial.values.get(key) for key in keys]
        rest = [getattr(trial, field) for field in fields]
        shown_rank = rank if trial.status == "finished" else None
        cells = [shown_rank, trial.trial, trial.status, score, *values, *rest]
        writer.writerow(map(defused, cells))
    return text.getvalue().encode()
