"""The one walk over the folders of runs and sweeps."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harness.files.plain_file import Record, in_threads, read_record
from harness.ownership import foreign_link
from harness.search_space import SEARCH_FILE

MAX_DEPTH = 4  # of a run below the folder that is searched
ENSEMBLE_FILE = "ensemble.toml"
MAKE_AGAIN = "make it again by harness ensemble"
# A run's folder holds the lease from the first moment on, and its job a little later.
MARKS = ("job.toml", "lease.json", "state.json", SEARCH_FILE, ENSEMBLE_FILE)


def is_ensemble(folder: Path) -> bool:
    """Whether a folder is an ensemble's, `harness.ensembles`."""
    return os.path.isfile(folder / ENSEMBLE_FILE)  # noqa: PTH113 - never raises


def job_file(folder: Path) -> str:
    """The job of a run, or of an ensemble's first run, which is on the same data as the others."""
    return "members/1/job.toml" if is_ensemble(folder) else "job.toml"


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; a link that can't be followed is none."""
    try:
        return entry.is_dir()
    except OSError:  # to a folder that may not be entered, or on a disk that does not answer
        return False


class RunFolder(NamedTuple):
    """A run's or a sweep's folder as the walk came to it."""

    path: str  # below the folder that was searched
    real: str  # without links
    heartbeat: Record | None  # if it was read on the way


class _Open(NamedTuple):
    """A folder to be listed."""

    path: str
    real: str
    depth: int  # how many levels below it are searched
    order: tuple[str, ...]


def find_runs(
    tops: Iterable[Path],
    in_sweeps: Sequence[str] = (),
    refused: dict[str, str] | None = None,
) -> Iterator[Path]:
    """The folders of runs and sweeps at or below some folders, each once, in order of their paths.

    Args:
        tops: where to look.
        in_sweeps: the parts of a sweep whose runs are found too: `trials`, `winner`.
        refused: if given, links of other users are not followed. It gets why, by the path of
            each such link and of each folder that can't be read.
    """
    for found in walk_runs(tops, in_sweeps, refused):
        yield Path(found.path)


def walk_runs(
    tops: Iterable[Path],
    in_sweeps: Sequence[str] = (),
    refused: dict[str, str] | None = None,
) -> list[RunFolder]:
    """Walk as `find_runs` does; outside of sweeps a folder's heartbeat says that it is a run."""
    runs: dict[str, RunFolder] = {}
    for top in tops:
        for _, found in sorted(_below(top, in_sweeps, refused), key=lambda each: each[0]):
            runs.setdefault(found.real, found)
    return list(runs.values())


def _below(
    top: Path, in_sweeps: Sequence[str], refused: dict[str, str] | None
) -> Iterator[tuple[tuple[str, ...], RunFolder]]:
    look = partial(_look, in_sweeps=in_sweeps, refused={} if refused is None else refused)
    level = [_Open(str(top), os.path.realpath(top), MAX_DEPTH, top.parts)]
    while level:
        following: list[_Open] = []
        for folder, (heartbeat, entries) in zip(level, in_threads(look, level), strict=True):
            depth = folder.depth
            if heartbeat or not entries.keys().isdisjoint(MARKS):
                yield folder.order, RunFolder(folder.path, folder.real, heartbeat)
                parts = in_sweeps if SEARCH_FILE in entries else ()
                depth = MAX_DEPTH + 1
                entries = {name: entries[name] for name in parts if name in entries}
            for name, entry in entries.items():
                if depth and not name.startswith(".") and leads_to_folder(entry):
                    real = f"{folder.real}/{name}"
                    if entry.is_symlink():
                        if refused is not None and (owner := foreign_link(entry.path)):
                            refused[entry.path] = f"is a link of {owner}"
                            continue
                        real = os.path.realpath(entry.path)
                    following.append(_Open(entry.path, real, depth - 1, (*folder.order, name)))
        level = following


def _look(
    folder: _Open, in_sweeps: Sequence[str], refused: dict[str, str]
) -> tuple[Record | None, dict[str, os.DirEntry[str]]]:
    """A folder's heartbeat, or what is in it."""
    if not in_sweeps and (heartbeat := read_record(f"{folder.path}/state.json")):
        return heartbeat, {}
    try:
        with os.scandir(folder.path) as entries:
            return None, {entry.name: entry for entry in entries}
    except FileNotFoundError:  # it was removed meanwhile
        return None, {}
    except OSError as error:
        refused[folder.path] = f"can't be read: {error.strerror}"
        return None, {}
