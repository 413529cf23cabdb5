"""A sweep keeps the models and checkpoints of its best trials; of the others, what they scored.

A trial that is not among the best now never will be: a later one only pushes it further down. So
what it holds that can be made again goes at once, and for the tuners whose trials go on from older
ones the checkpoints go when the search is over. A search that then gets more trials trains such a
parent's epochs again, to the same bytes. `harness prune` frees the same of older sweeps, and the
last checkpoints of finished runs.

A run keeps what describes it: job, record, metrics, scores, predictions, model, curves. All else
can be made again by training its `job.toml`, to the same bytes. Nothing is removed through a link,
and no file of another user. Each file can go alone, so a process killed between two leaves nothing
to mend.
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
# The heartbeat's last words, the times of epochs, the lease: a trial's result has what counts.
REST: Parts = {"states of trials": ("state.json", "timings.jsonl", "lease.json")}
HALF_WRITTEN: Parts = {"half-written files": (".*.tmp*", "*/.*.tmp*", "tensorboard/*/.*.tmp*")}

OF_A_RUN: Parts = CHECKPOINTS | HALF_WRITTEN
OF_A_TRIAL: Parts = OF_A_RUN | MODEL | REST  # that is not among the best of its sweep
OF_AN_ATTEMPT: Parts = CHECKPOINTS | MODEL | HALF_WRITTEN  # whose result was not the one accepted


@dataclass
class Pruned:
    """What was removed, or could be."""

    num_files: Counter[str] = field(default_factory=Counter)  # by part
    num_bytes: Counter[str] = field(default_factory=Counter)
    num_runs: int = 0  # finished runs that were checked
    left: list[tuple[Path, str]] = field(default_factory=list)  # kept folders and the reasons


def prune(folder: Path, parts: Parts, done: Pruned | None = None, *, really: bool) -> Pruned:
    """Remove parts of a finished run, or with `really=False` only measure them.

    Returns:
        `done`, or a new one, with what there is or was removed.
    """
    done = done or Pruned()
    has_checkpoints = False
    for part, patterns in parts.items():
        for pattern in patterns:
            for file, size in _own_files(folder, pattern):
                if really:
                    try:
                        file.unlink()
                    except OSError:  # it is gone, or the disk refuses
                        continue
                has_checkpoints |= part in CHECKPOINTS
                done.num_files[part] += 1
                done.num_bytes[part] += size
    if really and has_checkpoints:
        with contextlib.suppress(OSError):  # another process may have come, and fill it
            os.rmdir(folder / "checkpoints")  # noqa: PTH106 - a folder, never a link
    return done


def refusal(folder: Path) -> str:
    """Why nothing of a folder may be removed, empty if it may: a link, another user's, a live run.

    Raises:
        OSError: if it is gone, or can't be read.
    """
    about = folder.lstat()
    if stat.S_ISLNK(about.st_mode):
        return "is a link"
    if about.st_uid != os.getuid():
        return f"belongs to {owner_name(about.st_uid)}"
    if not RunDirectory(folder).finished():
        return "is unfinished"
    # Without its result a run goes on from its last checkpoint.
    if is_sweep(folder) or is_whole(parse_json(read_plain_file(folder / "result.json"))):
        return ""
    return "has a broken result.json"


def _own_files(folder: Path, pattern: str) -> Iterator[tuple[Path, int]]:
    """The plain files of this user that a pattern means, with the space that each takes."""
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
    """What a sweep does not keep of its trials."""

    def __init__(self, sweep: SweepDirectory, search: SearchSpec) -> None:
        self.sweep, self.search = sweep, search
        self._done: set[tuple[int, bool, bool]] = set()

    def trim(self, trials: Sequence[Trial], *, is_over: bool = False) -> None:
        """Keep the best; an error of the disk only leaves files there.

        Args:
            trials: all of them.
            is_over: whether no trial will be trained any more.
        """
        parts = self.parts_of(trials, goes_on=self.search.continues_trials and not is_over)
        in_threads(lambda run: prune(run, parts[run], really=True), [*parts])

    def parts_of(self, trials: Sequence[Trial], *, goes_on: bool = False) -> dict[Path, Parts]:
        """What may go of the runs of trials that have ended, by their folders, each once.

        Args:
            goes_on: whether a trial may begin with the checkpoint of another one.
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
    """Look at the finished runs and searches in some folders, and free what can be made again.

    What is unfinished, a link or another user's is left as it is.

    Args:
        tops: runs, searches, or folders of them.
        really: whether to remove it; else it is only counted.
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
        except FileNotFoundError:  # it was removed meanwhile
            continue
        except (OSError, DiskError, InputError) as error:  # which says nothing of the others
            done.left.append((folder, f"can't be read: {getattr(error, 'strerror', error)}"))
    return done


def _prune_sweep(sweep: SweepDirectory, done: Pruned, *, really: bool) -> None:
    real = sweep.folder.resolve()
    trials = KeptTrials(sweep, sweep.search()).parts_of(sweep.trials())
    for folder, parts in trials.items():
        if folder.resolve() != real / folder.relative_to(sweep.folder):
            done.left.append((folder, "is behind a link"))
        elif sweep.finished():  # it may have been given more trials meanwhile
            prune(folder, parts, done, really=really)
            done.num_runs += 1
