"""TensorBoard's HParams page of a search."""

import json
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest

from harness.job.search import TrialRow
from harness.training.tensorboard_log import TensorBoardLog
from harness.tuning.protocol import Trial
from tests.board.tensorboard_process import Board, make_run
from tests.conftest import Harness, wait_for
from tests.tuning.test_trial import SEARCH, trials_of


@pytest.mark.full
def test_tensorboard_shows_a_search_as_a_row_a_trial(harness: Harness) -> None:
    """A row has the trial's name, the keys that differ, and the objective's mean over seeds."""
    sweep = harness.runs / "tune_it/s"
    text = SEARCH.replace("factor = 2", 'factor = 2\nexecutions = 2\nobjective = "val_f1"')
    trials = trials_of(sweep, f"{text}train.learning_rate = [0.05, 0.1]\n")
    values = {"model.dropout": 0.5, "train.learning_rate": 0.1}
    score = trials.run(Trial(n=3, values=values, limit=2), 1).scores["val_f1"]
    expected = {**values, "train.epochs": 2, "search/val_f1": pytest.approx(score)}
    # The winner has a row, too, but its other keys add no column.
    with TensorBoardLog(make_run(sweep / "winner/best/seed1") / "tensorboard") as log:
        log.hyperparameters(TrialRow("tune_it/seed1", {"model.units": 4}, {"model.units": 4}))
    with Board(harness, sweep) as board:
        keys, metrics, rows = wait_for(partial(whole_page, board, 2))
    assert keys == ["model.dropout", "train.epochs", "train.learning_rate"]
    assert metrics == ["search/val_f1", "epoch/accuracy", "epoch/loss"]
    assert rows.keys() == {"trial 3 of tune_it/s", "tune_it/seed1"}
    assert rows["trial 3 of tune_it/s"].items() >= expected.items()


def whole_page(board: Board, num_rows: int) -> Any:
    """Return keys, metrics and rows of the HParams page; None until all trials have a score."""

    def ask(what: str, request: dict[str, Any]) -> Any:
        return board.json(f"plugin/hparams/{what}?request={quote(json.dumps(request))}")

    about = ask("experiment", {"experimentName": ""})
    keys = [info["name"] for info in about.get("hparamInfos", [])]
    metrics = [info["name"]["tag"] for info in about.get("metricInfos", [])]
    wanted = {"allowedStatuses": ["STATUS_UNKNOWN", "STATUS_RUNNING"], "sliceSize": 100}
    wanted["colParams"] = [{"hparam": name, "includeInResult": True} for name in keys]
    rows = {
        row["name"]: row["hparams"]
        | {each["name"]["tag"]: each["value"] for each in row.get("metricValues", [])}
        for row in ask("session_groups", wanted).get("sessionGroups", [])
    }
    scored = [name for name, row in rows.items() if "search/val_f1" in row or "seed" in name]
    return (keys, metrics, rows) if len(scored) == num_rows else None
