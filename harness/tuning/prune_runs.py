"""Removes the models and checkpoints of all trials of a sweep except the best; all scores remain.

When a trial drops out of the best trials, the search removes the trial's model, checkpoints and
status files at once, because this trial can't become one of the best again. Hyperband and asha
continue trials from checkpoints, so with these tuners a search removes the checkpoints of finished
trials only at the end of the search. Failed trials and superseded attempts keep their status files.
If the user raises `search.trials` after the end of the search, a new trial may need a removed
checkpoint. The new trial then trains the epochs up to this checkpoint again, with bitwise identical
results. In finished runs that are not trials, `harness prune` removes only the checkpoints.

If the user trains a run's `job.toml` again, the new model and checkpoints are bitwise identical to
the removed ones. This module removes no file of another user and follows no symbolic link. A kill
during the removal does no harm: a run is valid with all, some or none of its removable files.
"""

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import DiskError, InputError
from harness.job.search import SearchSpec, is_sweep
from harness.system.files import owner_name, read_plain_file
from harness.system.lenient_json import parse_json
from harness.tracking.run_dir import RESULT, RunDirectory, attempt_of, find_runs, is_whole
from harness.tuning.leaderboard import ranked
from harness.tuning.protocol import Trial, attempt_folder, trial_folder
from harness.tuning.sweep_dir import SweepDirectory

NUM_KEPT = 5  # number of best trials that keep their files
# Patterns of files in the folder of a run
CHECKPOINTS = ("checkpoints/*",)
MODEL = ("model.keras", "vocabulary.txt")
STATUS = ("state.json", "timings.jsonl", "lease.json")  # `accepted/trial.json` replaces them


@dataclass
class Pruned:
    """Removes files of runs and counts them; with `really=False`, only counts them."""

    really: bool = True
    num_files: int = 0
    num_bytes: int = 0
    num_runs: int = 0  # number of runs that were checked
    left: list[tuple[Path, str]] = field(default_factory=list)  # skipped folders and the reasons

    def prune(self, folder: Path, top: Path, patterns: Sequence[str]) -> None:
        """Remove the user's files that match `patterns` in a folder; follow no link below `top`."""
        self.num_runs += 1
        for file in (each for pattern in patterns for each in folder.glob(pattern)):
            with contextlib.suppress(OSError):  # already removed, or not removable
                about, parent = file.lstat(), file.parent
                is_below = parent.resolve() == top.resolve() / parent.relative_to(top)
                if is_below and stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid():
                    if self.really:
                        file.unlink()
                    self.num_files += 1
                    self.num_bytes += about.st_size


def refusal(folder: Path) -> str:
    """Return why the files of a folder must be kept; "" if they may be removed.

    Raises:
        OSError: if the folder is missing or unreadable.
    """
    about = folder.lstat()
    if stat.S_ISLNK(about.st_mode):
        return "is a link"
    if about.st_uid != os.getuid():
        return f"belongs to {owner_name(about.st_uid)}"
    # A later trial of a search may continue from the checkpoint of this trial.
    above = folder.absolute().parents[3] if attempt_of(folder.absolute()) else None
    if above and not SweepDirectory(above).finished():
        return f"belongs to {above}, which is unfinished"
    # A sweep whose `search.trials` was raised is unfinished, although it has a result.
    kind = SweepDirectory if is_sweep(folder) else RunDirectory
    if not kind(folder).finished():
        return "is unfinished"
    # Keep the files of a run with a broken result, because the run resumes from its last
    # checkpoint.
    if is_sweep(folder) or is_whole(parse_json(read_plain_file(folder / RESULT))):
        return ""
    return "has a broken result.json"


class KeptTrials:
    """Decides which files of trials a sweep keeps, and removes all other files of trials."""

    def __init__(self, sweep: SweepDirectory, search: SearchSpec, pruned: Pruned) -> None:
        """Choose the files of `sweep`; the object `pruned` removes and counts them."""
        self.sweep, self.search, self.pruned = sweep, search, pruned
        self._done: set[tuple[int, bool, bool]] = set()

    def trim(self, trials: Sequence[Trial], *, is_over: bool) -> None:
        """Remove files that the sweep does not keep; skip files that can't be removed.

        A trial whose files an earlier call has removed is skipped.

        Args:
            trials: all trials of the sweep.
            is_over: whether the search is over; before its end, a later trial may need the
                checkpoint of an ended trial.
        """
        may_continue = self.search.continues_trials and not is_over
        ended = [each for each in ranked(trials, self.search) if each.attempt]
        for rank, each in enumerate(ended):
            is_best = rank < NUM_KEPT
            how = each.n, is_best, may_continue
            if how in self._done:
                continue
            self._done.add(how)
            accepted = self.sweep.path(attempt_folder(each.n, each.attempt))
            for folder in self.sweep.path(trial_folder(each.n)).glob("*/seed*"):
                is_useless = folder.parent != accepted or each.error
                patterns: tuple[str, ...] = MODEL if is_useless or not is_best else ()
                if not (is_best or is_useless):
                    patterns += STATUS
                if is_useless or not (is_best or may_continue):
                    patterns += CHECKPOINTS
                self.pruned.prune(folder, self.sweep.folder, patterns)


def prune_all(tops: Sequence[Path], *, really: bool) -> Pruned:
    """Remove checkpoints of finished runs, and all files that finished searches no longer need.

    This function changes no unfinished search, no unfinished run (except trials of finished
    searches), no symbolic link and no folder of another user.

    Args:
        tops: runs, sweeps, or folders that contain runs or sweeps.
        really: whether to remove the files instead of only counting them.
    """
    done = Pruned(really)
    for folder, *_ in find_runs(tops, in_sweeps=("winner",)):
        try:
            if why := refusal(folder):
                done.left.append((folder, why))
            elif is_sweep(folder):
                sweep = SweepDirectory(folder)
                KeptTrials(sweep, sweep.search(), done).trim(sweep.trials(), is_over=True)
            else:
                done.prune(folder, folder, CHECKPOINTS)
        except (OSError, DiskError, InputError) as error:  # other folders may be readable
            done.left.append((folder, f"can't be read: {getattr(error, 'strerror', error)}"))
    return done
