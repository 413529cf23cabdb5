"""A sweep keeps the models and checkpoints of its best trials; of the others, what they scored.

A trial that is not among the best now never will be: a later one only pushes it further down. So
what it holds that can be made again goes at once, and for the tuners whose trials go on from older
ones the checkpoints go when the search is over. A search that then gets more trials trains such a
parent's epochs again, to the same bytes. `harness prune` frees the same of older sweeps, and the
last checkpoints of finished runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import DiskError, InputError
from harness.job.search_space import SearchSpec, is_sweep
from harness.system.files import in_threads
from harness.tracking.disk_use import (
    CHECKPOINTS,
    OF_A_RUN,
    OF_A_TRIAL,
    OF_AN_ATTEMPT,
    Amount,
    Parts,
    prune,
    refusal,
)
from harness.tracking.run_dir import find_runs
from harness.tuning.leaderboard import ranked
from harness.tuning.protocol import Trial, attempt_folder, trial_folder
from harness.tuning.sweep_dir import SweepDirectory

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


@dataclass
class Pruned:
    """What was removed, or can be."""

    amount: Amount = field(default_factory=Amount)
    num_runs: int = 0  # finished ones that were looked at
    left: list[tuple[Path, str]] = field(default_factory=list)  # left as they are, and why


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
                done.amount += prune(folder, OF_A_RUN, really=really)
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
            done.amount += prune(folder, parts, really=really)
            done.num_runs += 1
