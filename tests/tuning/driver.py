"""Drives the oracle of a search in this process, with invented scores instead of training."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras_tuner as kt
from keras_tuner.engine.trial import Trial

from harness.job.search import load_search
from harness.tuning.oracle import make_oracle


def oracle_of(folder: Path, toml: str) -> kt.Oracle:
    """Make the oracle of a search."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.toml").write_text(toml)
    return make_oracle(load_search(folder / "search.toml"))


def end(oracle: kt.Oracle, trial: Trial, score: float | None) -> None:
    """End a trial with a score, or as failed if the score is None."""
    if score is None:
        trial.status = "FAILED"
    else:
        oracle.update_trial(trial.trial_id, {oracle.objective.name: score})
        trial.status = "COMPLETED"
    oracle.end_trial(trial)


def drive(
    oracle: kt.Oracle, score: Callable[[Mapping[str, Any]], float], *, workers: int = 1
) -> list[Trial]:
    """Run a search to its end; trials end in a random order.

    Returns:
        The trials in the order in which they began.
    """
    order, running, began = random.Random(0), {}, []  # noqa: S311 - not a secret
    while True:
        for worker in range(workers):
            if worker not in running:
                trial = oracle.create_trial(f"w{worker}")
                if trial.status == "RUNNING":
                    running[worker] = trial
                    began.append(trial)
        if not running:
            assert trial.status == "STOPPED"
            return began
        for worker in order.sample(sorted(running), order.randint(1, len(running))):
            trial = running.pop(worker)
            end(oracle, trial, score(trial.hyperparameters.values))
