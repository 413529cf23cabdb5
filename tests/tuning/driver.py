"""Drives the oracle of a search in this process, with invented scores instead of training."""

import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras_tuner as kt

from harness.job.search import load_search
from harness.tuning import worker
from harness.tuning.disk import Disk
from harness.tuning.protocol import Trial, View
from harness.tuning.schedule import Schedule


def schedule_of(folder: Path, toml: str, known: Sequence[Trial] = ()) -> Schedule:
    """Return the schedule of a search, in which the trials `known` already exist."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.toml").write_text(toml)
    view = View(Disk(folder), known=[*known])
    return worker.schedule_of(load_search(folder / "search.toml"), view)


def all_of(schedule: Schedule) -> list[Trial]:
    """Return the proposals that need no further result."""
    return list(iter(schedule.next, None))


def checksum(values: Mapping[str, Any]) -> float:
    """Return a score that depends on all values."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode()) % 97 / 97


def offer(
    schedule: Schedule, trial: Trial, score: Callable[[Mapping[str, Any]], float] = checksum
) -> None:
    """Add the result of a trial."""
    scores = {schedule.oracle.objective.name: score(trial.values)}
    assert isinstance(schedule.results, dict)
    schedule.results[trial.n] = trial.model_copy(update={"scores": scores})


def drive(
    schedule: Schedule, score: Callable[[Mapping[str, Any]], float] = checksum
) -> list[Trial]:
    """Run a search to its end, with results in a random order, and return its trials."""
    chance, found, running = random.Random(len(schedule.known)), [], []  # noqa: S311 - no secret
    while not schedule.is_over:
        new = all_of(schedule)
        found += new
        running += new
        if running:
            offer(schedule, running.pop(chance.randrange(len(running))), score)
    return found


def end(oracle: kt.Oracle, trial: kt.engine.trial.Trial, score: float | None) -> None:
    """End a trial with a score, or as failed if the score is None."""
    if score is None:
        trial.status = "FAILED"
    else:
        oracle.update_trial(trial.trial_id, {oracle.objective.name: score})
        trial.status = "COMPLETED"
    oracle.end_trial(trial)
