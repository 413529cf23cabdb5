"""Runs to a table: test accuracy by job over seeds, with an interval, beside the book's figure."""

import json
import statistics
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.errors import InputError

# Test accuracies in per cent of the notebook's closing table, after Baig et al. (2020), The Deep
# Learning Workshop, exercises 6.01 to 6.05.
BOOK = {"rnn": 84.15, "lstm": 87.05, "gru": 87.06, "bilstm": 87.60, "stacked_lstm": 87.53}


@dataclass(frozen=True)
class Row:
    """The runs of one job on the same data."""

    job: str
    architecture: str
    data: str
    recurrent_parameters: int
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]  # of each seed, per cent
    training_s: float  # mean over the runs

    @property
    def mean(self) -> float:
        """Mean test accuracy, per cent."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds, n - 1; none for one run."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean, by Student's t over the seeds; none for one run."""
        if self.deviation is None:
            return None
        from scipy.stats import t

        num = len(self.accuracies)
        half = float(t.ppf(0.975, num - 1)) * self.deviation / num**0.5
        return self.mean - half, self.mean + half


# Settings of a job that change nothing in its result.
WITHOUT_RESULT = ("train.seed", "train.checkpoint_every_s", "train.log_every_steps",
                  "train.profile_steps",
                  "data.source")  # the checksum says which data, wherever they are  # fmt: skip


def find_runs(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[Path], int]:
    """What runs there are below the given folders.

    Returns:
        The results, each with its job's `settings`; the unfinished runs; and how many leave the
        test set unread, as the trials of a search do, which have nothing to be compared by.

    Raises:
        InputError: for a folder that is not there, or where no run is found at all.
    """
    results, unfinished, untested, seen = [], [], 0, set()
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path}: is no folder; give runs, or a folder of runs")
        for job_file in sorted(path.rglob("job.toml")):
            run = job_file.parent.resolve()
            if run in seen:
                continue
            seen.add(run)
            try:
                settings = _settings(tomllib.loads(job_file.read_text()))
                if settings.get("data.test") is False:
                    untested += 1
                    continue
                result = json.loads((run / "result.json").read_text())
                result["settings"] = settings
                _ = result["accuracy"], result["dataset_checksum"]
                results.append(result)
            except (OSError, ValueError, KeyError, TypeError):
                unfinished.append(run)
    if not seen:
        raise InputError(f"{', '.join(map(str, paths))}: holds no run; harness train makes one")
    return results, unfinished, untested


def _settings(job: dict[str, Any]) -> dict[str, Any]:
    tables = {table: keys for table, keys in job.items() if isinstance(keys, dict)}
    flat = {f"{table}.{key}": value for table in tables for key, value in tables[table].items()}
    return {name: value for name, value in flat.items() if name not in WITHOUT_RESULT}


def make_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    """Group results: one row for each job, its settings and its data; unlike ones never mix.

    A seed counts once, however many runs of it there are: they are the same to the byte. A row
    whose settings are not those of the first row of its job says in its name how they differ.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for result in results:
        settings = json.dumps(result["settings"], sort_keys=True)
        groups.setdefault((result["job"], result["dataset_checksum"], settings), []).append(result)
    firsts: dict[str, dict[str, Any]] = {}
    rows = []
    for (job, _, _), group in groups.items():
        first = group[0]
        usual = firsts.setdefault(job, first["settings"])
        differing = [f"{k}={v}" for k, v in first["settings"].items() if usual.get(k) != v]
        by_seed = {result["seed"]: result for result in group}
        rows.append(
            Row(
                job=" ".join([job, *differing]),
                architecture=first["architecture"],
                data=first["data"],
                recurrent_parameters=first["recurrent_parameters"],
                seeds=tuple(sorted(by_seed)),
                accuracies=tuple(100 * by_seed[seed]["accuracy"] for seed in sorted(by_seed)),
                training_s=statistics.fmean(result["training_s"] for result in by_seed.values()),
            )
        )
    order = list(BOOK)
    return sorted(rows, key=lambda row: (row.data, "notebook" in row.job, *_place(row, order)))


def _place(row: Row, order: list[str]) -> tuple[int, str]:
    known = row.architecture in order
    return (order.index(row.architecture) if known else len(order), row.job)


HEADINGS = (
    "job", "recurrent", "seeds", "test %", "s.d.", "95 % interval", "book %", "train s"
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table as text."""
    interval = row.interval
    book = BOOK.get(row.architecture)
    return (
        row.job,
        f"{row.recurrent_parameters:,}",
        str(len(row.seeds)),
        f"{row.mean:.2f}",
        "" if row.deviation is None else f"{row.deviation:.2f}",
        "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}",
        "" if book is None else f"{book:.2f}",
        f"{row.training_s:.0f}",
    )


def to_markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown; accuracies in per cent, time in seconds."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_tables(rows: Sequence[Row]) -> None:
    """Print the rows on the terminal, a table for each dataset."""
    for data in dict.fromkeys(row.data for row in rows):
        # Without a frame the whole table stands in 80 columns.
        table = Table(*HEADINGS, title=f"tested on {data}", box=None, padding=(0, 1, 0, 0))
        for row in rows:
            if row.data == data:
                table.add_row(*cells(row))
        Console().print(table)
