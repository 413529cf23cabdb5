"""Folders of sweeps as a search leaves them, without the search."""

from pathlib import Path
from typing import Any

from harness.data.imdb_sources import open_sample
from harness.files.leased_dir import LeasedDirectory
from harness.search_space import SEARCH_FILE, load_search
from harness.tuning.sweep_dir import SweepDirectory, Trial, leaderboard_csv

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


def trial(number: int, score: float | None, **told: Any) -> Trial:
    """A finished trial, or with an error a failed one, or with a status another."""
    values: dict[str, Any] = told.pop("values", {})
    status = "failed" if told.get("error") else told.pop("status", "finished")
    done = status == "finished"
    standard = {
        "epochs": 3 if done else None,
        "kept_epoch": 2.0 if done else None,
        "training_s": 61.0 if done else None,
        "parameters": 1000 if done else None,
        "worker": "",
        "error": "",
    }
    return Trial(f"{number:04d}", status, score, values, **{**standard, **told})


def make_sweep(folder: Path, toml: str, *trials: Trial, finished: bool = False) -> SweepDirectory:
    """A sweep over the packaged sample with these trials in its leaderboard."""
    folder.mkdir(parents=True)
    (folder / SEARCH_FILE).write_text(toml)
    search = load_search(folder / SEARCH_FILE)
    (folder / SEARCH_FILE).write_text(search.to_toml())
    sweep = SweepDirectory(folder)
    writer = LeasedDirectory(folder)
    writer.take_lease()
    sample = open_sample()
    writer.write_json("data.json", {"checksum": sample.checksum, "is_sample": True, "folder": None})
    if trials:
        (folder / "leaderboard.csv").write_bytes(leaderboard_csv(trials, search))
    if finished:
        writer.write_json(
            "result.json", {"best_trial": trials[0].trial, "trials": search.table.trials}
        )
    return sweep
