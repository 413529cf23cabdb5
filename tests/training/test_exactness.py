"""Whole runs end with the same bytes after kills, and if two processes train one run."""

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Harness, results, wait_for
from tests.data.made_up_texts import make_rows, write_csv
from tests.training.kills import ON_TWO, killed_on_two, trained_with_kills
from tests.training.test_tensorboard_log import Point, points

CURVES = ("/loss", "/accuracy")

pytestmark = pytest.mark.full


def test_a_killed_run_ends_with_the_same_bytes(harness: Harness) -> None:
    """The kill changes nothing in metrics, weights, predictions, scores and the log."""
    killed, calm = killed_on_two(harness), harness.trained("bilstm", "calm", *ON_TWO)
    assert results(killed) == results(calm)
    state = json.loads((killed / "state.json").read_text())
    assert (state["phase"], state["restarts"]) == ("finished", 1)
    assert step_events(killed) == step_events(calm)


@pytest.mark.slow
def test_several_classes_are_exact_over_kills_and_equal_on_replicas(harness: Harness) -> None:
    """Kills in two epochs change nothing; one replica and two have the same losses."""
    rows = [(f"{text} {'xyz'[i % 3]}", ["one", "two", "three"][i % 3])
            for i, (text, _) in enumerate(make_rows(400))]  # fmt: skip
    source = write_csv(harness.folder / "several.csv", rows)
    words = ["--set", f"data.source={source}", "--set", "train.precision=float64"]
    words += ["--set", "train.epochs=6", "--set", "train.learning_rate=0.01"]
    one = harness.trained("gru", "one", *words, "--devices", "cpu:1")
    words += ["--devices", "cpu:2"]
    calm = harness.trained("gru", "calm", *words)
    assert results(trained_with_kills(harness, "gru", [3, 16], *words)) == results(calm)
    texts = [(run / "metrics.jsonl").read_text().splitlines() for run in (calm, one)]
    losses = [[json.loads(line)["val_loss"] for line in lines] for lines in texts]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
    assert losses[0][-1] < losses[0][0] < 1.2, "nothing is learned"
    result = json.loads((calm / "result.json").read_text())
    assert result["classes"] == ["one", "three", "two"]
    with np.load(calm / "predictions.npz") as arrays:
        assert arrays["probabilities"].shape == (result["num_test"], 3)


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2"])
def test_twenty_kills_at_random_moments_leave_no_trace(harness: Harness, devices: str) -> None:
    """The kills hit start-up, training, validation and saving; `-s` prints where."""
    words = ["--devices", devices, "--set", "train.epochs=500", "--set", "data.limit=1000"]
    calm = harness.run(*harness.train_words("gru", "calm", *words), timeout_s=1200)
    assert calm.returncode == 0, calm.stderr
    moments = random.Random(7)  # noqa: S311 - not a secret
    run = harness.runs / "gru" / "killed"
    for _ in range(20):
        process = harness.start(*harness.train_words("gru", "killed", *words), is_forked=False)
        deadline = time.monotonic() + moments.uniform(2, 9)
        while time.monotonic() < deadline and not (run / "result.json").exists():
            time.sleep(0.01)
        process.kill()
        process.communicate()
        state = json.loads((run / "state.json").read_text()) if run.exists() else {}
        print(devices, state.get("phase"), "step", state.get("step"))  # noqa: T201
        assert not (run / "result.json").exists(), "finished before the kill"
    last = harness.run(*harness.train_words("gru", "killed", *words), timeout_s=1200)
    assert last.returncode == 0, last.stderr
    assert results(run) == results(harness.runs / "gru" / "calm")
    assert step_events(run) == step_events(harness.runs / "gru" / "calm")


def step_events(run: Path) -> list[Point]:
    """Return every point of loss and accuracy in the run's TensorBoard log."""
    found = [each for each in points(run / "tensorboard") if each[1].endswith(CURVES)]
    assert found
    return sorted(found)


def test_a_run_that_was_taken_over_writes_nothing_more(harness: Harness) -> None:
    """A process that was suspended while another process finished the run changes no byte."""
    older = harness.start(*harness.train_words("lstm", "killed"))
    run = harness.runs / "lstm" / "killed"
    wait_for((run / "job.toml").exists)
    older.send_signal(signal.SIGSTOP)
    harness.succeed("resume", run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    older.send_signal(signal.SIGCONT)
    _, said = older.communicate(timeout=120)
    assert older.returncode == 1
    assert "another process finished" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
