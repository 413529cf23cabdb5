"""Whole runs in processes of their own: exact over kills, replicas and signals."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import JOBS, SHRUNK, Harness, results


def newest_step(run: Path) -> int:
    """The step of the run's newest checkpoint, -1 before the first."""
    paths = run.glob("checkpoints/step-*.npz")
    return max((int(path.stem.partition("-")[2]) for path in paths), default=-1)


def wait_for_step(process: "subprocess.Popen[str]", run: Path, step: int) -> None:
    """Wait until the run's heartbeat has seen a checkpoint at `step` or later."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if newest_step(run) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint at step {step}: {process.poll()}")


def kill_at(harness: Harness, job: str, step: int, *words: object) -> None:
    """Start the run `killed`, and end it by SIGKILL once it has saved `step` or a later one."""
    run = harness.runs / job / "killed"
    step = max(step, newest_step(run) + 1)
    process = harness.start(*harness.train_words(job, "killed", *words))
    wait_for_step(process, run, step)
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("job", "devices"), [("gru", "cpu:1"), ("bilstm", "cpu:2"), ("rnn", "cpu:2")]
)
def test_a_killed_run_ends_with_the_same_bytes(harness: Harness, job: str, devices: str) -> None:
    """Three times SIGKILL leaves no trace in metrics, weights, predictions and scores."""
    words = ["--devices", devices, "--set", "train.reduce_lr_patience=1"]
    words += ["--set", "train.epochs=8"]
    calm = harness.train(job, "calm", *words)
    assert calm.returncode == 0, calm.stderr
    for step in (3, 16, 30):
        kill_at(harness, job, step, *words)
    assert not (harness.runs / job / "killed" / "result.json").exists()
    last = harness.train(job, "killed", *words)
    assert last.returncode == 0, last.stderr
    assert results(harness.runs / job / "killed") == results(harness.runs / job / "calm")
    state = json.loads((harness.runs / job / "killed" / "state.json").read_text())
    assert (state["phase"], state["restarts"]) == ("finished", 3)
    assert step_events(harness.runs / job / "killed") == step_events(harness.runs / job / "calm")


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2"])
def test_twenty_kills_at_random_moments_leave_no_trace(harness: Harness, devices: str) -> None:
    """20 times SIGKILL, in start-up, training, validation and saving: the same bytes.

    Run by hand with `-m slow -s`, which shows where each kill fell.
    """
    words = ["--devices", devices, "--set", "train.epochs=200", "--set", "data.limit=1000"]
    calm = harness.train("gru", "calm", *words)
    assert calm.returncode == 0, calm.stderr
    moments = random.Random(7)  # noqa: S311 - not a secret
    run = harness.runs / "gru" / "killed"
    for _ in range(20):
        process = harness.start(*harness.train_words("gru", "killed", *words))
        deadline = time.monotonic() + moments.uniform(2, 9)
        while time.monotonic() < deadline and not (run / "result.json").exists():
            time.sleep(0.01)
        process.kill()
        process.communicate()
        state = json.loads((run / "state.json").read_text()) if run.exists() else {}
        print(devices, state.get("phase"), "step", state.get("step"))  # noqa: T201
        assert not (run / "result.json").exists(), "killed too late: nothing was tried"
    last = harness.train("gru", "killed", *words)
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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_saves_and_ends_with_75(harness: Harness, name: str) -> None:
    """Each stopping signal finishes the step, saves, says how to go on and ends with 75."""
    words = harness.train_words("lstm", "stopped", "--set", "train.checkpoint_every_s=86400")
    process = harness.start(*words, "--set", "train.epochs=200")
    run = harness.runs / "lstm" / "stopped"
    wait_for_step(process, run, 13)
    process.send_signal(signal.Signals[name])
    said, warned = process.communicate(timeout=60)
    assert process.returncode == 75, warned
    assert f"harness resume {run}" in warned
    assert "Traceback" not in warned
    assert json.loads((run / "state.json").read_text())["phase"] == "interrupted"
    assert "epoch 1/200" in said


def test_a_job_goes_back_into_the_queue_as_often_as_its_limit_says(harness: Harness) -> None:
    """The run's folder counts; beyond the limit it is saved all the same and ends with 1."""
    harness.environment |= {"SLURM_JOB_ID": "7", "HARNESS_MAX_REQUEUES": "1"}
    words = harness.train_words("lstm", "stopped", "--set", "train.epochs=200")
    run = harness.runs / "lstm" / "stopped"
    ends = [(signal.SIGTERM, 75, 0), (signal.SIGUSR2, 75, 1), (signal.SIGUSR2, 1, 1)]
    for start, (number, code, requeues) in enumerate(ends):
        process = harness.start(*words)
        wait_for_step(process, run, 20 * start + 13)
        process.send_signal(number)
        _, warned = process.communicate(timeout=60)
        state = json.loads((run / "state.json").read_text())
        assert (process.returncode, state["requeues"], state["restarts"]) == (code, requeues, start)
    assert "HARNESS_MAX_REQUEUES is 1" in warned
    assert f"harness resume {run}" in warned
    assert (state["phase"], "HARNESS_MAX_REQUEUES is 1" in state["error"]) == ("failed", True)


def test_one_replica_and_several_follow_one_curve(harness: Harness) -> None:
    """Dropout included, losses and predictions agree to rounding, with unequal shares too.

    In float64, for what is not rounding would show; in float32 an LSTM makes a difference in the
    last digit grow tenfold every dozen of steps.
    """
    precise = ["--set", "train.precision=float64"]
    for devices in ("cpu:1", "cpu:2", "cpu:3"):
        done = harness.train("lstm", devices.replace(":", ""), "--devices", devices, *precise)
        assert done.returncode == 0, done.stderr
    one, two, three = (results(harness.runs / "lstm" / f"cpu{n}") for n in (1, 2, 3))
    for other in (two, three):
        for mine, theirs in zip(one["metrics"], other["metrics"], strict=True):  # type: ignore[call-overload]
            assert abs(mine["loss"] - theirs["loss"]) < 1e-10
            assert abs(mine["val_loss"] - theirs["val_loss"]) < 1e-10
    probabilities = [
        np.load(harness.runs / "lstm" / f"cpu{n}" / "predictions.npz")["probabilities"]
        for n in (1, 2, 3)
    ]
    np.testing.assert_allclose(probabilities[0], probabilities[1], atol=1e-10)
    np.testing.assert_allclose(probabilities[0], probabilities[2], atol=1e-10)
    other_seed = harness.train("lstm", "seed2", "--seed", "2", *precise)
    assert other_seed.returncode == 0
    assert results(harness.runs / "lstm" / "seed2")["model"] != one["model"]


def test_a_broken_checkpoint_is_named_and_the_one_before_taken(harness: Harness) -> None:
    """A truncated newest checkpoint costs its steps, not the run."""
    calm = harness.train("lstm", "calm")
    assert calm.returncode == 0
    kill_at(harness, "lstm", 16)
    run = harness.runs / "lstm" / "killed"
    newest = max((run / "checkpoints").glob("step-*.npz"))
    newest.write_bytes(newest.read_bytes()[:-5000])
    last = harness.run("resume", run)
    assert last.returncode == 0, last.stderr
    assert newest.name in last.stderr
    assert "using the one before" in last.stderr
    assert results(run) == results(harness.runs / "lstm" / "calm")


def test_a_finished_run_stays_as_it_is(finished: tuple[Harness, Path]) -> None:
    """Started again it changes nothing, ends with 0 and says so."""
    harness, run = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for done in (harness.run("resume", run), harness.train("bilstm", "calm")):
        assert done.returncode == 0
        assert "finished already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_the_newer_of_two_writers_wins(harness: Harness) -> None:
    """A second process takes the run over; the first notices, says who has it, and stops."""
    calm = harness.train("lstm", "calm")
    assert calm.returncode == 0
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
    assert results(run) == results(harness.runs / "lstm" / "calm")


def test_checkpoints_of_another_job_or_other_data_are_refused(harness: Harness) -> None:
    """A job.toml that was edited, and a record that is gone, end in one line, not in a mixture."""
    kill_at(harness, "lstm", 16)
    run = harness.runs / "lstm" / "killed"
    job = (run / "job.toml").read_text()
    (run / "job.toml").write_text(job.replace("learning_rate = 0.0005", "learning_rate = 5.0"))
    done = harness.run("resume", run)
    assert done.returncode == 1
    assert "another job or other data" in done.stderr
    assert done.stderr.count("\n") == 1
    (run / "job.toml").write_text(job)
    again = harness.run("resume", run)
    assert again.returncode == 0, again.stderr


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
    assert "took it over" in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(harness: Harness) -> None:
    """A run whose weights have become NaN stops at the next step, names it, and has no result."""
    kill_at(harness, "lstm", 16)
    run = harness.runs / "lstm" / "killed"
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
    again = harness.train("lstm", "full")  # with room it goes on
    assert again.returncode == 0, again.stderr


def test_a_folder_that_can_not_be_made_ends_in_one_line(harness: Harness) -> None:
    """Runs under a file, or in a place that takes none, give one line and exit code 1."""
    for runs in ("/dev/null/runs", "/proc/runs"):
        done = harness.run("train", JOBS / "lstm.toml", *SHRUNK, "--runs", runs)
        assert done.returncode == 1
        assert runs in done.stderr
        assert done.stderr.count("\n") == 1


def test_settings_of_the_recipe_take_effect(harness: Harness) -> None:
    """Early stopping ends, cuts cut, clipping and half precision change, packed steps do not."""
    sets = {
        "stop": ["train.early_stopping_patience=1", "train.epochs=40", "train.learning_rate=0.05"],
        "cut": ["train.reduce_lr_patience=1", "train.epochs=8", "train.learning_rate=0.05"],
        "clip": ["train.clipnorm=0.001"],
        "half": ["train.precision=bfloat16"],
        "float16": ["train.precision=float16"],
        "float16_clipped": ["train.precision=float16", "train.clipnorm=1000"],
        "packed": ["train.steps_per_execution=5"],
        "plain": [],
    }
    lines = {}
    for name, words in sets.items():
        done = harness.train("gru", name, *(part for word in words for part in ("--set", word)))
        assert done.returncode == 0, done.stderr
        lines[name] = results(harness.runs / "gru" / name)["metrics"]
    assert len(lines["stop"]) < 40  # type: ignore[arg-type]
    rates = [line["learning_rate"] for line in lines["cut"]]  # type: ignore[attr-defined]
    assert min(rates) < rates[0] / 1.9
    assert lines["packed"] == lines["plain"]
    for name in ("clip", "half", "float16"):
        assert lines[name] != lines["plain"]
    # A limit that no gradient reaches cuts nothing, scaled loss or not.
    assert lines["float16_clipped"] == lines["float16"]


def test_float16_is_the_same_on_two_replicas(harness: Harness) -> None:
    """The scale of the loss and its overflows are the global batch's, not each replica's own."""
    for devices in ("cpu:1", "cpu:2"):
        words = ["--devices", devices, "--set", "train.precision=float16"]
        done = harness.train("lstm", devices.replace(":", ""), *words)
        assert done.returncode == 0, done.stderr
    one, two = (results(harness.runs / "lstm" / f"cpu{n}")["metrics"] for n in (1, 2))
    for mine, theirs in zip(one, two, strict=True):  # type: ignore[call-overload]
        assert abs(mine["loss"] - theirs["loss"]) < 1e-3
