"""Checks of the disks: for the dataset and for the runs."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness.checks.finding import Finding
from harness.data.imdb_sources import open_dataset
from harness.files.shared_disk import file_system

WRITTEN_MB = 16  # to measure the speed by
SLOW_MB_PER_S = 10
LITTLE_GB, TOO_LITTLE_GB = 2.0, 0.1  # a run takes some 10 MB


def check_data(data: Path | None) -> Iterator[Finding]:
    """Where a run would take its reviews from, and whether every byte is correct; no download."""
    dataset = open_dataset(data, download=False)
    counts = f"{len(dataset.train):,} + {len(dataset.test):,} reviews"
    remedy = "harness data fetch, where there is a network"
    if dataset.is_sample:
        yield Finding("yellow", "data", f"only the packaged SAMPLE of {counts}", remedy)
        return
    where = f"{counts} in {dataset.folder}"
    if not dataset.official:
        yield Finding("yellow", "data", f"{where}: not the official IMDB reviews", remedy)
    else:
        yield Finding("green", "data", f"{where}: the official ones, every byte verified")


def check_runs(runs: Path) -> Iterator[Finding]:
    """Space and speed of the runs folder, or of the nearest one above; leaves nothing."""
    remedy = "choose another --runs or HARNESS_RUNS"
    where = str(runs)
    try:
        above = runs.absolute().parents
        folder = next(each for each in (runs.absolute(), *above) if os.path.lexists(each))
        where = str(folder) if folder == runs.absolute() else f"{runs} is not made yet; {folder}"
        with tempfile.TemporaryDirectory(prefix=".harness-doctor-", dir=folder) as name:
            mb_per_s = _write_speed(Path(name))
        free_gb = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        found = f"{where}: can't be written: {error.strerror or error}"
        yield Finding("red", "runs", found, remedy)
        return
    found = f"{where} ({file_system(folder)}): {free_gb:,.1f} GB free, {mb_per_s:,.0f} MB/s"
    if free_gb < TOO_LITTLE_GB:
        yield Finding("red", "runs", found, f"free some space, or {remedy}")
    elif free_gb < LITTLE_GB:
        yield Finding("yellow", "runs", found, f"free some space, or {remedy}")
    elif mb_per_s < SLOW_MB_PER_S and not is_busy():
        yield Finding("yellow", "runs", found, f"slow: {remedy}")
    else:
        yield Finding("green", "runs", found)


def is_busy() -> bool:
    """Whether more processes want to run than there are processors, so that times say little."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)


def _write_speed(folder: Path) -> float:
    content = os.urandom(WRITTEN_MB * 1_000_000)  # which no file system can compress
    began = time.perf_counter()
    with (folder / "speed").open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return WRITTEN_MB / max(time.perf_counter() - began, 1e-9)
