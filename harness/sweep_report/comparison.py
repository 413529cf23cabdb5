"""`harness sweep show A B`: sweeps next to each other, and what differs between them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from harness.config import flat
from harness.errors import InputError
from harness.monitoring.status import format_duration
from harness.own_code import source_digest
from harness.report.text_tables import shown_table
from harness.search_space import SearchSpec
from harness.sweep_report.best_trial import best_job
from harness.system.console import rich_console
from harness.tuning.leaderboard import ranked_trials
from harness.tuning.records import Trial
from harness.tuning.sweep_dir import SweepDirectory


def compare(sweeps: Sequence[SweepDirectory]) -> None:
    """Print a column for each sweep: what it found, and where searches and best trials differ.

    Raises:
        InputError: if a sweep is named twice, or its `search.toml` is none.
    """
    names = _names(sweeps)
    loaded = [sweep.search() for sweep in sweeps]
    ranked = [ranked_trials(sweep, search) for sweep, search in zip(sweeps, loaded, strict=True)]
    found = [_found(*each) for each in zip(sweeps, loaded, ranked, strict=True)]
    best = [_best_job(*each) for each in zip(loaded, ranked, strict=True)]
    searches = [
        {**_flat(search.content), **_data(sweep)}
        for sweep, search in zip(sweeps, loaded, strict=True)
    ]
    console = rich_console()
    for title, columns, rows in (
        ("found", found, list(found[0])),
        ("the best trials differ in", best, [*_different(best)]),
        ("the searches differ in", searches, [*_different(searches)]),
    ):
        headings = (title, *names)
        lines = [
            dict(zip(headings, (row, *(str(each.get(row, "")) for each in columns)), strict=True))
            for row in rows
        ]
        if not lines:
            console.print(Text(f"{title}: nothing"))
        else:
            table = shown_table(headings, lines, console)
            console.print(table, soft_wrap=not console.is_terminal)
        console.print()
    if len({each.get("data.checksum") for each in searches}) > 1:
        console.print(Text("their data differ, so their scores can't be compared", "yellow"))


def _names(sweeps: Sequence[SweepDirectory]) -> list[str]:
    """`<job>/<sweep-id>`, or the whole paths where two would have one name."""
    paths = [sweep.folder.resolve() for sweep in sweeps]
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise InputError(f"sweep {twice[0]}: is named twice; name different sweeps to compare")
    short = [f"{path.parent.name}/{path.name}" for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _found(sweep: SweepDirectory, search: SearchSpec, trials: Sequence[Trial]) -> dict[str, str]:
    """What a sweep found so far, and what it cost."""
    counts = Counter(trial.status for trial in trials)
    best = trials[0] if counts["finished"] else None
    training_s = sum(trial.training_s or 0.0 for trial in trials)
    return {
        "tuner": search.table.tuner,
        "objective": search.table.objective,
        "best": f"{best.scores[search.table.objective]:.4f}" if best else "",
        "trial": str(best.n) if best else "",
        "finished": str(counts["finished"]),
        "failed": str(counts["failed"]),
        "to do": str(counts["running"] + counts["waiting"]) if not sweep.finished() else "0",
        "training": format_duration(training_s),
    }


def _best_job(search: SearchSpec, trials: Sequence[Trial]) -> dict[str, Any]:
    if not trials or trials[0].status != "finished":
        return {}
    tables = best_job(search, trials[0]).model_dump(include={"model", "data", "train"})
    return _flat(tables)


def _data(sweep: SweepDirectory) -> dict[str, Any]:
    return {"data.checksum": str(sweep.read_json("data.json").get("checksum"))[:12]}


def _flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file by their dotted keys; the name of the job is no value."""
    values = {k: v for name in tables if name != "name" for k, v in flat(name, tables[name])}
    # A whole source is no cell.
    return {k: source_digest(v) if k.startswith("code.") else v for k, v in values.items()}


def _different(columns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The keys whose values are not the same in all columns, in the order of the first columns."""
    for key in dict.fromkeys(key for column in columns for key in column):
        if any(column.get(key) != columns[0].get(key) for column in columns):
            yield key
