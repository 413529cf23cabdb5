"""Which runs a TensorBoard shows: those that are named, or the newest."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.errors import InputError
from harness.files.plain_file import in_threads
from harness.monitoring.run_names import select_runs
from harness.ownership import foreign_link
from harness.search_space import is_sweep
from harness.tracking.run_folders import find_runs, is_ensemble

NUM_NEWEST = 200  # shown where none is named
MAX_TOLD = 10  # refused paths in a line


class Shown:
    """The requested runs, as a folder of links `<job>/<run-id>` for TensorBoard to walk."""

    def __init__(self, folder: Path, roots: Sequence[Path], runs: Path) -> None:
        """Make the folder; no run is in it yet.

        Args:
            folder: of the links.
            roots: the named runs, or folders of runs; without any the newest are shown.
            runs: the folder of all runs.
        """
        self.folder = folder
        folder.mkdir()
        self.are_named = bool(roots)
        self.roots = roots or [runs]
        self.runs = runs.resolve()
        self.found: list[Path] = []
        self.left_out = ""  # a line about the runs that are not shown
        self.refused: dict[str, str] = {}  # why, by the path of what can't or must not be read
        self._told: set[tuple[str, str]] = set()
        self._links: dict[Path, Path] = {}
        self._taken: set[Path] = set()

    def refresh(self) -> None:
        """Find the runs again, and link those that have begun to log."""
        self.found = self._chosen()
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
        if self.are_named:
            return every
        changed_s = dict(zip(every, in_threads(_changed_s, every), strict=True))
        newest = sorted(every, key=lambda run: -changed_s[run])[:NUM_NEWEST]
        shown = {*newest, *self._links}
        found = [run for run in every if run in shown]
        if hidden := len(every) - len(found):
            self.left_out = (
                f"these are the newest; {hidden:,} older ones are not shown: name runs, or "
                "folders of runs, to see others"
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


def check_roots(names: Sequence[Path], runs: Path) -> Sequence[Path]:
    """The named runs, or folders of runs; none where none is named.

    Args:
        names: folders, or ids of runs and of Slurm jobs, as `harness status` prints them.
        runs: the folder of all runs.

    Raises:
        InputError: if a name fits no run, or a folder holds none.
    """
    if not names and not runs.is_dir():
        raise InputError(f"--runs {runs}: no such folder; give runs, or a folder of runs")
    roots: list[Path] = []
    for name in names:
        if not name.is_dir():
            roots += [each.folder for each in select_runs([str(name)], runs, None, many=True)]
            continue
        refused: dict[str, str] = {}
        if not _runs_below([name], refused):
            why = "".join(f" ({where} {why})" for where, why in sorted(refused.items())[:1])
            raise InputError(f"RUN {name}: holds no run{why}; give runs, or a folder of runs")
        roots.append(name)
    return roots
