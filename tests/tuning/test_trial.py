"""A trial in a worker: its scores, its errors, and the trial or attempt that it continues."""

import errno
import gc
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from harness.data.dataset import Dataset
from harness.data.vocabulary import vectors_checksum
from harness.errors import DiskError, InputError, Interrupted
from harness.inference.model_file import load_model
from harness.system.console import Console
from harness.system.processes import StopRequest
from harness.system.resource_monitor import ResourceMonitor
from harness.training import checkpoint
from harness.training.metrics import test_scores as scores_of
from harness.tuning.protocol import Trial
from harness.tuning.prune_runs import CHECKPOINTS, MODEL, Pruned
from harness.tuning.sweep_dir import VectorsChanged
from harness.tuning.trial import Trials
from tests.training.test_trainer import TEST, TRAIN
from tests.tuning.made_up_sweep import accept, make_sweep

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
    """Return the `Trials` object of a worker in a small search."""
    console = Console()
    console.silent = True
    vocab = [f"word{i}" for i in range(40)]
    sweep = make_sweep(folder, f'name = "tune_it"\n{text}')
    return Trials(
        sweep,
        sweep.search(),
        Dataset(TRAIN, TEST, vocab, checksum="made up"),
        tf.distribute.get_strategy(),
        console,
        ResourceMonitor(0, 1),
        StopRequest(),
    )


def dropout(n: int, value: float = 0.5, **proposed: Any) -> Trial:
    """Return trial `n` with this dropout."""
    return Trial(n=n, values={"model.dropout": value}, **proposed)


def train(trials: Trials, n: int, k: int = 1, **proposed: Any) -> Trial:
    """Train an attempt at a trial with dropout, and accept it."""
    trial = trials.run(dropout(n, **proposed), k)
    assert trial.error == ""
    return accept(trials.sweep, trial)


def lines(trials: Trials, n: int, k: int = 1, *, timed: bool) -> list[dict[str, Any]]:
    """Return the metrics or, if `timed`, the times of the epochs of an attempt's run."""
    name = "timings.jsonl" if timed else "metrics.jsonl"
    text = trials.sweep.trial_run(n, k, 1).path(name).read_text()
    return [json.loads(line) for line in text.splitlines()]


def model(trials: Trials, n: int, k: int = 1) -> bytes:
    """Return the bytes of an attempt's `model.keras`."""
    return trials.sweep.trial_run(n, k, 1).path("model.keras").read_bytes()


def num_graphs() -> int:
    gc.collect()
    return sum(isinstance(thing, tf.Graph) for thing in gc.get_objects())


@pytest.fixture(scope="module")
def rungs(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    """Trials 0, 1 and 2 are one training in three rungs; trial 9 has all its epochs in one rung."""
    trials = trials_of(tmp_path_factory.mktemp("rungs") / "sweep")
    for n, limit in ((0, 2), (1, 3), (2, 6)):
        train(trials, n, limit=limit, parent=n - 1 if n else None)
    train(trials, 9, limit=6)
    return trials


@pytest.mark.full
def test_a_promoted_trial_has_the_bytes_of_one_long_training(rungs: Trials) -> None:
    """The trial passes three rungs, with dropout and a reduced learning rate.

    The training loop computes the objective, so no other score is computed.
    """
    assert model(rungs, 2) == model(rungs, 9)
    scores = {key for key in rungs.sweep.trial_run(2, 1, 1).result() if key.startswith("val_")}
    assert scores == {"val_loss", "val_accuracy"}
    metrics = lines(rungs, 9, timed=False)
    assert lines(rungs, 2, timed=False) == metrics
    assert len({line["learning_rate"] for line in metrics}) > 1
    # Equal times show that no epoch was trained twice.
    assert lines(rungs, 2, timed=True)[:3] == lines(rungs, 1, timed=True)
    assert lines(rungs, 1, timed=True)[:2] == lines(rungs, 0, timed=True)


@pytest.mark.full
def test_a_promoted_trial_with_callbacks_trains_all_its_epochs(tmp_path: Path) -> None:
    """This callback ends the training halfway, so the parent's checkpoint lacks an epoch."""
    (tmp_path / "halves.py").write_text(
        "import keras\n\n\nclass Halve(keras.callbacks.Callback):\n"
        "    def on_epoch_end(self, epoch, logs=None):\n"
        "        self.model.stop_training = 2 * (epoch + 1) >= self.params['epochs']\n\n\n"
        "def halve():\n    return Halve()\n"
    )
    keys = f"epochs = 6\ncallbacks = ['{tmp_path}/halves.py:halve']"
    trials = trials_of(tmp_path / "sweep", SEARCH.replace("epochs = 6", keys))
    for n, limit in ((0, 2), (1, 6)):
        train(trials, n, limit=limit, parent=n - 1 if n else None)
    train(trials, 2, limit=6)
    assert [len(lines(trials, n, timed=False)) for n in range(3)] == [1, 3, 3]
    assert model(trials, 1) == model(trials, 2)
    assert lines(trials, 1, timed=True)[0] != lines(trials, 0, timed=True)[0]


@pytest.mark.full
def test_an_attempt_continues_from_the_newest_whole_checkpoint(
    rungs: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new attempt searches all earlier attempts, and ends with an undisturbed attempt's bytes."""
    checks = itertools.count()

    def stop() -> None:
        if next(checks) == 9:
            raise Interrupted("the test")

    with monkeypatch.context() as patch:
        patch.setattr(rungs.stop, "check", stop)
        with pytest.raises(Interrupted):
            train(rungs, 5, limit=6)
    assert rungs.saved(5, 1) > 0
    newest = rungs.sweep.trial_run(5, 1, 1).checkpoints()[-1]
    broken = rungs.sweep.trial_run(5, 2, 1).path("checkpoints", newest.name)
    broken.parent.mkdir(parents=True)
    broken.write_bytes(newest.read_bytes()[:-100])  # the attempt ended while copying
    train(rungs, 5, 3, limit=6)
    assert model(rungs, 5, 3) == model(rungs, 9)
    done = len(lines(rungs, 5, timed=True))
    assert done >= 1
    assert lines(rungs, 5, 3, timed=True)[:done] == lines(rungs, 5, timed=True)


@pytest.mark.full
def test_a_trial_without_its_parents_checkpoint_trains_the_parents_epochs(
    rungs: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning names a checkpoint of other data, or a broken or pruned one; the bytes are equal.

    TensorFlow's global registry of gradients does not keep the graphs of the ended trial.
    """
    warnings: list[str] = []
    monkeypatch.setattr(rungs.console, "warning", warnings.append)
    parent = rungs.sweep.trial_run(0, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(rungs, "dataset", replace(rungs.dataset, checksum="other"))
        train(rungs, 6, limit=3, parent=0)
    for path in parent.checkpoints():
        path.write_bytes(path.read_bytes()[:-100])
    train(rungs, 3, limit=3, parent=0)
    before = num_graphs()
    Pruned().prune(parent.folder, parent.folder, CHECKPOINTS)
    train(rungs, 4, limit=3, parent=0)
    assert num_graphs() == before
    assert model(rungs, 3) == model(rungs, 4) == model(rungs, 1)
    assert warnings == ["trial 0: its checkpoint can't be used; its epochs are trained again"] * 3
    last = rungs.sweep.trial_run(4, 1, 1)
    Pruned().prune(last.folder, last.folder, MODEL)
    with pytest.raises(InputError, match=r"has no model.keras .*again with: harness train .*4/1/"):
        load_model(last)


@pytest.mark.full
def test_a_process_may_grow_by_half_after_its_first_run(
    rungs: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new process replaces a process that has grown more."""
    assert rungs._first_gb > 0
    monkeypatch.setattr(rungs, "_first_gb", 2.0)
    for held_gb in (2.9, 3.1):
        monkeypatch.setattr("harness.tuning.trial.resident_memory_gb", lambda gb=held_gb: gb)
        assert rungs.has_grown() is (held_gb > 3)


@pytest.mark.full
def test_an_objective_is_the_mean_score_of_the_saved_weights(tmp_path: Path) -> None:
    """The mean is over the runs of a trial; the scores are those of each `model.keras`."""
    import keras

    from harness.data.input_pipeline import training_reviews

    text = SEARCH.replace('"asha"\nfactor = 2', '"random"\nexecutions = 2\nobjective = "val_f1"')
    trials = trials_of(tmp_path / "sweep", text)
    reported = trials.run(dropout(0, 0.0), 1).scores
    found = []
    for seed in (1, 2):
        run = trials.sweep.trial_run(0, 1, seed)
        model = keras.models.load_model(run.path("model.keras"))
        _, validation, _ = training_reviews(run.job(), trials.dataset)
        rows = np.split(validation.tokens, validation.offsets[1:-1])
        padded = keras.utils.pad_sequences(rows, maxlen=6)
        found.append(scores_of(validation.labels, model.predict(padded, verbose=0)[:, 0]))
    assert found[0]["f1"] != found[1]["f1"]
    for name in ("f1", "roc_auc", "log_loss", "accuracy"):
        mean = (found[0][name] + found[1][name]) / 2
        assert reported[f"val_{name}"] == pytest.approx(mean, rel=1e-5), name


def test_a_trial_has_the_means_of_its_runs(tmp_path: Path) -> None:
    """The run of the first seed stopped early; the epochs are those of the longest run.

    A score that a run lacks has no mean. A trial without a score for the objective fails.
    """
    text = SEARCH.replace('"asha"\nfactor = 2', '"random"\nexecutions = 2\nobjective = "val_f1"')
    trials = trials_of(tmp_path / "sweep", text)
    results: list[dict[str, float | None]] = [
        {"num_epochs": 2, "val_accuracy": 0.8, "val_f1": 0.0, "val_roc_auc": None},
        {"num_epochs": 6, "val_accuracy": 0.6, "val_f1": 0.5, "val_roc_auc": 0.7},
    ]
    for seed, result in enumerate(results, 1):
        run = trials.sweep.trial_run(0, 1, seed)
        run.folder.mkdir(parents=True)
        result["kept_epoch"] = result["num_epochs"]
        run.write_json("result.json", {"classes": [], "dataset_checksum": "", **result})
    trial = trials.run(dropout(0), 1)
    assert (trial.error, trial.epochs, trial.kept_epoch) == ("", 6, 4)
    assert trial.scores == pytest.approx({"val_accuracy": 0.7, "val_f1": 0.25})
    table = trials.search.table.model_copy(update={"objective": "val_roc_auc"})
    trials.search = replace(trials.search, table=table)
    error = trials.run(dropout(0), 1).error
    assert re.search(r"search.objective = 'val_roc_auc'.*all of one class", error)


def test_an_error_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk raises OSError, so that the trial is repeated.

    Any other error fails the trial, with one short, printable line. An unreadable checkpoint of the
    parent does not count as missing.
    """
    trials = trials_of(tmp_path / "sweep")
    path = trials.sweep.trial_run(0, 1, 1).path("checkpoints", "step-000000003.npz")
    path.parent.mkdir(parents=True)
    path.touch()
    accept(trials.sweep, dropout(0, attempt=1, scores={"val_accuracy": 0.5}))
    child = dropout(1, limit=3, parent=0)
    error: Exception = OSError(errno.EIO, "no disk")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "open_plain_file", fail)
    with pytest.raises(OSError, match="no disk"):
        trials.run(child, 1)
    error = MemoryError("unknown \udcff\n" + "row " * 100_000)
    failed = trials.run(child, 1)
    assert failed.error.startswith("MemoryError: unknown \\udcff row row")
    assert len(failed.model_dump_json()) < 3000
    monkeypatch.setattr(trials, "_run", fail)
    error = DiskError("stale")
    with pytest.raises(OSError, match="stale"):
        trials.run(child, 1)


OWN = """
import keras
import tensorflow as tf
from keras import layers
SEEN = []
@keras.saving.register_keras_serializable("own")
class Scale(layers.Layer):
    def call(self, inputs):
        return inputs * self.scale
    def build(self, shape):
        self.scale = self.add_weight(shape=[], initializer="ones")
def net(vocab_size, config, *, num_outputs, options):
    ends = Scale(), layers.Dropout(0.3), layers.Dense(num_outputs, activation="sigmoid")
    middle = layers.Embedding(vocab_size, 4), layers.GlobalAveragePooling1D()
    return keras.Sequential([keras.Input([None], dtype="int32"), *middle, *ends])
def logits(vocab_size, config, *, num_outputs, options):
    model = net(vocab_size, config, num_outputs=num_outputs, options=options)
    model.layers[-1].activation = None
    return model
def by_batch(labels, probabilities):
    loss = keras.losses.binary_crossentropy(labels[:, None], probabilities)
    return loss - tf.reduce_mean(loss) / 2
class Counts(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        SEEN.append(epoch)
        self.model.optimizer.learning_rate = 0.01 / len(SEEN)
def counts():
    return Counts()
class Asks(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise ConnectionRefusedError(111, "Connection refused")
"""


def own_trials(folder: Path, name: str = "net", keys: str = "") -> Trials:
    """Return the `Trials` object of a search with a custom network; {own} in `keys` is its file."""
    folder.mkdir()
    own = folder / "own.py"
    own.write_text(OWN)
    text = SEARCH.replace('"lstm"\nunits = 4', f'"{own}:{name}"')
    text = text.replace("learning_rate = 0.05", keys.replace("{own}", str(own)))
    text = text.replace("model.dropout = [0.0, 0.5]", "train.learning_rate = [0.05, 0.5]")
    return trials_of(folder / "sweep", text)


def run_own(trials: Trials, n: int) -> Trial:
    return trials.run(Trial(n=n, values={"train.learning_rate": 0.05}, limit=1), 1)


def test_a_trial_checks_own_parts_as_a_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks do not change the model of a sound trial."""
    for name, keys, message in (
        ("logits", "", r"model\.architecture.*its outputs are not probabilities"),
        ("net", "loss = '{own}:by_batch'", r"train\.loss.*loss depends on other examples"),
    ):
        assert re.search(message, run_own(own_trials(tmp_path / name, name, keys), 0).error)
    trials = own_trials(tmp_path / "sound", keys="optimizer_options = { rho = 0.8 }")
    assert run_own(trials, 0).error == ""
    monkeypatch.setattr("harness.tuning.trial.check_own_parts", lambda *_: None)
    assert run_own(trials, 1).error == ""
    assert model(trials, 0) == model(trials, 1)


def test_an_error_of_the_network_in_own_code_fails_the_trial(tmp_path: Path) -> None:
    """It is an OSError, but the disk is fine, so another try would fail too."""
    trials = own_trials(tmp_path / "own", keys='callbacks = ["{own}:Asks"]')
    assert "ConnectionRefusedError" in run_own(trials, 0).error


def test_trials_share_no_variables_of_own_modules(tmp_path: Path) -> None:
    """A layer is registered with Keras anew; the models of both trials can be loaded."""
    trials = own_trials(tmp_path / "own", keys="callbacks = ['{own}:counts']")
    assert [run_own(trials, n).error for n in range(2)] == ["", ""]
    assert model(trials, 0) == model(trials, 1)
    for n in range(2):
        run = trials.sweep.trial_run(n, 1, 1)
        by_keras = tf.keras.models.load_model(run.path("model.keras"))
        assert by_keras.count_params() == load_model(run).count_params()


def test_no_trial_trains_with_other_word_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file changes during the search, the worker ends, and the trial has no result."""
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("word1 1 2 3 4\n")
    keys = f'embedding_dim = 4\nembeddings = "{vectors}"'
    trials = trials_of(tmp_path / "sweep", SEARCH.replace("embedding_dim = 4", keys))
    record = trials.sweep.read_json("provenance.json")
    trials.sweep.write_json("provenance.json", record | {"embeddings": vectors_checksum(vectors)})
    monkeypatch.setattr("harness.tuning.trial.train", lambda *_: pytest.fail("trained"))
    with pytest.raises(pytest.fail.Exception, match="trained"):
        trials.run(dropout(0), 1)
    vectors.write_text("word1 1 2 3 5\n")
    with pytest.raises(VectorsChanged, match="has changed since the sweep began"):
        trials.run(dropout(1), 1)
    vectors.unlink()
    with pytest.raises(VectorsChanged, match="is not a file"):
        trials.run(dropout(2), 1)
