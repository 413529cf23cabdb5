"""A sweep keeps models and checkpoints of its best trials only, and the scores of all.

A trial that has left the best trials never returns to them, so its models and checkpoints are
removed at once. If trials continue older ones (hyperband, asha), checkpoints are removed at the end
of the search; should it get more trials later, it trains a parent's epochs again, to the same
bytes. `harness prune` frees the same files of older sweeps, and the last checkpoints of finished
runs.

A run keeps its job, record, metrics, scores, predictions, model and curves. Training its `job.toml`
restores all other files, to the same bytes. This module removes no file of another user and follows
no link. Its files are independent, so a kill between two removals leaves a valid run.
"""

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import DiskError, InputError
from harness.job.search import SearchSpec, is_sweep
from harness.system.files import in_threads, owner_name, read_plain_file
from harness.system.lenient_json import parse_json
from harness.tracking.run_dir import RunDirectory, find_runs, is_whole
from harness.tuning.leaderboard import ranked
from harness.tuning.protocol import Trial, attempt_folder, trial_folder
from harness.tuning.sweep_dir import SweepDirectory

Parts = dict[str, tuple[str, ...]]  # the files of each part, by their paths in the folder
CHECKPOINTS: Parts = {"checkpoints": ("checkpoints/step-*.npz",)}
MODEL: Parts = {"models of trials": ("model.keras", "vocabulary.txt")}
# Last heartbeat, times of epochs, lease: `accepted/trial.json` has the result.
REST: Parts = {"states of trials": ("state.json", "timings.jsonl", "lease.json")}
HALF_WRITTEN: Parts = {"half-written files": (".*.tmp*", "*/.*.tmp*", "tensorboard/*/.*.tmp*")}

OF_A_RUN: Parts = CHECKPOINTS | HALF_WRITTEN
OF_A_TRIAL: Parts = OF_A_RUN | MODEL | REST  # outside of the best trials
OF_AN_ATTEMPT: Parts = CHECKPOINTS | MODEL | HALF_WRITTEN  # not the accepted one


@dataclass
class Pruned:
    """The files that were removed, or could be."""

    num_files: Counter[str] = field(default_factory=Counter)  # by part
    num_bytes: Counter[str] = field(default_factory=Counter)
    num_runs: int = 0  # finished runs that were checked
    left: list[tuple[Path, str]] = field(default_factory=list)  # kept folders and the reasons


def prune(folder: Path, parts: Parts, done: Pruned | None = None, *, really: bool) -> Pruned:
    """Remove parts of a finished run, or with `really=False` only measure them.

    Returns:
        `done`, or a new one, with the files of this run.
    """
    done = done or Pruned()
    has_checkpoints = False
    for part, patterns in parts.items():
        for pattern in patterns:
            for file, size in _own_files(folder, pattern):
                if really:
                    try:
                        file.unlink()
                    except OSError:  # already removed, or the disk refuses
                        continue
                has_checkpoints |= part in CHECKPOINTS
                done.num_files[part] += 1
                done.num_bytes[part] += size
    if really and has_checkpoints:
        with contextlib.suppress(OSError):  # another process may have filled it
            os.rmdir(folder / "checkpoints")  # noqa: PTH106 - a folder, never a link
    return done


def refusal(folder: Path) -> str:
    """Why no file of a folder may be removed: a link, another user's, unfinished; empty if it may.

    Raises:
        OSError: if the folder is missing, or can't be read.
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


def _own_files(folder: Path, pattern: str) -> Iterator[tuple[Path, int]]:
    """This user's regular files that match a pattern, with their sizes in bytes."""
    if folder.is_symlink():
        return
    real = folder.resolve()
    for file in sorted(folder.glob(pattern)):
        if file.parent.resolve() != real / file.parent.relative_to(folder):
            continue  # behind a link
        with contextlib.suppress(FileNotFoundError):
            about = file.lstat()
            if stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid():
                yield file, about.st_size


NUM_KEPT = 5  # trials


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
        parts = self.parts_of(trials, goes_on=self.search.continues_trials and not is_over)
        in_threads(lambda run: prune(run, parts[run], really=True), [*parts])

    def parts_of(self, trials: Sequence[Trial], *, goes_on: bool = False) -> dict[Path, Parts]:
        """The removable parts of the runs of ended trials, by folder; a later call omits them.

        Args:
            trials: all trials of the sweep.
            goes_on: whether a later trial may need the checkpoint of an ended one.
        """
        found: dict[Path, Parts] = {}
        ended = [each for each in ranked(trials, self.search) if each.attempt]
        for rank, each in enumerate(ended):
            is_best = rank < NUM_KEPT
            how = each.n, is_best, goes_on
            if how not in self._done:
                self._done.add(how)
                accepted = self.sweep.path(attempt_folder(each.n, each.attempt))
                for folder in find_runs([self.sweep.path(trial_folder(each.n))]):
                    parts = OF_A_RUN if is_best else OF_A_TRIAL
                    if folder.parent != accepted or each.error:
                        found[folder] = OF_AN_ATTEMPT
                    elif is_best or goes_on:
                        found[folder] = {k: v for k, v in parts.items() if k not in CHECKPOINTS}
                    else:
                        found[folder] = parts
        return found


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
                _prune_sweep(SweepDirectory(folder), done, really=really)
            else:
                prune(folder, OF_A_RUN, done, really=really)
                done.num_runs += 1
        except FileNotFoundError:  # removed meanwhile
            continue
        except (OSError, DiskError, InputError) as error:  # other folders may be readable
            done.left.append((folder, f"can't be read: {getattr(error, 'strerror', error)}"))
    return done


def _prune_sweep(sweep: SweepDirectory, done: Pruned, *, really: bool) -> None:
    real = sweep.folder.resolve()
    trials = KeptTrials(sweep, sweep.search()).parts_of(sweep.trials())
    for folder, parts in trials.items():
        if folder.resolve() != real / folder.relative_to(sweep.folder):
            done.left.append((folder, "is behind a link"))
        elif sweep.finished():  # again, since it may have got more trials meanwhile
            prune(folder, parts, done, really=really)
            done.num_runs += 1
