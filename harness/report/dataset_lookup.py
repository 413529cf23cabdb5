"""The very dataset that runs were tested on, found again: for the yardstick and the reviews."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness.data.dataset import Dataset
from harness.data.imdb_sources import open_dataset, open_sample
from harness.data.text_dataset import open_source
from harness.errors import InputError, RunError
from harness.files.lenient_json import table, text
from harness.report.collect import DatasetGroup
from harness.tracking.run_dir import RunDirectory


def tested_data(group: DatasetGroup, data: Path | None) -> Dataset | None:
    """The dataset with the checksum of these runs, None where it is not to be found.

    It is looked for where a run would look, without a download, and then where the runs found it.

    Args:
        group: the runs.
        data: a folder to look in first.

    Raises:
        InputError: if `data` holds no dataset.
    """
    if data and (named := open_dataset(data)).checksum == group.checksum:
        return named
    places: list[Callable[[], Dataset]] = [open_sample] if group.is_sample else []
    places.append(partial(open_dataset, download=False))
    sources = [text(row.setting("data.source")) for row in group.results]
    places += [partial(open_source, Path(source)) for source in dict.fromkeys(sources) if source]
    places += [partial(open_dataset, folder) for folder in _folders(group)]
    for place in places:
        try:
            if (found := place()).checksum == group.checksum:
                return found
        except (InputError, RunError):  # moved, or broken: the next place may have it
            continue
    return None


def _folders(group: DatasetGroup) -> list[Path]:
    """Where the runs had the data from, as their records say."""
    records = (
        RunDirectory(run.folder).read_json("provenance.json")
        for row in group.results
        for run in row.runs
    )
    named = (text(table(record, "dataset").get("folder")) for record in records)
    return [Path(folder) for folder in dict.fromkeys(named) if folder]
