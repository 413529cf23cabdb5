"""Folders of sweeps with invented trials."""

from pathlib import Path
from typing import Any

from harness.data.sources import open_sample
from harness.job.search import SEARCH_FILE, load_search
from harness.tracking.run_dir import stamped
from harness.tuning.disk import make_once, to_bytes
from harness.tuning.leaderboard import leaderboard_csv
from harness.tuning.protocol import Attempt, Trial
from harness.tuning.sweep_dir import FOLDERS, SweepDirectory

RANDOM = """
name = "tune_lstm"
[model]
architecture = "lstm"
[train]
epochs = 6
early_stopping_patience = 2
[search]
tuner = "random"
trials = 24
[search.space]
model.pooling = ["last", "max"]
model.units = [16, 32]
train.learning_rate = { min = 0.0001, max = 0.01, log = true }
"""
HYPERBAND = """
name = "tune_all"
[model]
architecture = "gru"
[train]
epochs = 9
[search]
tuner = "hyperband"
[search.space]
model.architecture = ["gru", "stacked_lstm"]
model.second_units = { values = [8, 16], when = { model.architecture = ["stacked_lstm"] } }
model.dropout = { min = 0.1, max = 0.6, step = 0.1 }
"""


def trial(n: int, score: float | None, **fields: Any) -> Trial:
    """Make a trial: finished (`score`), failed (`error`), running (`worker`), or else waiting."""
    common: dict[str, Any] = {"n": n, "values": {"model.units": 16}}
    if score is not None:
        common |= {"attempt": 1, "scores": {"val_accuracy": score}, "epochs": 3, "kept_epoch": 2.0}
        common |= {"training_s": 61.0, "parameters": 1000}
    elif "error" in fields:
        common["attempt"] = 1
    return Trial.model_validate(common | fields)


def make_sweep(folder: Path, toml: str, *trials: Trial, finished: bool = False) -> SweepDirectory:
    """Write a sweep on the packaged sample with these trials."""
    folder.mkdir(parents=True)
    (folder / SEARCH_FILE).write_text(toml)
    search = load_search(folder / SEARCH_FILE)
    (folder / SEARCH_FILE).write_text(search.to_toml())
    for name in FOLDERS:
        (folder / name).mkdir()
    sweep = SweepDirectory(folder)
    sweep.write_json("provenance.json", stamped({"dataset": open_sample().record()}))
    for each in trials:
        add_trial(sweep, each)
    if trials:
        sweep.write("leaderboard.csv", leaderboard_csv(trials, search))
    if finished:
        sweep.write_json("result.json", {"best_trial": trials[0].n, "trials": search.table.trials})
    return sweep


def add_trial(sweep: SweepDirectory, each: Trial) -> None:
    """Add a trial with the files of its proposer and its worker."""
    folder = sweep.path("trials", str(each.n))
    proposal = Trial(n=each.n, values=each.values, limit=each.limit, parent=each.parent)
    make_once(folder, {"values.json": to_bytes(proposal)})
    if each.worker or each.attempt:
        owner = Attempt(worker="0" * 32, name=each.worker)
        make_once(folder / str(each.attempt or 1), {"owner.json": to_bytes(owner)})
    if each.attempt:
        accept(sweep, each)


def accept(sweep: SweepDirectory, trial: Trial) -> Trial:
    """Write a trial as accepted, and return it."""
    folder = sweep.path("trials", str(trial.n))
    folder.mkdir(exist_ok=True)
    assert make_once(folder / "accepted", {"trial.json": to_bytes(trial)})
    return trial
