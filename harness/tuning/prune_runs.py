"""A sweep keeps models and checkpoints of its best trials only, and the scores of all.

A trial that has left the best trials never returns to them, so its model and checkpoints are
removed at once. If trials continue older ones (hyperband, asha), checkpoints are removed at the end
of the search. Should the search get more trials later, a trial trains the epochs of its parent
again, to the same bytes. `harness prune` frees the same files of older sweeps, and the last
checkpoints of finished runs.

A run keeps its job, record, metrics, scores, predictions, model and curves. Training its `job.toml`
restores all other files, to the same bytes. This module removes no file of another user and follows
no link. Its files are independent, so a kill between two removals leaves a valid run.
"""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import DiskError, InputError
from harness.job.search import SearchSpec, is_sweep
from harness.system.files import owner_name, read_plain_file
from harness.system.lenient_json import parse_json
from harness.tracking.run_dir import RunDirectory, find_runs, is_whole
from harness.tuning.leaderboard import ranked
from harness.tuning.protocol import Trial, attempt_folder, trial_folder
from harness.tuning.sweep_dir import SweepDirectory

NUM_KEPT = 5  # trials
# Patterns below the folder of a run
CHECKPOINTS = ("checkpoints/*",)
MODEL = ("model.keras", "vocabulary.txt")
STATE = ("state.json", "timings.jsonl", "lease.json")  # `accepted/trial.json` has the result


@dataclass
class Pruned:
    """The files that were removed, or could be."""

    num_files: int = 0
    num_bytes: int = 0
    num_runs: int = 0  # finished runs that were checked
    left: list[tuple[Path, str]] = field(default_factory=list)  # kept folders and the reasons

    def prune(self, folder: Path, patterns: Sequence[str], *, really: bool) -> None:
        """Remove files of a finished run, or with `really=False` only measure them."""
        self.num_runs += 1
        for file, size in _own_files(folder, patterns):
            if really:
                try:
                    file.unlink()
                except OSError:  # already removed, or the disk refuses
                    continue
            self.num_files += 1
            self.num_bytes += size
        if really and not (folder / "checkpoints").is_symlink():
            with contextlib.suppress(OSError):  # it still holds files
                (folder / "checkpoints").rmdir()


def refusal(folder: Path) -> str:
    """Why no file of a folder may be removed: a link, another user's, unfinished; empty if it may.

    Raises:
        OSError: if the folder is missing or unreadable.
    """
    about = folder.lstat()
    if stat.S_ISLNK(about.st_mode):
        return "is a link"
    if about.st_uid != os.getuid():
        return f"belongs to {owner_name(about.st_uid)}"
    if not RunDirectory(folder).finished():
        return "is unfinished"
    # A run with a broken result resumes from its last checkpoint.
    if is_sweep(folder) or is_whole(parse_json(read_plain_file(folder / "result.json"))):
        return ""
    return "has a broken result.json"


def _own_files(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[Path, int]]:
    """This user's regular files that match a pattern, with their sizes in bytes."""
    if folder.is_symlink():
        return
    real = folder.resolve()
    for file in (each for pattern in patterns for each in sorted(folder.glob(pattern))):
        if file.parent.resolve() != real / file.parent.relative_to(folder):
            continue  # behind a link
        with contextlib.suppress(FileNotFoundError):
            about = file.lstat()
            if stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid():
                yield file, about.st_size


class KeptTrials:
    """Decides which files a sweep keeps of its trials."""

    def __init__(self, sweep: SweepDirectory, search: SearchSpec) -> None:
        self.sweep, self.search = sweep, search
        self._done: set[tuple[int, bool, bool]] = set()

    def trim(self, trials: Sequence[Trial], *, is_over: bool = False) -> None:
        """Remove files of ended trials, except the best; ignore errors of the disk.

        Args:
            trials: all trials of the sweep.
            is_over: whether the search is over.
        """
        may_continue = self.search.continues_trials and not is_over
        for folder, patterns in self.removable(trials, may_continue=may_continue):
            Pruned().prune(folder, patterns, really=True)

    def removable(
        self, trials: Sequence[Trial], *, may_continue: bool = False
    ) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """The runs of ended trials and their removable files; a later call omits them.

        Args:
            trials: all trials of the sweep.
            may_continue: whether a later trial may need the checkpoint of an ended one.
        """
        real = self.sweep.folder.resolve()
        ended = [each for each in ranked(trials, self.search) if each.attempt]
        for rank, each in enumerate(ended):
            is_best = rank < NUM_KEPT
            how = each.n, is_best, may_continue
            if how in self._done:
                continue
            self._done.add(how)
            accepted = self.sweep.path(attempt_folder(each.n, each.attempt))
            checkpoints = () if is_best or may_continue else CHECKPOINTS
            for folder in find_runs([self.sweep.path(trial_folder(each.n))]):
                if folder.resolve() != real / folder.relative_to(self.sweep.folder):
                    continue  # behind a link
                if folder.parent != accepted or each.error:
                    yield folder, CHECKPOINTS + MODEL
                else:
                    yield folder, checkpoints if is_best else checkpoints + MODEL + STATE


def prune_all(tops: Sequence[Path], *, really: bool) -> Pruned:
    """Remove the files of finished runs and searches that a training restores.

    Unfinished runs, links and folders of other users remain unchanged.

    Args:
        tops: runs, searches, or folders of them.
        really: whether to remove the files instead of only counting them.
    """
    done = Pruned()
    for folder in find_runs(tops, in_sweeps=("winner",)):
        try:
            if why := refusal(folder):
                done.left.append((folder, why))
            elif is_sweep(folder):
                sweep = SweepDirectory(folder)
                for run, patterns in KeptTrials(sweep, sweep.search()).removable(sweep.trials()):
                    done.prune(run, patterns, really=really)
            else:
                done.prune(folder, CHECKPOINTS, really=really)
        except FileNotFoundError:  # removed meanwhile
            continue
        except (OSError, DiskError, InputError) as error:  # other folders may be readable
            done.left.append((folder, f"can't be read: {getattr(error, 'strerror', error)}"))
    return done
