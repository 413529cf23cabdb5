"""Whole runs in processes of their own: exact over kills, and over writers that meet."""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Harness, calm_run, results
from tests.data.made_up_texts import make_rows, write_csv
from tests.training.kills import kill_at, killed_run, wait_for_step

pytestmark = pytest.mark.full


@pytest.mark.parametrize(
    ("job", "devices", "kills"),
    [
        ("bilstm", "cpu:2", (30,)),
        pytest.param("gru", "cpu:1", (30,), marks=pytest.mark.slow),
        pytest.param("rnn", "cpu:2", (3, 16, 30), marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_with_the_same_bytes(
    harness: Harness, job: str, devices: str, kills: tuple[int, ...]
) -> None:
    """SIGKILL leaves no trace in metrics, weights, predictions and scores, however often."""
    words = ["--devices", devices, "--set", "train.reduce_lr_patience=1"]
    words += ["--set", "train.epochs=8"]
    calm = harness.train(job, "calm", *words)
    assert calm.returncode == 0, calm.stderr
    for step in kills:
        kill_at(harness, job, step, *words)
    assert not (harness.runs / job / "killed" / "result.json").exists()
    last = harness.train(job, "killed", *words)
    assert last.returncode == 0, last.stderr
    assert results(harness.runs / job / "killed") == results(harness.runs / job / "calm")
    state = json.loads((harness.runs / job / "killed" / "state.json").read_text())
    assert (state["phase"], state["restarts"]) == ("finished", len(kills))
    assert step_events(harness.runs / job / "killed") == step_events(harness.runs / job / "calm")


@pytest.mark.slow
def test_several_classes_are_exact_over_kills_and_alike_on_replicas(harness: Harness) -> None:
    """SIGKILL in two epochs leaves no trace, and two replicas and one have the same curve."""
    rows = [(f"{text} {'xyz'[i % 3]}", ["one", "two", "three"][i % 3])
            for i, (text, _) in enumerate(make_rows(400))]  # fmt: skip
    source = write_csv(harness.folder / "several.csv", rows)
    words = ["--set", f"data.source={source}", "--set", "train.precision=float64"]
    words += ["--set", "train.epochs=6", "--set", "train.learning_rate=0.01"]
    two = [*words, "--devices", "cpu:2"]
    for run_id, each in (("calm", two), ("one", [*words, "--devices", "cpu:1"])):
        done = harness.train("gru", run_id, *each)
        assert done.returncode == 0, done.stderr
    for step in (3, 16):
        kill_at(harness, "gru", step, *two)
    calm, one, killed = (harness.runs / "gru" / name for name in ("calm", "one", "killed"))
    last = harness.train("gru", "killed", *two)
    assert last.returncode == 0, last.stderr
    assert results(killed) == results(calm)
    texts = [(run / "metrics.jsonl").read_text().splitlines() for run in (calm, one)]
    losses = [[json.loads(line)["val_loss"] for line in lines] for lines in texts]
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
    assert losses[0][-1] < losses[0][0] < 1.2, "nothing is learned"
    result = json.loads((calm / "result.json").read_text())
    assert result["classes"] == ["one", "three", "two"]
    with np.load(calm / "predictions.npz") as arrays:
        assert arrays["probabilities"].shape == (result["num_test"], 3)
    told = harness.run("predict", calm, "a fine film x", "a fine film z", "--json")
    assert told.returncode == 0, told.stderr
    for line, label in zip(told.stdout.splitlines(), ("one", "three"), strict=True):
        prediction = json.loads(line)
        assert prediction["class"] == label
        assert list(prediction["probabilities"]) == result["classes"]
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2"])
def test_twenty_kills_at_random_moments_leave_no_trace(harness: Harness, devices: str) -> None:
    """20 times SIGKILL, in start-up, training, validation and saving: the same bytes.

    Run by hand with `-m slow -s`, which shows where each kill fell.
    """
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
        assert not (run / "result.json").exists(), "killed too late: nothing was tried"
    last = harness.run(*harness.train_words("gru", "killed", *words), timeout_s=1200)
    assert last.returncode == 0, last.stderr
    assert results(run) == results(harness.runs / "gru" / "calm")
    assert step_events(run) == step_events(harness.runs / "gru" / "calm")


def step_events(run: Path) -> list[tuple[str, int, float]]:
    """Every (tag, step, value) of loss and accuracy in the run's TensorBoard log."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found = []
    for path in sorted((run / "tensorboard").rglob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag.endswith(("/loss", "/accuracy")):
                    number = float(make_ndarray(value.tensor))
                    found.append((f"{path.parent.name}/{value.tag}", event.step, number))
    assert found
    return sorted(found)


def test_a_broken_checkpoint_is_named_and_the_one_before_taken(harness: Harness) -> None:
    """A truncated newest checkpoint costs its steps, not the run."""
    calm, run = calm_run(harness, "lstm"), killed_run(harness, "lstm")
    *older, oldest, newest = sorted((run / "checkpoints").glob("step-*.npz"))
    for path in older:  # there is a third where the kill fell before it was removed
        path.unlink()
    kept = harness.folder / "kept"
    shutil.copytree(run, kept)
    newest.write_bytes(newest.read_bytes()[:-5000])
    last = harness.run("resume", run)
    assert last.returncode == 0, last.stderr
    assert re.search(rf"{newest.name} is broken .*; using the one before", last.stderr)
    assert results(run) == results(calm)
    shutil.rmtree(run)
    shutil.copytree(kept, run)
    oldest.unlink()
    os.mkfifo(oldest)
    newest.write_bytes(b"")
    last = harness.run("resume", run)
    assert last.returncode == 0, last.stderr
    assert re.search(rf"{oldest.name} is broken .*; none is left, starting anew", last.stderr)
    assert results(run) == results(calm)


# `test_a_run_that_was_taken_over_writes_nothing_more` has an older one that stands still.
@pytest.mark.slow
def test_the_newer_of_two_writers_wins(harness: Harness) -> None:
    """A second process takes the run over; the first notices, says who has it, and stops."""
    calm = calm_run(harness, "lstm")
    older = harness.start(*harness.train_words("lstm", "killed"))
    run = harness.runs / "lstm" / "killed"
    wait_for_step(older, run, 3)
    newer = harness.start("resume", run)
    _, older_said = older.communicate(timeout=120)
    _, newer_said = newer.communicate(timeout=120)
    assert newer.returncode == 0, newer_said
    # The older one may have been done before the newer one took over; then nothing was left.
    if older.returncode != 0:
        assert older.returncode == 1
        assert f"process {newer.pid}" in older_said
        assert "Traceback" not in older_said
    assert results(run) == results(calm)


def test_checkpoints_of_another_job_or_other_data_are_refused(harness: Harness) -> None:
    """A job.toml that was edited, and a record that is gone, end in one line, not in a mixture."""
    run = killed_run(harness, "lstm")
    job = (run / "job.toml").read_text()
    (run / "job.toml").write_text(job.replace("learning_rate = 0.0005", "learning_rate = 5.0"))
    checkpoints = {path: path.read_bytes() for path in run.glob("checkpoints/*")}
    done = harness.run("resume", run)
    assert done.returncode == 1
    assert "another job or other data" in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in run.glob("checkpoints/*")} == checkpoints


def test_a_run_that_was_taken_over_writes_nothing_more(harness: Harness) -> None:
    """A process that slept while another finished its run leaves every byte as it is."""
    older = harness.start(*harness.train_words("lstm", "killed"))
    run = harness.runs / "lstm" / "killed"
    deadline = time.monotonic() + 60
    while not (run / "job.toml").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    older.send_signal(signal.SIGSTOP)
    newer = harness.run("resume", run)
    assert newer.returncode == 0, newer.stderr
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    older.send_signal(signal.SIGCONT)
    _, said = older.communicate(timeout=120)
    assert older.returncode == 1
    assert "another process finished" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
