"""A sweep keeps the models and checkpoints of its best trials; of the others, what they scored.

A trial that is not among the best now never will be: a later one only pushes it further down. So
what it holds that can be made again goes at once, and for the tuners whose trials go on from older
ones the checkpoints go when the search is over. A search that then gets more trials trains such a
parent's epochs again, to the same bytes.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from harness.files.plain_file import in_threads
from harness.search_space import SearchSpec
from harness.tracking.disk_use import CHECKPOINTS, OF_A_RUN, OF_A_TRIAL, OF_AN_ATTEMPT, Parts, prune
from harness.tracking.run_dir import RunDirectory
from harness.tracking.run_folders import find_runs
from harness.tuning.sweep_dir import SweepDirectory, Trial, ranked, ranked_rows

NUM_KEPT = 5  # trials
ATTEMPT = re.compile(r"\d+/\d+\.\d+")


class KeptTrials:
    """Removes what can be made again of a sweep's other trials, while it is searched."""

    def __init__(self, sweep: SweepDirectory, search: SearchSpec) -> None:
        self.sweep, self.search = sweep, search
        self._done: set[tuple[str, bool]] = set()

    def trim(self, trials: Sequence[Trial], *, is_over: bool = False) -> None:
        """Keep the best; an error of the disk only leaves files there.

        Args:
            trials: all of them.
            is_over: whether no trial will be trained any more.
        """
        ordered = ranked(trials, self.search.goal)
        ended = [each for each in ordered if each.status in ("finished", "failed") and each.attempt]
        keeps = self.search.continues_trials and not is_over
        parts = _but_checkpoints(OF_A_TRIAL) if keeps else OF_A_TRIAL
        new = [each.attempt for each in ended[NUM_KEPT:] if (each.attempt, keeps) not in self._done]
        self._done |= {(attempt, keeps) for attempt in new}
        runs = [
            self.sweep.trial_run(attempt, seed) for attempt in new for seed in self.search.seeds()
        ]
        in_threads(lambda run: prune(run.folder, parts, really=True) if run.finished() else 0, runs)


def parts_of_trials(sweep: SweepDirectory) -> dict[Path, Parts]:
    """What may go of the runs of a finished sweep's trials, by their folders.

    Raises:
        InputError: if the leaderboard is broken.
    """
    rows = ranked_rows(sweep)
    attempts = [row.get("attempt") or "" for row in rows]
    best = {attempt for attempt in attempts[:NUM_KEPT] if ATTEMPT.fullmatch(attempt)}
    accepted = set(filter(ATTEMPT.fullmatch, attempts))
    found = {}
    for folder in find_runs([sweep.path("trials")]):
        attempt = folder.parent.relative_to(sweep.path("trials")).as_posix()
        if attempt in best:
            found[folder] = _but_checkpoints(OF_A_RUN)
        elif attempt in accepted and RunDirectory(folder).finished():
            found[folder] = OF_A_TRIAL
        else:
            found[folder] = OF_AN_ATTEMPT
    return found


def _but_checkpoints(parts: Parts) -> Parts:
    return {name: files for name, files in parts.items() if name not in CHECKPOINTS}
