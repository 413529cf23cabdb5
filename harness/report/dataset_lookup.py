"""Finds the dataset that runs were tested on, for the baselines and the texts of reviews."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness.data.dataset import Dataset
from harness.data.imdb_sources import open_dataset, open_sample
from harness.data.text_dataset import open_source
from harness.errors import InputError, RunError
from harness.files.lenient_json import read_toml, table, text
from harness.job import SOURCE_FORMAT
from harness.report.collect import DatasetGroup, job_file
from harness.texts.tables import SourceFormat
from harness.tracking.run_dir import RunDirectory


def tested_data(group: DatasetGroup, data: Path | None) -> Dataset | None:
    """The dataset with the checksum of these runs, None if it is not found.

    Searches where a run would, but without a download, and then where the runs found it.

    Args:
        group: the runs.
        data: a folder to look in first.

    Raises:
        InputError: if `data` holds no dataset.
    """
    if data and (named := open_dataset(data)).checksum == group.checksum:
        return named
    candidates: list[Callable[[], Dataset]] = [open_sample] if group.is_sample else []
    candidates.append(partial(open_dataset, download=False))
    sources = [run.folder for result in group.results for run in result.runs if run.source]
    candidates += [partial(_own_texts, folder) for folder in sources]
    candidates += [partial(open_dataset, folder) for folder in _folders(group)]
    for open_candidate in candidates:
        try:
            if (dataset := open_candidate()).checksum == group.checksum:
                return dataset
        except (InputError, RunError):  # moved, or broken: another may be there
            continue
    return None


def _own_texts(folder: Path) -> Dataset:
    """The texts of a run or an ensemble, read as its job says."""
    data = table(read_toml(job_file(folder)), "data")
    form = {key: named for key in SOURCE_FORMAT if (named := text(data.get(key)))}
    return open_source(Path(data["source"]), SourceFormat(**form))


def _folders(group: DatasetGroup) -> list[Path]:
    """The folders that the runs read the data from, by their records."""
    records = (
        RunDirectory(run.folder).read_json("provenance.json")
        for result in group.results
        for run in result.runs
    )
    named = (text(table(record, "dataset").get("folder")) for record in records)
    return [Path(folder) for folder in dict.fromkeys(named) if folder]
