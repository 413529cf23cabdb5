"""The one walk over the folders of runs and sweeps."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.files.plain_file import in_threads
from harness.search_space import SEARCH_FILE

MAX_DEPTH = 4  # of a run below the folder that is searched
ENSEMBLE_FILE = "ensemble.toml"
# A run's folder holds the lease from the first moment on, and its job a little later.
MARKS = ("job.toml", "lease.json", "state.json", ENSEMBLE_FILE)  # state.json of a sweep


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


@dataclass(frozen=True)
class RunFolder:
    """A run's or a sweep's folder as the walk came to it."""

    folder: Path  # below the folder that was searched
    real: str  # without links
    inode: int = 0  # as the folder above lists it; 0 for a folder that was searched itself
    above: str = ""  # the real path of that folder


@dataclass
class Walk:
    """A walk, and what it found."""

    in_sweeps: Sequence[str] = ()
    is_known: Callable[[str, int], bool] = lambda *_: False
    runs: list[RunFolder] = field(default_factory=list)  # each once, in order of their paths
    changed_ns: dict[str, int] = field(default_factory=dict)  # of each folder that holds others


@dataclass(frozen=True)
class _Open:
    """A folder to be listed."""

    path: str
    real: str
    inode: int
    depth: int  # how many levels below it are searched
    order: tuple[str, ...]


def find_runs(tops: Iterable[Path], in_sweeps: Sequence[str] = ()) -> Iterator[Path]:
    """The folders of runs and sweeps at or below some folders, each once, in order of their paths.

    Args:
        tops: where to look.
        in_sweeps: the parts of a sweep whose runs are found too: `trials`, `winner`.
    """
    for found in walk_runs(tops, in_sweeps).runs:
        yield found.folder


def walk_runs(
    tops: Iterable[Path],
    in_sweeps: Sequence[str] = (),
    is_known: Callable[[str, int], bool] = lambda *_: False,
) -> Walk:
    """Walk as `find_runs` does, and say more of what is found.

    Args:
        tops: where to look.
        in_sweeps: as `find_runs` takes it.
        is_known: says by real path and inode that a folder is a run's, so that it is not listed.
    """
    walk, seen = Walk(in_sweeps, is_known), set()
    for top in tops:
        for _, found in sorted(_below(top, walk), key=lambda each: each[0]):
            if found.real not in seen:
                seen.add(found.real)
                walk.runs.append(found)
    return walk


def _below(top: Path, walk: Walk) -> Iterator[tuple[tuple[str, ...], RunFolder]]:
    level = [_Open(str(top), os.path.realpath(top), 0, MAX_DEPTH, top.parts)]
    while level:
        following: list[_Open] = []
        for folder, (names, changed_ns) in zip(level, in_threads(_list, level), strict=True):
            above = os.path.dirname(folder.real)  # noqa: PTH120 - a string
            found = RunFolder(Path(folder.path), folder.real, folder.inode, above)
            if not names.keys().isdisjoint(MARKS):
                yield folder.order, found
                parts = walk.in_sweeps if SEARCH_FILE in names else ()
                depth = MAX_DEPTH + 1
                names = {name: names[name] for name in parts if name in names}
            else:
                depth = folder.depth
                walk.changed_ns[folder.real] = changed_ns
            for name, (is_folder, is_link, inode) in names.items():
                if not depth or not is_folder or name.startswith("."):
                    continue
                path, order = os.path.join(folder.path, name), (*folder.order, name)  # noqa: PTH118
                real = os.path.realpath(path) if is_link else f"{folder.real}/{name}"
                inode = 0 if is_link else inode
                if walk.is_known(real, inode):
                    yield order, RunFolder(Path(path), real, inode, folder.real)
                else:
                    following.append(_Open(path, real, inode, depth - 1, order))
        level = following


def _list(folder: _Open) -> tuple[dict[str, tuple[bool, bool, int]], int]:
    """What is in a folder: whether each is a folder and a link, and its inode; when it changed."""
    try:
        # Before the listing, so that what changes after it is seen by the next one.
        changed_ns = os.stat(folder.path).st_mtime_ns  # noqa: PTH116 - a string
        with os.scandir(folder.path) as entries:
            names = {
                entry.name: (leads_to_folder(entry), entry.is_symlink(), entry.inode())
                for entry in entries
            }
    except OSError:  # it was removed meanwhile, or may not be read
        return {}, 0
    return names, changed_ns
