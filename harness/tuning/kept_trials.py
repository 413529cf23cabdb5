"""A sweep keeps the models and checkpoints of its best trials; of the others, what they scored.

A trial that is not among the best now never will be: a later one only pushes it further down. So
what it holds that can be made again goes at once, and for the tuners whose trials go on from older
ones the checkpoints go when the search is over. A search that then gets more trials trains such a
parent's epochs again, to the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

from harness.files.plain_file import in_threads
from harness.search_space import SearchSpec
from harness.tracking.disk_use import CHECKPOINTS, OF_A_RUN, OF_A_TRIAL, OF_AN_ATTEMPT, Parts, prune
from harness.tracking.run_dir import RunDirectory
from harness.tracking.run_folders import find_runs
from harness.tuning.leaderboard import ranked
from harness.tuning.records import Trial, attempt_folder
from harness.tuning.sweep_dir import SweepDirectory

NUM_KEPT = 5  # trials


class KeptTrials:
    """Removes what can be made again of a sweep's other trials, while it is searched."""

    def __init__(self, sweep: SweepDirectory, search: SearchSpec) -> None:
        self.sweep, self.search = sweep, search
        self._done: set[tuple[int, bool]] = set()

    def trim(self, trials: Sequence[Trial], *, is_over: bool = False) -> None:
        """Keep the best; an error of the disk only leaves files there.

        Args:
            trials: all of them.
            is_over: whether no trial will be trained any more.
        """
        ended = [each for each in ranked(trials, self.search) if each.attempt]
        keeps = self.search.continues_trials and not is_over
        parts = _but_checkpoints(OF_A_TRIAL) if keeps else OF_A_TRIAL
        new = [each for each in ended[NUM_KEPT:] if (each.n, keeps) not in self._done]
        self._done |= {(each.n, keeps) for each in new}
        runs = [
            self.sweep.trial_run(each.n, each.attempt, seed)
            for each in new
            for seed in self.search.seeds()
        ]
        in_threads(lambda run: prune(run.folder, parts, really=True) if run.finished() else 0, runs)


def parts_of_trials(sweep: SweepDirectory) -> dict[Path, Parts]:
    """What may go of the runs of a finished sweep's trials, by their folders.

    Raises:
        DiskError: if the trials can't be read.
        InputError: if the search is broken.
    """
    ended = [each for each in ranked(sweep.trials(), sweep.search()) if each.attempt]
    accepted = [sweep.path(attempt_folder(each.n, each.attempt)) for each in ended]
    best, found = set(accepted[:NUM_KEPT]), {}
    for folder in find_runs([sweep.path("trials")]):
        if folder.parent in best:
            found[folder] = _but_checkpoints(OF_A_RUN)
        elif folder.parent in accepted and RunDirectory(folder).finished():
            found[folder] = OF_A_TRIAL
        else:
            found[folder] = OF_AN_ATTEMPT
    return found


def _but_checkpoints(parts: Parts) -> Parts:
    return {name: files for name, files in parts.items() if name not in CHECKPOINTS}
