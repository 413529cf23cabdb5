"""Batches by length, n-gram ratios, word dropout and adversarial training are exact, too."""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import Harness, metrics, results, shared_run
from tests.training.kills import trained_with_kills

pytestmark = pytest.mark.full

ALL = [
    *("--set", "data.bucket=true"),
    *("--set", "data.maxlen=60"),
    *("--set", "model.pooling=max+mean"),
    *("--set", "model.ngram_ratios=3"),
    *("--set", "model.word_dropout=0.3"),
    *("--set", "train.adversarial=5"),
]
LAST_EPOCH = 31  # first step of the last epoch; an epoch has 15 steps


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Harness, Path]:
    """A finished run with the settings ALL."""
    harness = Harness(tmp_path_factory.mktemp("recipes"))
    make = partial(harness.trained, "bilstm", "recipes", *ALL)
    return harness, shared_run(harness, "bilstm", "recipes", make)


def test_a_killed_run_ends_with_the_same_bytes(calm: tuple[Harness, Path]) -> None:
    """The run is killed in its last epoch."""
    harness, run = calm
    killed = trained_with_kills(harness, "bilstm", [LAST_EPOCH], *ALL)
    assert results(killed) == results(run)
    name = "ngram_ratios.npz"
    assert (killed / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize(
    ("num_replicas", "settings"),
    [(2, [*ALL, "--set", "train.batch_size=31"]), pytest.param(3, [], marks=pytest.mark.slow)],
)
def test_one_replica_and_several_follow_one_curve(
    harness: Harness, num_replicas: int, settings: list[str]
) -> None:
    """Losses and predictions differ only by rounding, even with dropout and unequal shares.

    Two replicas have shares of 16 and 15 reviews, three have shares of 11, 11 and 10. The runs use
    float64: in float32 an LSTM multiplies a rounding error by ten every 12 steps.
    """
    folders = []
    for num in (1, num_replicas):
        words = ("--set", "train.precision=float64", "--set", "train.epochs=2", *settings)
        folders.append(harness.trained("lstm", f"cpu{num}", "--devices", f"cpu:{num}", *words))
    one, several = map(metrics, folders)
    for mine, theirs in zip(one, several, strict=True):
        assert abs(mine["loss"] - theirs["loss"]) < 1e-10
        assert abs(mine["val_loss"] - theirs["val_loss"]) < 1e-10
    for name in ("predictions.npz", "validation_predictions.npz"):
        mine, theirs = (np.load(folder / name)["probabilities"] for folder in folders)
        np.testing.assert_allclose(mine, theirs, atol=1e-10)
    assert len({line["loss"] for line in one}) == 2, "without learning all curves are equal"


def test_a_run_with_ratios_evaluates_and_predicts(
    calm: tuple[Harness, Path], tmp_path: Path
) -> None:
    """`evaluate` reports the same scores, and an exported model gives the same probabilities."""
    harness, run = calm
    result = json.loads((run / "result.json").read_text())
    content = (run / "ngram_ratios.npz").read_bytes()
    assert result["ngram_ratios_checksum"] == hashlib.sha256(content).hexdigest()
    scored = harness.succeed("evaluate", run, "--json")
    assert json.loads(scored.stdout)["accuracy"] == result["accuracy"]
    texts = "An excellent movie!\nBad.\n" + "A long and boring one. " * 30
    together = harness.succeed("predict", run, "--json", stdin=texts)
    told = [json.loads(line)["probabilities"]["positive"] for line in together.stdout.splitlines()]
    assert len(set(told)) == 3
    alone = harness.run("predict", run, "--json", "Bad.")
    assert json.loads(alone.stdout)["probabilities"]["positive"] == pytest.approx(told[1], abs=1e-6)
    harness.succeed("export", run, "--out", tmp_path / "out")
    classify = tf.saved_model.load(str(tmp_path / "out" / "1")).signatures["serving_default"]
    served = classify(text=tf.constant(texts.split("\n")))["probabilities"].numpy()[:, 1]
    np.testing.assert_allclose(served, told, atol=1e-6)
