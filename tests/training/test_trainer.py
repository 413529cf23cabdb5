"""Tiny runs in this process, compared with the same training in plain Keras and NumPy."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from harness.architectures import sentiment
from harness.compute.execution_plan import ExecutionPlan
from harness.data.dataset import Dataset, Split, make_split
from harness.data.input_pipeline import epoch_permutation
from harness.job.job_file import load_job
from harness.job.keys import Job, TrainConfig
from harness.system.console import Console
from harness.system.processes import StopRequest
from harness.system.resource_monitor import ResourceMonitor
from harness.tracking.run_dir import RunDirectory
from harness.training.context import Compute, RunContext
from harness.training.metrics import exported_epoch
from harness.training.train import train
from harness.training.trainer import Trainer
from tests.conftest import JOBS, metrics

pytestmark = pytest.mark.usefixtures("default_precision")

VOCAB_SIZE, LENGTH, BATCH_SIZE = 30, 6, 16
NUM_TRAINING, NUM_VALIDATION, NUM_TEST = 90, 10, 21  # 90 = 5 full batches of 16, and one of 10
SETTINGS = [
    *("data.vocab_size=30", "data.maxlen=6", "data.validation_split=0.1"),
    *("model.units=4", "model.embedding_dim=4", "model.dropout=0", "model.spatial_dropout=0"),
    *("train.batch_size=16", "train.precision=float64", "train.ema_momentum=0"),
    *("train.steps_per_execution=2", "train.log_every_steps=3", "train.xla=off"),
]


def made_up_split(num_reviews: int, seed: int) -> Split:
    """Make reviews of 3 to 9 words with noisy labels; some words are not in the vocabulary."""
    generator = np.random.default_rng(seed)
    reviews = [
        generator.integers(1, 40, generator.integers(3, 10)).tolist() for _ in range(num_reviews)
    ]
    labels = [int(sum(review) / len(review) + generator.normal(0, 5) > 20) for review in reviews]
    return make_split(reviews, labels)


TRAIN, TEST = made_up_split(NUM_TRAINING + NUM_VALIDATION, 1), made_up_split(NUM_TEST, 2)


def train_in(
    folder: Path,
    job: Job,
    *,
    strategy: tf.distribute.Strategy | None = None,
    plan: ExecutionPlan | None = None,
    test: Split | None = None,
    stop: StopRequest | None = None,
) -> RunDirectory:
    """Begin or resume a run on the made-up reviews."""
    keras.utils.clear_session()  # so that layers get the names of a new process
    console = Console()
    console.silent = True
    run = RunDirectory(folder)
    dataset = Dataset(TRAIN, test or TEST, [f"word{i}" for i in range(40)], checksum="made up")
    train(
        RunContext(run, job, dataset),
        Compute(
            strategy or tf.distribute.get_strategy(),
            plan or ExecutionPlan("keras", 1),
            console,
            ResourceMonitor(0, 1),
            stop or StopRequest(),
        ),
    )
    return run


def trained(folder: Path, *settings: str) -> tuple[RunDirectory, Job, list[dict[str, Any]]]:
    """Train in `folder`; return the run, its job and its metrics."""
    job = load_job(JOBS / "lstm.toml", [*SETTINGS, *settings])
    run = train_in(folder / "run", job)
    return run, job, metrics(run.folder)


# The reference


def encoded(split: Split) -> np.ndarray:
    """Return `[num_reviews, LENGTH]`: 0 as padding, 1 as start, 2 for rare words, else rank + 3."""
    rows = []
    for first, end in zip(split.offsets, split.offsets[1:], strict=False):
        tokens = [1] + [t + 3 if t + 3 < VOCAB_SIZE else 2 for t in split.tokens[first:end]]
        rows.append(([0] * LENGTH + tokens)[-LENGTH:])
    return np.array(rows, np.int32)


def losses_of(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the binary cross-entropy of each review."""
    return -np.log(np.where(labels == 1, probabilities, 1 - probabilities))


def reference(job: Job, rates: list[float]) -> list[dict[str, float]]:
    """Train the network in plain Keras, one epoch per learning rate, and return its metrics."""
    keras.utils.set_random_seed(job.train.seed)
    keras.config.set_dtype_policy("float64")
    model = sentiment(VOCAB_SIZE, job.model)
    optimizer = keras.optimizers.get(job.train.optimizer)
    tokens, labels = encoded(TRAIN), TRAIN.labels
    training, validation = slice(0, NUM_TRAINING), slice(NUM_TRAINING, None)
    lines = []
    for epoch, rate in enumerate(rates):
        optimizer.learning_rate = rate
        order = epoch_permutation(job.train.seed, epoch, NUM_TRAINING)
        losses: list[float] = []
        correct: list[bool] = []
        for start in range(0, NUM_TRAINING, BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            with tf.GradientTape() as tape:
                outputs = model(tokens[training][chosen], training=True)[:, 0]
                y = tf.constant(labels[chosen], tf.float64)
                loss = -tf.reduce_mean(
                    y * tf.math.log(outputs) + (1 - y) * tf.math.log(1 - outputs)
                )
            variables = model.trainable_variables
            gradients = tape.gradient(loss, [v.value for v in variables])
            optimizer.apply([tf.convert_to_tensor(g) for g in gradients], variables)
            losses.extend(losses_of(labels[chosen], outputs.numpy()))
            correct.extend((outputs.numpy() > 0.5) == labels[chosen])
        outputs = model.predict_on_batch(tokens[validation])[:, 0]
        lines.append(
            {
                "loss": np.mean(losses),
                "accuracy": np.mean(correct),
                "val_loss": np.mean(losses_of(labels[validation], outputs)),
                "val_accuracy": np.mean((outputs > 0.5) == labels[validation]),
            }
        )
    return lines


# The tests


def test_a_stop_in_on_train_begin_ends_the_run_after_an_epoch(tmp_path: Path) -> None:
    """Without an epoch there would be no weights to keep."""
    (tmp_path / "cb.py").write_text(
        "import keras\nclass Ends(keras.callbacks.Callback):\n"
        "    def on_train_begin(self, logs=None): self.model.stop_training = True\n"
    )
    callback = f'train.callbacks=["{tmp_path}/cb.py:Ends"]'
    _, _, lines = trained(tmp_path, callback, "train.epochs=3", "data.maxlen=3")
    assert [line["epoch"] for line in lines] == [1]


@pytest.mark.full
def test_an_epoch_has_its_metrics_times_and_checksum(tmp_path: Path) -> None:
    """`metrics.jsonl` has no times; its checksum covers the model, then the optimizer."""
    run, _, lines = trained(tmp_path, "train.epochs=2")
    scores = {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "checksum"}
    assert [set(line) for line in lines] == [scores] * 2
    timings = map(json.loads, run.path("timings.jsonl").read_text().splitlines())
    times = {"epoch", "epoch_s", "reviews_per_s", "validation_s"}
    assert [(set(line), line["epoch"]) for line in timings] == [(times, 1), (times, 2)]
    state = json.loads(run.path("state.json").read_text())
    assert [state[name] for name in ("step", "num_steps", "eta_s")] == [12, 12, 0.0]
    digest = hashlib.sha256()
    with np.load(run.checkpoints()[-1]) as arrays:
        for kind in ("model", "optimizer"):
            for number in range(sum(name.startswith(f"{kind}/") for name in arrays.files)):
                digest.update(arrays[f"{kind}/{number}"].tobytes())
    assert lines[-1]["checksum"] == digest.hexdigest() != lines[0]["checksum"]


def test_the_remaining_time_leaves_out_the_compilation() -> None:
    """The first results of a process took longer, because TensorFlow compiled the kernels."""
    trainer: Any = Trainer.__new__(Trainer)
    trainer._compiled, trainer.progress = None, SimpleNamespace(training_s=90.0)
    assert trainer._eta_s(10, 100) is None
    trainer.progress.training_s = 100.0
    assert trainer._eta_s(30, 100) == 35.0


@pytest.mark.full
def test_reported_metrics_are_those_of_plain_keras(tmp_path: Path) -> None:
    """The last batch is smaller. The rate is cut after epochs without an improvement."""
    cuts = ["train.reduce_lr_patience=2", "train.reduce_lr_factor=0.1", "train.monitor=val_loss"]
    _, job, lines = trained(tmp_path, *cuts, "train.epochs=7", "train.learning_rate=0.05")
    rates, best, waited = [0.05], np.inf, 0
    for line in lines[:-1]:
        waited = 0 if line["val_loss"] < best - 1e-4 else waited + 1
        best = min(best, line["val_loss"]) if waited == 0 else best
        rates.append(rates[-1] * (0.1 if waited == 2 else 1))
        waited %= 2
    reported = [line["learning_rate"] for line in lines]
    assert reported == pytest.approx(rates, rel=1e-6)
    assert rates[-3:] == pytest.approx([0.05, 0.005, 0.005]), "the rate is not cut after epoch 5"
    for line, other in zip(lines, reference(job, reported), strict=True):
        for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
            assert line[name] == pytest.approx(other[name], rel=1e-9), (name, line["epoch"])
    assert len({line["accuracy"] for line in lines}) > 1  # otherwise a constant would pass


@pytest.mark.full
def test_settings_of_the_recipe_take_effect(tmp_path: Path) -> None:
    """Early stopping and clipping change the metrics; several steps per call don't.

    A limit of 1000 clips nothing in half precision: only scaled gradients exceed 1000.
    """
    sets = {
        "stop": ("train.early_stopping_patience=1", "train.epochs=40", "train.learning_rate=0.5"),
        "clip": ("train.clipnorm=0.001",),
        "packed": ("train.steps_per_execution=5",),
        "plain": (),
        "half": ("train.precision=float16",),
        "half clipped": ("train.precision=float16", "train.clipnorm=1000"),
    }
    lines = {}
    for name, settings in sets.items():
        common = ("train.precision=float32", "train.epochs=1")
        *_, lines[name] = trained(tmp_path / name, *common, *settings)
    assert len(lines["stop"]) < 40
    assert lines["packed"] == lines["plain"]
    assert lines["clip"] != lines["plain"]
    assert lines["half clipped"] == lines["half"] != lines["plain"]


@pytest.mark.full
@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_model_has_the_weights_of_the_epoch_to_keep(tmp_path: Path, keep: str) -> None:
    """The saved model reproduces the metrics of the kept epoch; the best epoch is not the last."""
    settings = (f"train.keep={keep}", "train.monitor=val_loss", "train.learning_rate=0.2")
    run, _, lines = trained(tmp_path, *settings, "train.epochs=9")
    best = min(lines, key=lambda line: (line["val_loss"], line["epoch"]))
    assert best["epoch"] != 9, "the last epoch is the best"
    line = best if keep == "best" else lines[-1]
    assert run.result()["kept_epoch"] == line["epoch"]
    model = keras.saving.load_model(run.path("model.keras"), compile=False)
    validation = slice(NUM_TRAINING, None)
    outputs = model.predict_on_batch(encoded(TRAIN)[validation])[:, 0]
    loss = np.mean(losses_of(TRAIN.labels[validation], outputs))
    assert loss == pytest.approx(line["val_loss"], rel=1e-9)
    with np.load(run.path("predictions.npz")) as predictions:
        np.testing.assert_array_equal(predictions["labels"], TEST.labels)
        expected = model.predict_on_batch(encoded(TEST))[:, 0]
        np.testing.assert_allclose(predictions["probabilities"], expected, rtol=1e-9)
    with np.load(run.path("validation_predictions.npz")) as predictions:
        np.testing.assert_array_equal(predictions["labels"], TRAIN.labels[validation])
        np.testing.assert_allclose(predictions["probabilities"], outputs, rtol=1e-9)


@pytest.mark.parametrize(
    ("keep", "epoch"), [("val_loss", 2), ("val_accuracy", 3), ("best", 3), ("last", 5)]
)
def test_of_equal_epochs_the_earliest_is_best(keep: str, epoch: int) -> None:
    """`best` stands for the best epoch by `train.monitor`."""
    scores = [(0.7, 0.5), (0.5, 0.5), (0.6, 0.9), (0.5, 0.9), (0.8, 0.1)]
    history = [
        {"epoch": epoch, "val_loss": loss, "val_accuracy": accuracy}
        for epoch, (loss, accuracy) in enumerate(scores, 1)
    ]
    train = TrainConfig(keep=keep, monitor="val_accuracy")
    assert exported_epoch(history, train)["epoch"] == epoch


@pytest.mark.filterwarnings("error::sklearn.exceptions.UndefinedMetricWarning")
def test_test_reviews_of_one_class_have_no_roc_curve(tmp_path: Path) -> None:
    """The area is unknown, and the run finishes without a warning."""
    of_one_class = replace(TEST, labels=np.ones_like(TEST.labels))
    job = load_job(JOBS / "lstm.toml", [*SETTINGS, "train.epochs=1"])
    result = train_in(tmp_path / "run", job, test=of_one_class).result()
    assert (result["roc_auc"], result["num_test"]) == (None, NUM_TEST)
