"""A sweep's folder, `runs/<job>/<sweep-id>/`: what stands where, and who writes it.

| file | what | writer |
| --- | --- | --- |
| `search.toml` | the search with every default filled in | supervisor |
| `state.json`, `result.json` | as of a run: how far it is; its winner, written last | supervisor |
| `leaderboard.csv` | every trial, the best first | chief |
| `oracle/` | what KerasTuner knows, the chief's address | chief |
| `data.json` | what the trials are trained on | supervisor |
| `provenance.json` | which version of harness went on with it last | supervisor |
| `secret` | by which the workers and the chief know each other, mode 0600 | supervisor |
| `trials/<trial>-seed<N>/` | the run of a trial | its worker |
| `errors/<trial>.txt` | why a trial failed | its worker |
| `workers/<worker>.log` | what a worker printed | its worker |
| `*.png` | the pictures of `harness sweep show` | that command |
| `winner/` | the best trial, trained again on all training data | `harness sweep retrain` |
"""

import csv
import io
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.dataset import Dataset
from harness.data.resolve import open_data, reopen_data
from harness.errors import InputError
from harness.files.atomic_file import atomic_write
from harness.files.leased_dir import LeasedDirectory
from harness.job import Job
from harness.search_space import SEARCH_FILE, SearchSpec, is_sweep, load_search, rounded
from harness.tracking.record_format import RECORD, check_format, stamped
from harness.tracking.run_dir import RunDirectory, check_id

SWEEP_FORMAT = 2  # of the folder as a whole; 1 is that of harness 0.1.0
LEADERBOARD, SECRET = "leaderboard.csv", "secret"
ADDRESS, PROGRESS = "address.json", "progress.json"  # in the oracle's folder
RESTART_CODE = 76  # the exit code of a worker that asks to be started again


class SweepDirectory(LeasedDirectory):
    """One sweep's folder."""

    kind = "sweep"

    @classmethod
    def new(cls, runs: Path, search: SearchSpec, sweep_id: str | None) -> "SweepDirectory":
        """Name the folder of a sweep; it is made when the lease is taken.

        With a `sweep_id` the folder may be there already: then the sweep goes on, provided that
        it is the same search, be it with more trials.

        Raises:
            InputError: if the id is no file name, or the sweep there is another one.
        """
        if sweep_id is None:
            sweep = cls(runs / search.name / time.strftime("%Y%m%d-%H%M%S"))
            sweep._is_new = True
            return sweep
        check_id("--sweep-id", sweep_id)
        sweep = cls(runs / search.name / sweep_id)
        if sweep.path("job.toml").exists():
            raise InputError(f"{sweep.folder}: is a run, no sweep; choose another --sweep-id")
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
                f"sweep {folder}: is not a sweep's folder, it holds no {SEARCH_FILE}; harness tune "
                "makes one"
            )
        return cls(folder)

    def check_search(self, search: SearchSpec) -> None:
        """Refuse to go on with the sweep by another search.

        Raises:
            InputError: if the sweep was begun with another space, job or tuner, or a later version
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
                f"sweep {self.folder}: search.trials = {limit}: has been {before or 'all'}; a "
                "sweep goes on with as many or more"
            )

    def check_format(self) -> None:
        """Refuse to go on with a sweep that a later version wrote.

        Raises:
            InputError: if one did.
        """
        check_format(f"sweep {self.folder}", self.read_json(RECORD), SWEEP_FORMAT)

    def write_format(self) -> None:
        """Note that this version writes the sweep from here on."""
        self.write_json(RECORD, stamped({}, SWEEP_FORMAT))

    def exists(self) -> bool:
        """Whether the sweep was begun."""
        return self.path(SEARCH_FILE).is_file()

    def finished(self) -> bool:
        """Whether every trial has ended; the result is written last."""
        return self.path("result.json").is_file()

    def search(self) -> SearchSpec:
        """What is searched for."""
        return load_search(self.path(SEARCH_FILE))

    def trial_run(self, trial: str, seed: int) -> RunDirectory:
        """The folder of a trial's run."""
        return RunDirectory(self.path("trials", f"{trial}-seed{seed}"))

    def trial_error(self, trial: str) -> str:
        """Why a trial failed, as its worker wrote it down; empty if it could not."""
        try:
            return self.path("errors", f"{trial}.txt").read_text(errors="replace")
        except OSError:
            return ""

    def write_data(self, dataset: Dataset) -> None:
        """Note what the trials are trained on."""
        folder = str(dataset.folder.absolute()) if dataset.folder else None
        record = {"checksum": dataset.checksum, "is_sample": dataset.is_sample, "folder": folder}
        self.write_json("data.json", record)

    def dataset(self, job: Job, data: Path | None, *, full: bool = False) -> Dataset:
        """The sweep's data: what its record names, or for a new one what is found.

        Raises:
            InputError: if the data found are not the ones that the sweep was begun with.
        """
        record = self.read_json("data.json")
        if not record:
            return open_data(job, data, full=full)
        return reopen_data(record, job, data, f"sweep {self.folder}")

    def make_secret(self) -> None:
        """Write the secret of chief and workers, once."""
        if not self.path(SECRET).exists():
            atomic_write(self.path(SECRET), secrets.token_hex(32), mode=0o600)

    def secret(self) -> bytes:
        """What chief and workers know each other by.

        Raises:
            InputError: if it can't be read.
        """
        try:
            return self.path(SECRET).read_bytes()
        except OSError as error:
            raise InputError(
                f"{self.path(SECRET)}: can't be read ({error.strerror}); only the sweep's owner "
                "may join it"
            ) from None

    def progress(self) -> dict[str, Any]:
        """How far the search is, as the chief says: see `harness.tuning.oracle_server`."""
        return LeasedDirectory(self.path("oracle")).read_json(PROGRESS)

    def address(self) -> dict[str, Any]:
        """Where the chief listens: host, port, and the token of this chief's life."""
        return LeasedDirectory(self.path("oracle")).read_json(ADDRESS)

    def leaderboard(self) -> list[dict[str, str]]:
        """The rows of `leaderboard.csv`, the best first; empty before the first trial."""
        try:
            with self.path(LEADERBOARD).open(newline="") as file:
                return list(csv.DictReader(file))
        except OSError:
            return []


def ranked_rows(sweep: SweepDirectory) -> list[dict[str, str]]:
    """The leaderboard's rows, without those of trials that were never begun."""
    return [row for row in sweep.leaderboard() if row.get("trial")]


def _first_difference(known: dict[str, Any], asked: dict[str, Any], at: str = "") -> Iterator[str]:
    """` (train.epochs is 6, and 8 is asked)`, once."""
    for key in {**known, **asked}:
        was, now = known.get(key), asked.get(key)
        if f"{at}{key}" == "search.trials" or was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _first_difference(was, now, f"{at}{key}.")
        else:
            yield f" ({at}{key} is {was}, and {now} is asked)"
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
    kept_epoch: float | None  # of which the weights are kept, mean over its runs
    training_s: float | None  # of all its runs
    parameters: int | None
    worker: str
    error: str


def ranked(trials: Sequence[Trial], goal: str) -> list[Trial]:
    """The best first, then those that run, wait, and have failed."""
    order = ("finished", "running", "waiting", "failed")
    sign = -1 if goal == "max" else 1
    return sorted(
        trials,
        key=lambda t: (order.index(t.status), sign * (t.score or 0), len(t.trial), t.trial),
    )


def gather(sweep: SweepDirectory, search: SearchSpec, summary: dict[str, Any]) -> list[Trial]:
    """The trials of an oracle's summary, with what their runs say."""
    return [_trial(sweep, search, each) for each in summary["trials"]]


def _trial(sweep: SweepDirectory, search: SearchSpec, told: dict[str, Any]) -> Trial:
    results = []
    if told["status"] == "finished":
        for seed in search.seeds():
            if result := sweep.trial_run(told["trial"], seed).read_json("result.json"):
                results.append(result)
    numbers = [r.get("training_s") for r in results]
    return Trial(
        trial=told["trial"],
        status=told["status"],
        score=told["score"],
        values={key: rounded(value) for key, value in told["values"].items()},
        epochs=results[0].get("num_epochs") if results else None,
        kept_epoch=sum(r["kept_epoch"] for r in results) / len(results) if results else None,
        training_s=round(sum(n for n in numbers if n), 3) if results else None,
        parameters=results[0].get("parameters") if results else None,
        worker=told["worker"] or "",
        error=" ".join((told["error"] or "").split()),
    )


def leaderboard_csv(trials: Sequence[Trial], search: SearchSpec) -> bytes:
    """The ranked trials as CSV; a key that had no part in a trial is empty there."""
    keys = [dimension.key for dimension in search.space]
    objective = search.table.objective
    fields = ("epochs", "kept_epoch", "training_s", "parameters", "worker", "error")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rank", "trial", "status", objective, *keys, *fields])
    for place, trial in enumerate(ranked(trials, search.goal), 1):
        rank = place if trial.status == "finished" else None
        score = None if trial.score is None else repr(trial.score)
        values = [trial.values.get(key) for key in keys]
        rest = [getattr(trial, field) for field in fields]
        writer.writerow([rank, trial.trial, trial.status, score, *values, *rest])
    return text.getvalue().encode()
