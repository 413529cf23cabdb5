"""A trial as a run: the scores that it reports, and how a longer one goes on."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from harness.data.dataset import Dataset
from harness.errors import RunError
from harness.system.console import Console
from harness.system.resource_monitor import ResourceMonitor
from harness.system.signals import StopRequest
from harness.training.context import Observers
from harness.training.metrics import test_scores as scores_of
from harness.tuning.trial import Trials, mean_scores
from tests.training.test_trainer import TEST, TRAIN
from tests.tuning.made_up_sweep import make_sweep

SEARCH = """
[model]
architecture = "lstm"
units = 4
embedding_dim = 4
[data]
vocab_size = 30
maxlen = 6
validation_split = 0.3
[train]
epochs = 6
batch_size = 16
learning_rate = 0.05
ema_momentum = 0.5
monitor = "val_accuracy"
reduce_lr_patience = 1
early_stopping_patience = 5
xla = "off"
[search]
tuner = "asha"
factor = 2
trials = 4
[search.space]
model.dropout = [0.0, 0.5]
"""


def trials_of(folder: Path, text: str = SEARCH) -> Trials:
    """Trains trials of a small search in this process."""
    console = Console()
    console.silent = True
    vocab = [f"word{i}" for i in range(40)]
    return Trials(
        make_sweep(folder, f'name = "tune_it"\n{text}'),
        Dataset(TRAIN, TEST, vocab, checksum="made up", official=False),
        tf.distribute.get_strategy(),
        observers=Observers(console, ResourceMonitor(0, 1), StopRequest()),
    )


@pytest.mark.full
def test_a_setting_that_goes_on_ends_with_the_bytes_of_one_long_training(tmp_path: Path) -> None:
    """Over three rungs, with a learning rate that is cut on the way and dropout."""
    trials = trials_of(tmp_path / "sweep")
    sweep, parent = trials.sweep, dict[str, str]()
    for trial, epochs in (("0000", 2), ("0001", 3), ("0002", 6)):
        trials.run(trial, {"model.dropout": 0.5, "tuner/epochs": epochs, **parent})
        parent = {"tuner/trial_id": trial}
    trials.run("0009", {"model.dropout": 0.5, "tuner/epochs": 6})
    last, direct = sweep.trial_run("0002", 1), sweep.trial_run("0009", 1)
    assert last.path("model.keras").read_bytes() == direct.path("model.keras").read_bytes()

    def lines(trial: str) -> list[dict[str, Any]]:
        text = sweep.trial_run(trial, 1).path("metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    untimed = [
        [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines(trial)]
        for trial in ("0002", "0009")
    ]
    assert untimed[0] == untimed[1]
    assert len({line["learning_rate"] for line in untimed[1]}) > 1
    # The times too are those of the shorter trials, so no epoch was trained twice.
    assert lines("0002")[:3] == lines("0001")
    assert lines("0001")[:2] == lines("0000")


@pytest.mark.full
def test_an_objective_is_the_score_of_the_saved_weights(tmp_path: Path) -> None:
    """F1, ROC AUC and log loss by scikit-learn over the predictions of the model on disk."""
    import keras

    from harness.training.train import training_reviews

    text = SEARCH.replace('"asha"\nfactor = 2', '"random"\nexecutions = 2\ntie_break = "val_f1"')
    trials = trials_of(tmp_path / "sweep", text)
    reported = trials.run("0000", {"model.dropout": 0.0})
    expected: dict[str, list[Any]] = {"f1": [], "roc_auc": [], "log_loss": [], "accuracy": []}
    for seed in (1, 2):
        run = trials.sweep.trial_run("0000", seed)
        model = keras.models.load_model(run.path("model.keras"))
        _, validation = training_reviews(run.job(), trials.dataset)
        padded = keras.utils.pad_sequences(rows_of(validation), maxlen=6)
        scores = scores_of(validation.labels, model.predict(padded, verbose=0)[:, 0])
        for name, values in expected.items():
            values.append(scores[name])
    assert len(set(expected["f1"])) == 2
    for name, values in expected.items():
        assert reported[f"val_{name}"] == pytest.approx(sum(values) / 2, rel=1e-5), name


def rows_of(reviews: Any) -> list[Any]:
    """The word indices of each review."""
    return [reviews.tokens[begin:end] for begin, end in itertools.pairwise(reviews.offsets)]


RESULT = {"val_accuracy": 0.8, "val_loss": 0.4}


def test_a_score_is_the_mean_over_the_runs_of_a_trial() -> None:
    """Of each that all runs have; a 0 counts."""
    results = [{**RESULT, "val_f1": 0.0}, {**RESULT, "val_f1": 0.5, "val_accuracy": 0.6}]
    means: Mapping[str, float] = mean_scores(results, "val_f1")
    assert means == pytest.approx({"val_accuracy": 0.7, "val_loss": 0.4, "val_f1": 0.25})


def test_one_class_has_no_roc_auc() -> None:
    """The trial fails by one line that names objective and remedy; for others it is no matter."""
    results = [{**RESULT, "val_roc_auc": None, "val_f1": 0.5}]
    assert "val_roc_auc" not in mean_scores(results, "val_f1")
    with pytest.raises(RunError, match=r"search.objective = 'val_roc_auc'.*all of one class"):
        mean_scores(results, "val_roc_auc")
