"""Checks of the disks: for the dataset, the runs and a job's scratch, and the clock of the runs."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness.checks.finding import Finding
from harness.data.imdb_sources import open_dataset
from harness.files.shared_disk import file_system
from harness.slurm.environment import SlurmEnvironment, scratch_folder

WRITTEN_MB = 16  # to measure the speed by
CHECKPOINT_MB = 4  # about what the models here take
SLOW_MB_PER_S = 10
LITTLE_GB, TOO_LITTLE_GB = 2.0, 0.1  # a run takes some 10 MB
MAX_SKEW_S = 2.0  # heartbeats are 5 s apart


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


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists.

    Raises:
        OSError: if it could not be created: a name too long, a folder without permission.
    """
    path = path.absolute()
    while True:
        try:
            path.lstat()  # a broken link exists too, and is in the way
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent
        else:
            return path


def check_runs(runs: Path) -> Iterator[Finding]:
    """Space, speed and clock of the runs folder, or of the nearest one above; leaves nothing."""
    remedy = "choose another --runs or HARNESS_RUNS"
    where = str(runs)
    try:
        folder = nearest_folder(runs)
        where = str(folder) if folder == runs.absolute() else f"{runs} is not made yet; {folder}"
        with tempfile.TemporaryDirectory(prefix=".harness-doctor-", dir=folder) as name:
            mb_per_s = _write_speed(Path(name))
            checkpoint_s = _checkpoint_s(Path(name))
            skew_s = _skew_s(Path(name))
        free_gb = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        found = f"{where}: can't be written: {error.strerror or error}"
        yield Finding("red", "runs", found, remedy)
        return
    found = (
        f"{where} ({file_system(folder)}): {free_gb:,.1f} GB free, writes {mb_per_s:,.0f} MB/s, "
        f"a checkpoint takes {checkpoint_s:.2f} s"
    )
    if free_gb < TOO_LITTLE_GB:
        yield Finding("red", "runs", found, f"free some space, or {remedy}")
    elif free_gb < LITTLE_GB:
        yield Finding("yellow", "runs", found, f"free some space, or {remedy}")
    elif mb_per_s < SLOW_MB_PER_S and is_busy():
        yield Finding("green", "runs", f"{found}, while the processors are busy with other work")
    elif mb_per_s < SLOW_MB_PER_S:
        yield Finding("yellow", "runs", found, f"slow: {remedy}")
    else:
        yield Finding("green", "runs", found)
    yield _clock(skew_s)


def is_busy() -> bool:
    """Whether more processes want to run than there are processors, so that times say little."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)


def _clock(skew_s: float) -> Finding:
    # A file's time is only as precise as the kernel's tick.
    found = f"the disk of the runs is {abs(skew_s):.2f} s {'ahead' if skew_s > 0 else 'behind'}"
    if abs(skew_s) <= MAX_SKEW_S:
        return Finding("green", "clock", found)
    remedy = "heartbeats will look too old or too new; tell your site, its time service is off"
    return Finding("yellow", "clock", found, remedy)


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_speed(folder: Path) -> float:
    content = os.urandom(WRITTEN_MB * 1_000_000)  # which no file system can compress
    began = time.perf_counter()
    _write_through(folder / "speed", content)
    return WRITTEN_MB / max(time.perf_counter() - began, 1e-9)


def _checkpoint_s(folder: Path) -> float:
    content = os.urandom(CHECKPOINT_MB * 1_000_000)
    began = time.perf_counter()
    _write_through(folder / "beside", content)
    (folder / "beside").replace(folder / "checkpoint")
    return time.perf_counter() - began


def _skew_s(folder: Path) -> float:
    """How far the file system's clock is ahead of this machine's, seconds."""
    before = time.time()
    _write_through(folder / "clock", b"now")
    after = time.time()
    written = (folder / "clock").stat().st_mtime
    return written - min(max(written, before), after)  # 0 if it is in between


def check_scratch(allocation: SlurmEnvironment | None) -> Iterator[Finding]:
    """The scratch folder of a job; no finding outside of a job."""
    if allocation is None:
        return
    folder = scratch_folder(allocation)
    remedy = "export TMPDIR=/your/node/scratch in slurm/site.sh"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
        free_gb = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        found = f"{folder}: can't be written: {error.strerror or error}"
        yield Finding("red", "scratch", found, remedy)
        return
    same_as_home = False
    with contextlib.suppress(OSError, RuntimeError):  # a node may have no homes
        same_as_home = folder.stat().st_dev == Path.home().stat().st_dev
    kind = file_system(folder)
    found = f"{folder} ({kind}): {free_gb:,.1f} GB free"
    if kind in ("tmpfs", "ramfs"):
        yield Finding("yellow", "scratch", f"{found}, in memory: it counts against --mem", remedy)
    elif same_as_home:
        yield Finding("yellow", "scratch", f"{found}, on the same disk as your home", remedy)
    elif free_gb < LITTLE_GB:
        yield Finding("yellow", "scratch", found, remedy)
    else:
        yield Finding("green", "scratch", found)
