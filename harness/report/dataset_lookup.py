"""Finds the dataset that runs were tested on, for the baselines and the texts of reviews."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from harness.data.dataset import Dataset
from harness.data.imdb_sources import open_dataset, open_sample
from harness.data.text_dataset import open_source
from harness.errors import InputError, RunError
from harness.files.lenient_json import read_toml, table, text
from harness.job import DataConfig
from harness.report.collect import DatasetGroup, ScoredRun
from harness.texts.tables import SourceFormat
from harness.tracking.run_dir import RunDirectory
from harness.tracking.run_folders import job_file


def tested_data(group: DatasetGroup, data: Path | None) -> Dataset | None:
    """The dataset with the checksum of these runs, None if it is not found.

    Searches in `data` first, then where a run would, but without a download, and then where the
    runs found it.

    Raises:
        InputError: if `data` holds no dataset.
    """
    if data and (named := open_dataset(data)).checksum == group.checksum:
        return named
    for open_candidate in _candidates(group):
        try:
            if (dataset := open_candidate()).checksum == group.checksum:
                return dataset
        except (InputError, RunError):  # moved, or broken: another may be there
            continue
    return None


def _candidates(group: DatasetGroup) -> Iterator[Callable[[], Dataset]]:
    runs = [run for result in group.results for run in result.runs]
    if group.is_sample:
        yield open_sample
    yield partial(open_dataset, download=False)
    sources: set[tuple[str, SourceFormat]] = set()  # each is read once: that may take minutes
    for run in runs:
        if run.source and (form := _form(run.folder)) and (run.source, form) not in sources:
            sources.add((run.source, form))
            yield partial(open_source, Path(run.source), form)
    for folder in _folders(runs):
        yield partial(open_dataset, folder)


def _form(folder: Path) -> SourceFormat | None:
    """How the job of a run or an ensemble reads its texts, None if it is broken."""
    data = table(read_toml(folder / job_file(folder)), "data")
    keys = SourceFormat.__dataclass_fields__
    named = {key: value for key in keys if (value := text(data.get(key)))}
    try:
        return SourceFormat.of(DataConfig.model_validate(named))
    except ValidationError:  # such as an encoding that this Python lacks
        return None


def _folders(runs: Iterable[ScoredRun]) -> list[Path]:
    """The folders that the runs read the data from, by their records."""
    records = (RunDirectory(run.folder).read_json("provenance.json") for run in runs)
    named = (text(table(record, "dataset").get("folder")) for record in records)
    return [Path(folder) for folder in dict.fromkeys(named) if folder]
