"""The data of a job: its own texts or IMDB; for a resumed run or sweep, its earlier data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.data.dataset import Dataset
from harness.data.imdb_sources import open_dataset, open_sample
from harness.data.locations import holds_dataset
from harness.data.text_dataset import check_has_all, open_source
from harness.errors import InputError
from harness.job import Job
from harness.texts.tables import SourceFormat


def open_data(job: Job, data: Path | None, *, full: bool = False) -> Dataset:
    """The data for a new run of a job.

    A job with `data.source` uses nothing else: HARNESS_DATA, the caches of IMDB and the sample
    play no part, and `full` has no effect.

    Args:
        job: its `data.source` is an absolute path, or empty for IMDB.
        data: folder with IMDB, if one was named.
        full: refuse the sample.

    Raises:
        InputError: if the data are missing, unreadable, or unsuitable for the job.
        RunError: if a dataset is broken.
    """
    if not job.data.source:
        return open_dataset(data, full=full)
    if data:
        raise InputError(
            f"--data {data}: says where IMDB is, but the job has texts of its own, data.source = "
            f"{job.data.source}; leave --data out, or set data.source to ''"
        )
    dataset = open_source(Path(job.data.source), SourceFormat.of(job.data))
    _check_parts(job, dataset)
    return dataset


def reopen_data(record: Mapping[str, Any], job: Job, data: Path | None, *, whose: str) -> Dataset:
    """The data that a run or sweep began with.

    Args:
        record: what it recorded of them: checksum, is_sample, folder.
        data: folder with IMDB, if it has moved.
        whose: the run or sweep, for messages.

    Raises:
        InputError: if they have changed or are missing.
        RunError: if a dataset is broken.
    """
    if job.data.source:
        dataset = open_data(job, data)
    elif record.get("is_sample") and data is None:
        dataset = open_sample()
    else:
        folder = Path(record["folder"]) if record.get("folder") else None
        is_there = folder is not None and holds_dataset(folder)  # else it may have moved
        dataset = open_dataset(data or (folder if is_there else None), full=True)
    check_same(dataset, str(record.get("checksum")), whose)
    return dataset


def check_same(dataset: Dataset, checksum: str, whose: str) -> None:
    """Refuse to resume a run or sweep on other data.

    Raises:
        InputError: if the dataset has another checksum.
    """
    if dataset.checksum == checksum:
        return
    which = f"checksum {checksum[:12]}, here {dataset.checksum[:12]}"
    if dataset.is_own:
        raise InputError(
            f"{whose}: data.source {dataset.folder} has changed since it was begun ({which}); put "
            "the file back as it was, or start a new run"
        )
    raise InputError(f"{whose}: was begun with other data ({which}); give its folder by --data")


def _check_parts(job: Job, dataset: Dataset) -> None:
    """Refuse own texts if a part of the job would lack a class.

    Of more than two classes the test and validation reviews may lack a rare one.
    """
    limit, share = job.data.limit or None, job.data.validation_split
    train, cut = dataset.used(job.data.limit, share)
    labels = train.labels
    parts = {"training": labels[:cut], "test": dataset.test.labels[:limit]}
    if share > 0:
        parts["validation"] = labels[cut:]
    if len(dataset.classes) > 2:
        parts = {"training": parts["training"]}
    for name, part in parts.items():
        remedy = (
            f", with data.limit = {job.data.limit} and data.validation_split = {share}; raise "
            "them, or add reviews"
        )
        check_has_all(dataset.folder, name, part, classes=dataset.classes, remedy=remedy)
