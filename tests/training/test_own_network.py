"""The files in jobs/own: a custom network, loss, optimizer and callback, in all commands."""

import csv
import shutil
from pathlib import Path

import pytest

from tests.conftest import JOBS, SHRUNK, Harness, results
from tests.training.kills import kill_at

pytestmark = pytest.mark.full


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A copy of the example, in a folder that only its owner can write to."""
    folder = tmp_path / "own"
    shutil.copytree(JOBS / "own", folder)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    return folder


def test_own_parts_need_their_files_once(harness: Harness, own: Path) -> None:
    """Network, loss, optimizer and callback are custom. After its start a run no longer needs the
    files of these parts: `resume` ends with the same bytes, and `predict` works.
    """
    job, runs = str(own / "conv_gru"), harness.runs / "conv_gru"
    settings = [
        f"train.loss={own}/focal.py:focal",
        f"train.optimizer={own}/focal.py:sign_descent",
        "train.optimizer_options={ momentum = 0.9 }",
        f'train.callbacks=["{own}/parts.py:stop_overfitting"]',
        "train.schedule=cosine",
        "train.class_weights={ negative = 1.0, positive = 1.5 }",
        "train.keep=val_f1",
        "data.maxlen=10",
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    calm = harness.trained(job, "calm", *words)
    kill_at(harness, job, 3, *words)
    source = own / "conv_gru.py"
    source.write_text(source.read_text().replace("layers.GRU", "layers.LSTM"))
    changed = harness.run_here(*harness.train_words(job, "killed", *words))
    assert changed.returncode == 2
    assert "contains another job" in changed.stderr
    shutil.rmtree(own)
    harness.succeed("resume", runs / "killed")
    assert results(runs / "killed") == results(calm)
    asked = harness.succeed("predict", runs / "killed", "A wonderful movie")
    (runs / "killed" / "job.toml").chmod(0o666)
    refused = harness.run_here("predict", runs / "killed", "A wonderful movie")
    assert refused.returncode == 2
    assert "others can write to it" in refused.stderr
    trusted = harness.run("predict", runs / "killed", "A wonderful movie", "--trust-code")
    assert trusted.stdout == asked.stdout


@pytest.mark.slow
def test_a_search_reaches_the_options(harness: Harness, own: Path) -> None:
    """A search tries values of `model.options`; its best trial no longer needs the file."""
    path = own / "tune_conv_gru.toml"
    path.write_text(
        (own / "conv_gru.toml").read_text() + '[search]\ntuner = "grid"\n[search.space]\n'
        "model.options.width = [1, 4]\n"
    )
    words = [*SHRUNK, "--set", "train.epochs=1", "--workers", "1", "--devices", "cpu"]
    harness.succeed("tune", path, "--sweep-id", "own", *words)
    shutil.rmtree(own)
    sweep = harness.runs / "tune_conv_gru" / "own"
    rows = list(csv.DictReader((sweep / "leaderboard.csv").read_text().splitlines()))
    assert {row["model.options.width"] for row in rows} == {"1", "4"}
    harness.succeed("sweep", "retrain", sweep, "--seeds", "1")
    (job,) = (sweep / "winner" / "tune_conv_gru_best").glob("trial*-seed1/job.toml")
    assert "def conv_gru(" in job.read_text()


def test_a_refused_network_leaves_nothing(harness: Harness, own: Path) -> None:
    """An error in the network ends in one line, without a folder."""
    source = own / "conv_gru.py"
    source.write_text(source.read_text().replace("config.units", "-1"))
    done = harness.train(str(own / "conv_gru"), "refused")
    assert done.returncode == 2, done.stderr
    assert "conv_gru.py, line" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (harness.runs / "conv_gru").exists()
