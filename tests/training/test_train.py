"""Whole runs in processes of their own: replicas, signals, disks, settings."""

import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from harness.data.dataset_folder import save_folder
from harness.data.sources import make_dataset
from tests.conftest import JOBS, SHRUNK, Harness, metrics
from tests.report.small_data import WORDS, small_data
from tests.training.kills import killed_run, wait_for_step


@pytest.mark.full
def test_a_signal_saves_and_ends_with_75(harness: Harness) -> None:
    """A stopping signal lets the step end, saves, says how to go on and ends with 75.

    `tests/system/test_processes.py` has the other signals.
    """
    words = harness.train_words("lstm", "stopped", "--set", "train.checkpoint_every_s=86400")
    process = harness.start(*words, "--set", "train.epochs=200")
    run = harness.runs / "lstm" / "stopped"
    wait_for_step(process, run, 13)
    process.send_signal(signal.SIGINT)
    said, warned = process.communicate(timeout=60)
    assert process.returncode == 75, warned
    assert f"harness resume {run}" in warned
    assert "Traceback" not in warned
    assert json.loads((run / "state.json").read_text())["phase"] == "interrupted"
    assert "epoch 1/200" in said


@pytest.mark.full
def test_a_run_that_gives_up_exactness_says_so(harness: Harness) -> None:
    """Both keys are in the record; the loss of same bytes is on the screen too."""
    settings = ["--set", "train.deterministic=false", "--set", "train.tf32=true"]
    done = harness.train("lstm", "loose", *settings)
    assert done.returncode == 0, done.stderr
    assert "train.deterministic = false: another run" in done.stderr
    record = json.loads((harness.runs / "lstm" / "loose" / "provenance.json").read_text())
    start = record["starts"][0]
    assert (start["tf32"], start["deterministic"], start["cublas_workspace"]) == (True, False, None)


@pytest.mark.slow
def test_one_replica_and_several_follow_one_curve(harness: Harness) -> None:
    """Dropout included, losses and predictions agree to rounding, with unequal shares too.

    In float64, for what is not rounding would show; in float32 an LSTM makes a difference in the
    last digit grow tenfold every dozen of steps.
    """
    precise = ["--set", "train.precision=float64"]
    for devices in ("cpu:1", "cpu:3"):  # shares of 11, 11 and 10 reviews
        done = harness.train("lstm", devices.replace(":", ""), "--devices", devices, *precise)
        assert done.returncode == 0, done.stderr
    one, three = (metrics(harness.runs / "lstm" / f"cpu{n}") for n in (1, 3))
    for mine, theirs in zip(one, three, strict=True):
        assert abs(mine["loss"] - theirs["loss"]) < 1e-10
        assert abs(mine["val_loss"] - theirs["val_loss"]) < 1e-10
    for name in ("predictions.npz", "validation_predictions.npz"):
        mine, theirs = (
            np.load(harness.runs / "lstm" / f"cpu{n}" / name)["probabilities"] for n in (1, 3)
        )
        np.testing.assert_allclose(mine, theirs, atol=1e-10)
    assert len({line["loss"] for line in one}) == 3, "nothing is learnt: all would be equal"


@pytest.mark.full
def test_the_loss_reported_is_that_of_the_reviews(harness: Harness) -> None:
    """Where nothing is learnt, an epoch's loss and accuracy are those that the test set gives.

    The test reviews are the training reviews; the last of two batches is not full.
    """
    reviews = small_data(harness.folder / "other").train
    save_folder(make_dataset(reviews, reviews, WORDS), harness.folder / "data")
    settings = ["data.maxlen=5", "data.vocab_size=8", "data.validation_split=0", "train.epochs=1"]
    settings += ["train.keep=last", "train.batch_size=40", "train.learning_rate=1e-30"]
    settings += ["model.dropout=0", "model.spatial_dropout=0"]
    words = [part for setting in settings for part in ("--set", setting)]
    words += ["--data", str(harness.folder / "data"), "--run-id", "still"]
    done = harness.run("train", JOBS / "lstm.toml", *words)
    assert done.returncode == 0, done.stderr
    run = harness.runs / "lstm" / "still"
    assert not (run / "validation_predictions.npz").exists()
    line = json.loads((run / "metrics.jsonl").read_text())
    result = json.loads((run / "result.json").read_text())
    assert line["loss"] == pytest.approx(result["log_loss"], abs=1e-6)
    assert line["accuracy"] == pytest.approx(result["accuracy"], abs=1e-9)
    assert 0 < line["accuracy"] < 1


@pytest.mark.full
def test_a_finished_run_stays_as_it_is(finished: tuple[Harness, Path]) -> None:
    """Started again it changes nothing, ends with 0 and says so."""
    harness, run = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for words in (["resume", run], harness.train_words("bilstm", "calm")):
        done = harness.run_here(*words)
        assert done.returncode == 0
        assert "finished already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(harness: Harness) -> None:
    """A run whose weights have become NaN stops at the next step, names it, and has no result."""
    run = killed_run(harness, "lstm")
    for path in run.glob("checkpoints/*.npz"):
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        arrays["model/0"][:] = np.nan
        np.savez(path, **arrays)
    step = max(int(path.stem.partition("-")[2]) for path in run.glob("checkpoints/*.npz"))
    done = harness.run("resume", run)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"the loss is not finite at step {step + 1} " in done.stderr
    assert not (run / "result.json").exists()
    state = json.loads((run / "state.json").read_text())
    assert (state["phase"], "not finite" in state["error"]) == ("failed", True)


@pytest.mark.full
def test_a_full_disk_ends_the_run_in_one_line(harness: Harness) -> None:
    """Where a file can't be written whole, none is written half, and the exit code is 1."""
    words = harness.command(*harness.train_words("lstm", "full"))
    # The kernel refuses any file over 200 KB: a checkpoint of this run has 3 MB.
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash", *words]
    done = subprocess.run(
        limited, env=harness.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    run = harness.runs / "lstm" / "full"
    assert not list(run.rglob("*.tmp*"))
    assert not list(run.glob("checkpoints/*"))
    assert not (run / "result.json").exists()


@pytest.mark.full
def test_a_folder_that_can_not_be_made_ends_in_one_line(harness: Harness) -> None:
    """Runs under a file, or in a place that takes none, are refused in one line."""
    for runs in ("/dev/null/runs", "/proc/runs"):
        done = harness.run_here("train", JOBS / "lstm.toml", *SHRUNK, "--runs", runs)
        assert done.returncode == 2
        assert runs in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_float16_is_the_same_on_two_replicas(harness: Harness) -> None:
    """The scale of the loss and its overflows are the global batch's, not each replica's own."""
    for devices in ("cpu:1", "cpu:2"):
        words = ["--devices", devices, "--set", "train.precision=float16"]
        done = harness.train("lstm", devices.replace(":", ""), *words)
        assert done.returncode == 0, done.stderr
    one, two = (metrics(harness.runs / "lstm" / f"cpu{n}") for n in (1, 2))
    for mine, theirs in zip(one, two, strict=True):
        assert abs(mine["loss"] - theirs["loss"]) < 1e-3
