"""Which runs a TensorBoard shows: the newest, or those that are named, as far as memory goes."""

import bisect
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.board.server import points_per_curve
from harness.errors import InputError
from harness.files.plain_file import in_threads
from harness.ownership import foreign_link
from harness.search_space import is_sweep
from harness.tracking.run_folders import find_runs, is_ensemble

NUM_NEWEST = 200  # shown where none is named
# As measured: of the process, of a value of a curve and its bytes in the file, of other bytes.
BASE_GB = 0.2
GB_A_VALUE, BYTES_A_VALUE = 1.3e-6, 49
CURVES_A_RUN = 8  # whose points a long run fills
GB_A_BYTE = 2e-9
CURVES = ("train", "validation")  # the folders of a run's curves
MAX_TOLD = 10  # refused paths in a line


class Shown:
    """The requested runs, as a folder of links `<job>/<run-id>` for TensorBoard to walk."""

    def __init__(
        self, folder: Path, roots: Sequence[Path], runs: Path, *, memory_gb: float = float("inf")
    ) -> None:
        """Make the folder; no run is in it yet.

        Args:
            folder: of the links.
            roots: the named runs, or folders of runs; without any the newest are shown.
            runs: the folder of all runs.
            memory_gb: that TensorBoard may take.
        """
        self.folder = folder
        folder.mkdir()
        self.are_named = bool(roots)
        self.roots = roots or [runs]
        self.runs = runs.resolve()
        self.memory_gb = memory_gb
        self.found: list[Path] = []
        self.finished = False  # whether there is a run, and all of them ended well
        self.left_out = ""  # a line about the runs that are not shown
        self.refused: dict[str, str] = {}  # why, by the path of what can't or must not be read
        self.full = ""  # a line, once a newer run no longer fits beside them
        self._told: set[tuple[str, str]] = set()
        self._links: dict[Path, Path] = {}
        self._taken: set[Path] = set()
        self._is_first = True

    def refresh(self) -> None:
        """Find the runs again, and link those that have begun to log.

        Raises:
            InputError: the first time, if the named runs need more memory than there is.
        """
        self.found = self._chosen()
        self._is_first = False
        ended = in_threads(lambda run: os.path.isfile(run / "result.json"), self.found)  # noqa: PTH113
        self.finished = bool(self.found) and all(ended)
        for run in self.found:
            events = run / "tensorboard"
            if run in self._links:
                continue
            if owner := foreign_link(events):
                self.refused[str(events)] = f"is a link of {owner}"
            elif os.path.isdir(events):  # noqa: PTH112 - never raises
                link = self._free_name(run)
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(events, target_is_directory=True)
                self._links[run] = link

    def waiting(self) -> int:
        """How many runs have logged nothing yet."""
        silent = {*self.found} - self._links.keys()
        return sum(str(run / "tensorboard") not in self.refused for run in silent)

    def refusals(self) -> str:
        """A line about what is refused and was not told yet; empty if there is nothing new."""
        new = sorted({*self.refused.copy().items()} - self._told)  # a copy: a thread adds to it
        self._told.update(new)
        parts = [f"{path} {why}" for path, why in new[:MAX_TOLD]]
        parts += [f"and {len(new) - MAX_TOLD:,} more"] if len(new) > MAX_TOLD else []
        return f"not shown: {'; '.join(parts)}" if new else ""

    def _chosen(self) -> list[Path]:
        """The runs to show, by their paths; those that are shown already stay."""
        every = _runs_below(self.roots, self.refused)
        changed_s = dict(zip(every, in_threads(_changed_s, every), strict=True))
        newest = sorted(every, key=lambda run: -changed_s[run])
        newest = newest if self.are_named else newest[:NUM_NEWEST]
        wanted = [*self._links, *(run for run in newest if run not in self._links)]
        sizes_gb = in_threads(lambda run: log_gb(run, len(newest)), wanted)
        needed_gb = list(itertools.accumulate(sizes_gb, initial=BASE_GB))  # of none, one, two, …
        if self.are_named and self._is_first and needed_gb[-1] > self.memory_gb:
            raise InputError(
                f"{len(every):,} runs: TensorBoard needs about {needed_gb[-1]:.1f} GB of memory "
                f"for them, here are {self.memory_gb:.1f}; name fewer, or ask for more: "
                f"sbatch --mem={needed_gb[-1] + 1:.0f}G slurm/tensorboard.sh"
            )
        fitting = max(bisect.bisect(needed_gb, self.memory_gb) - 1, len(self._links))
        shown = {*wanted[:fitting]}
        found = [run for run in every if run in shown]
        if hidden := len(every) - len(found):
            why = f", for {self.memory_gb:.1f} GB of memory" if fitting < len(wanted) else ""
            self.left_out = (
                f"these are the newest{why}; {hidden:,} older ones are not shown: name runs, or "
                "folders of runs, to see others"
            )
        if {*newest[: len(found)]} - shown:
            self.full = (
                f"newer runs are not shown, since those shown fill {self.memory_gb:.1f} GB of "
                "memory; start TensorBoard again to see the newest, with more memory to see more"
            )
        return found

    def _free_name(self, run: Path) -> Path:
        # Two levels exactly: a link below another link would be a file in a run's own folder.
        group = run.parent.name or "runs"
        if run.is_relative_to(self.runs) and len(run.relative_to(self.runs).parts) > 1:
            group = ".".join(run.relative_to(self.runs).parts[:-1])
        link, number = self.folder / group / run.name, 1
        while link in self._taken:
            number += 1
            link = link.with_name(f"{run.name}-{number}")
        self._taken.add(link)
        return link


def log_gb(run: Path, num_runs: int) -> float:
    """The memory that TensorBoard takes for the log of one of so many shown runs, in GB."""
    events = run / "tensorboard"
    root, curves = _num_bytes(events), sum(_num_bytes(events / name) for name in CURVES)
    most = CURVES_A_RUN * points_per_curve(num_runs)
    return GB_A_BYTE * root + GB_A_VALUE * min(curves / BYTES_A_VALUE, most)


def _num_bytes(folder: Path) -> int:
    """The size of the event files in a folder."""
    try:
        with os.scandir(folder) as entries:
            return sum(each.stat().st_size for each in entries if ".tfevents." in each.name)
    except OSError:  # it has logged nothing yet
        return 0


def _changed_s(run: Path) -> float:
    """When something was last written into a run's folder."""
    try:
        return run.stat().st_mtime
    except OSError:  # it was removed meanwhile
        return 0.0


def _runs_below(roots: Iterable[Path], refused: dict[str, str]) -> list[Path]:
    """The runs at or below some folders, those of sweeps among them, resolved."""
    found = find_runs((root.resolve() for root in roots), ("trials", "winner"), refused)
    return [folder for folder in found if not is_sweep(folder) and not is_ensemble(folder)]


def check_roots(paths: Sequence[Path], runs: Path) -> Sequence[Path]:
    """The named runs, or folders of runs; none where none is named.

    Raises:
        InputError: if one is not a folder, or was named and holds no run.
    """
    for path in paths or [runs]:
        if not path.is_dir():
            name = "RUN" if paths else "--runs"
            raise InputError(f"{name} {path}: no such folder; give runs, or a folder of runs")
    for path in paths:
        refused: dict[str, str] = {}
        if not _runs_below([path], refused):
            why = "".join(f" ({where} {why})" for where, why in sorted(refused.items())[:1])
            raise InputError(f"RUN {path}: holds no run{why}; give runs, or a folder of runs")
    return paths
